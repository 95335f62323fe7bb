"""What a recipe alone says of lengths: before any model or tokenizer is read. ``stages.lengths`` looks at every row."""

from __future__ import annotations

from collections.abc import Iterator

from rlreason.config import EvalStage, GrpoStage, OpdStage, PolicyConfig, Recipe, RejectStage, Stage, TrainingStage
from rlreason.errors import UsageError
from rlreason.stages.references import References


def check_room(recipe: Recipe) -> None:
    """Raise UsageError for a stage whose longest answers leave no room for a prompt in what the recipe allows."""
    references = References(recipe)
    for stage in recipe.stage:
        names = stage.models if isinstance(stage, EvalStage) else (references.model_of(stage),)
        for name in names:
            limit = None if name in recipe.endpoint else longest(recipe, references.config(name))
            for key, longest_answer in _answers(stage):
                if limit is not None and longest_answer >= limit:
                    room = "sampler.max_length" if recipe.sampler.max_length else "its model's max_position_embeddings"
                    raise UsageError(
                        f"stage {stage.name!r}: {key} = {longest_answer} leaves no room for a prompt in {room} = "
                        f"{limit}"
                    )


def _answers(stage: Stage) -> Iterator[tuple[str, int]]:
    """(key, longest answer that it allows) of what the stage draws."""
    if isinstance(stage, (GrpoStage, RejectStage, EvalStage, OpdStage)):
        yield "max_tokens", stage.max_tokens
    if isinstance(stage, TrainingStage) and stage.eval_every:
        yield "eval_max_tokens", stage.longest_evaluated


def longest(recipe: Recipe, config: PolicyConfig) -> int | None:
    """Positions for a prompt with its answer, as far as the recipe says; None: the checkpoint's config does."""
    if recipe.sampler.max_length is not None:
        return recipe.sampler.max_length
    positions = config.model.get("max_position_embeddings")
    return positions if isinstance(positions, int) else None


def length_line(recipe: Recipe) -> str:
    """One line for `rlreason plan`."""
    limit = longest(recipe, recipe.policy)
    room = "the model's positions" if limit is None else f"{limit} tokens"
    what = {"refuse": "stops the run before its first stage", "drop": "is left out, and they are counted"}
    return f"a prompt with its answer: at most {room}; one that doesn't fit {what[recipe.data.overlong_prompts]}"

"""What a recipe alone says of lengths: before any model or tokenizer is read. ``stages.lengths`` looks at every row."""

from __future__ import annotations

from rlreason.config import EvalStage, GrpoStage, OpdStage, PolicyConfig, Recipe, RejectStage
from rlreason.errors import UsageError
from rlreason.stages.references import References


def check_room(recipe: Recipe) -> None:
    """Raise UsageError for a stage whose ``max_tokens`` leaves no room for a prompt in what the recipe allows."""
    references = References(recipe)
    for stage in recipe.stage:
        if not isinstance(stage, (GrpoStage, RejectStage, EvalStage, OpdStage)):
            continue
        names = stage.models if isinstance(stage, EvalStage) else (references.model_of(stage),)
        for name in names:
            limit = None if name in recipe.endpoint else longest(recipe, references.config(name))
            if limit is not None and stage.max_tokens >= limit:
                key = "sampler.max_length" if recipe.sampler.max_length else "its model's max_position_embeddings"
                raise UsageError(
                    f"stage {stage.name!r}: max_tokens = {stage.max_tokens} leaves no room for a prompt in {key} = "
                    f"{limit}"
                )


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

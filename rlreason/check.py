"""Everything about a recipe that can be wrong and needs no model to find out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlreason.config import EvalStage, GrpoStage, Recipe, RejectStage, SftStage, TrainingStage
from rlreason.data.prompts import PromptFormat
from rlreason.data.source import ProblemSource, SourceSpec, open_source
from rlreason.errors import UsageError
from rlreason.inputs import RecipeFiles, absolute_recipe
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.registry import resolve_verifier
from rlreason.run import manifest
from rlreason.run.inputs import InputFile, KnownInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecipe:
    """A recipe whose rewards resolve and whose data could be read."""

    #: With the data that was taken, and every file and folder by its absolute path.
    recipe: Recipe
    mix: RewardMix
    source: ProblemSource
    prompt_format: PromptFormat
    #: The files that it was read from.
    inputs: tuple[InputFile, ...]


def check(recipe: Recipe, base: Path, known: KnownInputs | None = None) -> CheckedRecipe:
    """Resolve rewards and read the data. ``base`` is the recipe's folder; ``known`` are the inputs of the run that is
    gone on with or followed; without, those of a recipe out of a run directory stand in for files that are gone.
    Raises UsageError on the first fault.
    """
    files = RecipeFiles(base=base, known=known or _copies_in(base))
    recipe = absolute_recipe(recipe, files)
    mix = reward_mix(recipe, files)
    source = open_source(
        SourceSpec(
            train=recipe.data.train,
            heldout=recipe.data.heldout,
            options=recipe.data.options,
            columns=recipe.data.columns,
            answer_after=recipe.data.answer_after,
            verifier=files.loaded(recipe.data.verifier),
            seed=recipe.seed,
            base=base,
            copies=files.copies,
        )
    )
    _check_needs(recipe, source)
    style = PromptFormat(system=recipe.data.system, style=recipe.data.answer_style)
    taken = _taken(recipe, source)
    data = [files.data_files[name] for name in (taken.data.train, taken.data.heldout) if name in files.data_files]
    inputs = tuple(dict.fromkeys((*data, *files.rewards.values())))
    return CheckedRecipe(recipe=taken, mix=mix, source=source, prompt_format=style, inputs=inputs)


def _copies_in(base: Path) -> KnownInputs | None:
    """The copies that a run directory has of its inputs; None where ``base`` is none."""
    path = base / "manifest.json"
    if not path.is_file():
        return None
    return KnownInputs(root=base, entries=tuple(manifest.read(path).inputs), must_match=False)


def _taken(recipe: Recipe, source: ProblemSource) -> Recipe:
    """Of several names for its data, the one that was read."""
    update: dict[str, str | None] = {"train": source.train_origin}
    if recipe.data.heldout is not None:
        update["heldout"] = source.heldout_origin
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})


def reward_mix(recipe: Recipe, files: RecipeFiles) -> RewardMix:
    """The recipe's rewards by name. Raises UsageError for an unknown reward, option or verifier."""
    try:
        mix = RewardMix.from_table(recipe.reward, {name: files.loaded(name) for name in recipe.reward})
    except ValueError as error:
        raise UsageError(f"[reward] {error}") from error
    try:
        resolve_verifier(files.loaded(recipe.data.verifier))
    except ValueError as error:
        raise UsageError(f"data.verifier: {error}") from error
    return mix


def _check_needs(recipe: Recipe, source: ProblemSource) -> None:
    """Each stage finds in the data what it will ask for."""
    needed = 0
    for stage in recipe.stage:
        if isinstance(stage, EvalStage):
            needed = max(needed, stage.problems)
        elif isinstance(stage, TrainingStage) and stage.eval_every:
            needed = max(needed, stage.eval_problems)
        if isinstance(stage, SftStage):
            source.demonstrations(0, 1)
        if isinstance(stage, (GrpoStage, RejectStage)):
            source.train(0, 1)
    if needed:
        source.heldout(needed)

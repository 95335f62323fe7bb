"""Everything about a recipe that can be wrong and needs no model to find out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlreason.config import EvalStage, GrpoStage, Recipe, RejectStage, SftStage, TrainingStage
from rlreason.data.prompts import PromptFormat
from rlreason.data.source import ProblemSource, SourceSpec, open_source
from rlreason.errors import UsageError
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.registry import resolve_verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecipe:
    """A recipe whose rewards resolve and whose data could be read."""

    recipe: Recipe
    mix: RewardMix
    source: ProblemSource
    prompt_format: PromptFormat


def check(recipe: Recipe, base: Path) -> CheckedRecipe:
    """Resolve rewards and read the data. ``base`` is the recipe's folder. Raises UsageError on the first fault."""
    mix = reward_mix(recipe)
    source = open_source(
        SourceSpec(
            train=recipe.data.train,
            heldout=recipe.data.heldout,
            options=recipe.data.options,
            columns=recipe.data.columns,
            answer_after=recipe.data.answer_after,
            verifier=recipe.data.verifier,
            seed=recipe.seed,
            base=base,
        )
    )
    _check_needs(recipe, source)
    style = PromptFormat(system=recipe.data.system, style=recipe.data.answer_style)
    return CheckedRecipe(recipe=recipe, mix=mix, source=source, prompt_format=style)


def reward_mix(recipe: Recipe) -> RewardMix:
    """The recipe's rewards by name. Raises UsageError for an unknown reward, option or verifier."""
    try:
        mix = RewardMix.from_table(recipe.reward)
    except ValueError as error:
        raise UsageError(f"[reward] {error}") from error
    try:
        resolve_verifier(recipe.data.verifier)
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

"""How many tokens a micro-batch has where the recipe does not say: settled before a run begins, and written down.

A run's recipe.toml has the numbers, so that one that goes on, or is followed, cuts its steps as before wherever it is;
they are of the GPU of the trainer's ranks by its data sheet, else of the machine's whole memory, and not of what is
free, so that two runs are alike, and `rlreason plan --gpu` says the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlreason.check import CheckedRecipe
from rlreason.config import MICRO_BATCH, Stage, TrainingStage, load
from rlreason.errors import UsageError


def settled_as(checked: CheckedRecipe, run: Path | None) -> CheckedRecipe:
    """With the numbers of the recipe in ``run``, where that has a stage of the same name."""
    if run is None:
        return checked
    known = {
        one.name: one.micro_batch_tokens
        for one in load(run / "recipe.toml").stage
        if isinstance(one, TrainingStage) and one.micro_batch_tokens is not None
    }
    return _with(checked, known)


def settled(checked: CheckedRecipe) -> CheckedRecipe:
    """With numbers for all stages. A model whose size is not known here is given ``MICRO_BATCH``."""
    from rlreason.plan.budget import Budgets
    from rlreason.plan.trainer_gpu import trainer_gpu
    from rlreason.sizing.activations import CountingError

    stages = [one for one in checked.recipe.stage if isinstance(one, TrainingStage) and one.micro_batch_tokens is None]
    if not stages:
        return checked
    budgets = Budgets(checked.recipe, checked.data, trainer_gpu(checked.recipe))
    found: dict[str, int] = {}
    for stage in stages:
        try:
            found[stage.name] = budgets.setup(stage).micro_batch_tokens
        except (CountingError, UsageError):
            found[stage.name] = MICRO_BATCH
    return _with(checked, found)


def _with(checked: CheckedRecipe, tokens: Mapping[str, int]) -> CheckedRecipe:
    """``tokens`` by the names of stages; a number that the recipe says stays."""

    def given(stage: Stage) -> Stage:
        if not isinstance(stage, TrainingStage) or stage.micro_batch_tokens is not None or stage.name not in tokens:
            return stage
        return stage.model_copy(update={"micro_batch_tokens": tokens[stage.name]})

    stages = tuple(given(one) for one in checked.recipe.stage)
    return replace(checked, recipe=checked.recipe.model_copy(update={"stage": stages}))

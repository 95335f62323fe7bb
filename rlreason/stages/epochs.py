"""How many rows an epoch of a supervised stage has, as far as that is known before the stage begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlreason.config import DistillStage, Recipe, SftStage
from rlreason.data.run_data import RunData
from rlreason.data.source import ProblemSource
from rlreason.errors import UsageError
from rlreason.stages.references import References
from rlreason.traces.rows import KEPT


def demonstrations_of(stage: SftStage, source: ProblemSource) -> int | None:
    """How many different ones the stage learns; None: they never run out. Raises UsageError for epochs of those."""
    count = stage.demonstrations or source.demonstration_count
    if count is None and stage.epochs is not None:
        raise UsageError(
            f"stage.{stage.name}.epochs: {source.train_origin} never runs out of demonstrations, so there is no epoch: "
            f"say how many there are by stage.{stage.name}.demonstrations, or the length by steps"
        )
    return count


def planned_rows(recipe: Recipe, data: RunData) -> Mapping[str, int]:
    """Of each stage that says epochs: the rows of one, of a distill stage at most, its general data left out; 0 where
    its traces are not there yet."""
    found = {}
    for stage in recipe.stage:
        if isinstance(stage, SftStage) and stage.epochs is not None:
            found[stage.name] = demonstrations_of(stage, data.of(stage.name)) or 0
        elif isinstance(stage, DistillStage) and stage.epochs is not None:
            found[stage.name] = _traces(stage, recipe)
    return found


def with_rows(recipe: Recipe, rows: Mapping[str, int]) -> Recipe:
    """Every stage that says epochs with the steps of so many rows."""

    def counted(stage: SftStage | DistillStage) -> SftStage | DistillStage:
        there = rows.get(stage.name, 0)
        return stage.counted(there) if there else stage

    stages = tuple(counted(one) if isinstance(one, (SftStage, DistillStage)) else one for one in recipe.stage)
    return recipe.model_copy(update={"stage": stages})


def _traces(stage: DistillStage, recipe: Recipe) -> int:
    if stage.trace_set is not None:
        path = Path(stage.trace_set) / KEPT
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            return sum(1 for _ in file)
    made = References(recipe).traces_of(stage)
    each = made.samples_per_problem
    return made.problems * (min(made.keep_per_problem, each) if stage.which == "kept" else each)

"""What an ``opd`` stage's teachers are of a recipe and its problems alone: who teaches which problem, and that none of
them is what the student begins with."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rlreason.config import OpdStage, PolicyConfig, Recipe
from rlreason.data.source import ProblemSource
from rlreason.errors import UsageError, nearest
from rlreason.stages.references import TABLES, References
from rlreason.types import Problem

#: Problems of an endless task that stand for all of them.
SPECIMENS = 256
#: Names in a message.
_NAMED = 20


def names_of(problem: Problem) -> tuple[str, ...]:
    """What ``route`` may call it: its tags, its data set and its source."""
    return tuple(name for name in (*problem.tags, problem.data_set, problem.source) if name)


def route_of(stage: OpdStage, problem: Problem) -> str:
    """The teacher of a problem, by its tags and its data set. Raises UsageError where it is not exactly one."""
    found = list(dict.fromkeys(stage.route[name] for name in names_of(problem) if name in stage.route))
    if len(found) == 1:
        return found[0]
    has = f"tags {list(problem.tags)}, data set {problem.data_set!r}, source {problem.source!r}"
    raise UsageError(
        f"stage {stage.name!r}: problem {problem.id!r} ({has}) "
        + (
            f"is routed to {' and '.join(found)}: a row learns from one teacher"
            if found
            else f"has no teacher: route knows {', '.join(stage.route)}"
        )
    )


def check_routes(stage: OpdStage, source: ProblemSource) -> None:
    """Raise UsageError for a problem without a teacher: of all rows, and of endless tasks the first."""
    for problem in _known(stage, source) if stage.route else ():
        route_of(stage, problem)


def check_names(stage: OpdStage, source: ProblemSource) -> None:
    """Raise UsageError for a key of ``route`` that no problem answers to. Of a task's tags such as ``terms=9`` the
    value may be of problems that come later."""
    known = dict.fromkeys(name for problem in _known(stage, source) for name in names_of(problem))
    labels = {name.partition("=")[0] for name in known if "=" in name} if source.train_size is None else set()
    for key in stage.route:
        if key not in known and not ("=" in key and key.partition("=")[0] in labels):
            there = [*list(known)[:_NAMED], *(["…"] if len(known) > _NAMED else [])]
            raise UsageError(
                f"stage {stage.name!r}: route.{key} is no tag, data set or source of its problems"
                f"{nearest(key, known)}; there are: {', '.join(there)}"
            )


def _known(stage: OpdStage, source: ProblemSource) -> Iterable[Problem]:
    """One problem of every set at least. The stream itself is asked too: specimens of a task are its first."""
    yield from source.train_specimens
    if source.train_size is None:
        yield from source.train(stage.first_problem, SPECIMENS)


def check_start(stage: OpdStage, recipe: Recipe) -> None:
    """Raise UsageError for a teacher that is the very model that the stage begins with, by whatever names."""
    references = References(recipe)
    start = references.model_of(stage)
    begins = _origin(start, references)
    for name in stage.teachers(recipe.teacher):
        table = recipe.teacher[name]
        said = table.model if table.model is not None else table.path
        origin = _of_path(str(table.path)) if table.model is None else _origin(table.model, references)
        if origin == begins:
            same = f"is {start!r}" if said == start else f"({said}) and {start!r} are both {begins}"
            raise UsageError(
                f"stage {stage.name!r}: the teacher {name!r} {same}, which the stage begins with: its gradient is 0, "
                "and Adam would make steps of the rounding noise. Name another model"
            )


def _origin(name: str, references: References) -> str:
    """What tells a model's weights from others: a stage of the run that makes them, or where they are read from."""
    if name not in TABLES:
        return f"stage {name}"
    config: PolicyConfig = references.config(name)
    return f"[{name}]" if config.path is None else _of_path(config.path)


def _of_path(path: str) -> str:
    """A folder or file by its real path, whatever links lead to it; a hub id as it is."""
    place = os.path.expanduser(path)
    return os.path.realpath(place) if os.path.exists(place) else path

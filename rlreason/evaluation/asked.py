"""What an evaluation asks beyond its recipe: solved problems shown before each question, and a window of days."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rlreason.data.places import AnyOf
from rlreason.data.rows import Columns
from rlreason.data.source import SourceSpec, open_source
from rlreason.data.supplies import key_of
from rlreason.errors import UsageError
from rlreason.types import Problem

if TYPE_CHECKING:
    from rlreason.check import CheckedRecipe
    from rlreason.evaluation.request import Measurement


def asked_as(one: Measurement, checked: CheckedRecipe) -> CheckedRecipe:
    """``checked`` with the request's shots, without problems outside of its days. Raises UsageError."""
    if one.request.since or one.request.until:
        checked = _within(one, checked)
    if one.request.shots:
        shots = tuple((problem.prompt, _answered(problem)) for problem in _shown(one))
        checked = replace(checked, prompt_format=replace(checked.prompt_format, shots=shots))
    return checked


def _within(one: Measurement, checked: CheckedRecipe) -> CheckedRecipe:
    since, until = one.request.since or "", one.request.until or "9999-12-31"
    problems = checked.data.of(one.stage.name).heldout_specimens
    outside = {key_of(problem) for problem in problems if not since <= _day(problem, one.suite.date or "") <= until}
    if len(outside) == len(problems):
        days = sorted(_day(problem, one.suite.date or "") for problem in problems)
        window = f"from {since or 'the start'} to {until}"
        raise UsageError(f"suite {one.suite.name}: no problem {window}; its days are {days[0]} to {days[-1]}")
    return replace(checked, data=checked.data.without(outside))


def _day(problem: Problem, column: str) -> str:
    if column not in problem.extra:
        raise UsageError(f"problem {problem.id!r} has no {column!r}, so no window of days can be measured")
    return str(problem.extra[column])[:10]


def _shown(one: Measurement) -> list[Problem]:
    """The first solved problems of the place that has them."""
    where = one.request.shots_from or one.suite.shots
    if where is None:
        raise UsageError(f"suite {one.suite.name!r} names no solved problems: say where they are by --shots-from")
    suite = one.suite
    spec = SourceSpec(
        train=where if isinstance(where, str) else AnyOf(any_of=where),
        columns=Columns(prompt=suite.prompt, answer=suite.answer, solution=("solution", "answer")),
        answer_after=suite.answer_after,
        verifier=suite.verifier,
    )
    found = [problem for problem in open_source(spec).train_specimens if problem.answer is not None]
    if len(found) < one.request.shots:
        raise UsageError(f"--shots {one.request.shots}: {where} has {len(found)} solved problems")
    return list(found[: one.request.shots])


def _answered(problem: Problem) -> str:
    """The turn that shows how it is solved: the reasoning, then the answer in a box."""
    assert problem.answer is not None
    if problem.thought is None:
        return problem.answer
    return f"{problem.thought}\nThe final answer is \\boxed{{{problem.answer}}}."

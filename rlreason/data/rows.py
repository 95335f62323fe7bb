"""Rows of any table as Problems. Every error names the source, the row and the column, and the fix."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlreason.data.cells import Cells, Column, Columns, Row, kind_of, response_in, structure, turns_in
from rlreason.data.choice_sets import CHOICE_SETS, choices_asked
from rlreason.data.code_sets.sets import BadRow, code_set
from rlreason.data.places import PassRate
from rlreason.data.prompts import THINK_CLOSE, thought_in
from rlreason.errors import UsageError
from rlreason.types import Problem, Reference

__all__ = ["Column", "Columns", "ProblemTable", "RowFormat", "problems_from_rows"]

#: Rows with their numbers; a row that can't even be read is the error that says why.
NumberedRows = Iterator[tuple[int, Cells | UsageError]]

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_FINAL_LINE = re.compile(r"(?:\A|\n)####[^\n]*\s*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """How rows are read: their columns, the marker before the gold answer (gsm8k: ``####``), and their verifier."""

    columns: Columns = field(default_factory=Columns)
    answer_after: str | None = None
    verifier: str = "math"
    #: Leave rows out that can't be read, instead of raising at the first.
    skip_bad_rows: bool = False
    #: The code or multiple-choice data set whose rows they are: see ``code_sets`` and ``choice_sets``.
    convert: str | None = None
    #: Leave rows out whose pass rate lies elsewhere.
    pass_rate: PassRate | None = None
    #: Name of the recipe's set.
    data_set: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemTable:
    """Problems of one file or hub data set, in order, and what was left out."""

    problems: tuple[Problem, ...]
    #: Rows that can't be read, and what is wrong with the first of them.
    bad_rows: int = 0
    first_bad: str | None = None
    #: Rows whose pass rate lies outside of the range.
    outside: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a row stands, for messages: ``at(17) == "sums.jsonl, line 17"``."""

    source: str
    unit: str

    def at(self, number: int) -> str:
        return f"{self.source}, {self.unit} {number}"


def problems_from_rows(rows: NumberedRows, form: RowFormat, *, source: str, unit: str = "row") -> ProblemTable:
    """Problems of numbered rows. ``source`` and ``unit`` ("line" or "row", from 1) name a row in errors.

    A row without an id gets ``<source's stem>-<number>``. Raises UsageError.
    """
    place = _Place(source=source, unit=unit)
    problems: list[Problem] = []
    numbers: dict[str, int] = {}
    bad: list[UsageError] = []
    outside = 0
    for number, cells in rows:
        try:
            if isinstance(cells, UsageError):
                raise cells
            row = Row(_converted(cells, form, place.at(number)), form.columns, place.at(number))
            problem = _problem(row, form, place, number)
            if problem.id in numbers:
                raise UsageError(
                    f"{place.at(number)}, column {row.names('id')}: id {problem.id!r} is that of {unit} "
                    f"{numbers[problem.id]} already; each problem needs its own"
                )
            rate = form.pass_rate
            inside = rate is None or rate.min <= row.number(rate.column) <= rate.max
        except UsageError as error:
            if not form.skip_bad_rows:
                raise
            bad.append(error)
            continue
        numbers[problem.id] = number
        outside += not inside
        if inside:
            problems.append(problem)
    if not problems:
        raise UsageError(_nothing(source, len(bad), bad[0] if bad else None, outside))
    return ProblemTable(
        problems=tuple(problems), bad_rows=len(bad), first_bad=str(bad[0]) if bad else None, outside=outside
    )


def _converted(cells: Cells, form: RowFormat, where: str) -> Cells:
    if form.convert is None:
        return cells
    try:
        if form.convert in CHOICE_SETS:
            return choices_asked(CHOICE_SETS[form.convert], cells)
        return code_set(form.convert).problem(cells)
    except BadRow as error:
        raise UsageError(f"{where}: {error}, as a row of {form.convert}") from None


def _nothing(source: str, bad: int, first: UsageError | None, outside: int) -> str:
    if outside:
        return f"{source}: no row's pass rate lies in the range of data.pass_rate ({outside} lie outside); widen it"
    if bad:
        return f"{source}: none of its {bad} rows can be read; the first: {first}"
    return f"{source}: no rows in it; give a file with at least one problem"


def _problem(row: Row, form: RowFormat, place: _Place, number: int) -> Problem:
    turns = turns_in(row)
    prompt = row.text("prompt", required=True) if not turns.asked else turns.asked[-1].content
    assert prompt is not None
    solution = _solution(row)
    response = turns.response or response_in(row)
    if response is None and solution and THINK_CLOSE in solution:
        response = solution  # a reasoning model's whole turn, with what it wrote after its thought
    reference = _reference(row, form.answer_after, required=response is None)
    gold = reference if isinstance(reference, str) else reference[0] if isinstance(reference, tuple) else None
    thought = _thought(solution, form.answer_after) if solution and gold and response is None else None
    return Problem(
        id=row.text("id") or f"{_stem(place.source)}-{number}",
        prompt=prompt,
        verifier=form.verifier,
        reference=reference,
        source=row.source or _stem(place.source),
        messages=turns.asked,
        thought=thought or None,
        answer=response if response is not None else gold if thought else None,
        data_set=form.data_set,
        extra=row.rest(),
    )


def _solution(row: Row) -> str | None:
    """The solution; of a list of them, as OlympiadBench has, the first."""
    value = row.value("solution")
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return str(value[0])
    return row.text("solution")


def _stem(source: str) -> str:
    path = Path(source)
    return path.stem.rpartition(".")[0] or path.stem if path.suffix == ".gz" else path.stem


def _reference(row: Row, answer_after: str | None, *, required: bool) -> Reference:
    """What answers are checked against; "" where there is nothing and a demonstration makes up for it."""
    tests = structure(row.value("tests"))
    if tests is not None:
        if not isinstance(tests, Mapping) or not tests:
            raise row.fail(
                "tests", f"holds {kind_of(tests)}; it must be an object such as {{'type': 'stdin', 'cases': […]}}"
            )
        return tests
    value = row.value("answer", required=required)
    if value is None and not required:
        return ""
    if isinstance(value, Mapping) and value:
        return value
    if isinstance(value, list | tuple):
        golds = tuple(_gold(item, row, answer_after) for item in value)
        if not golds:
            raise row.fail("answer", "is an empty list; remove the row or give the gold answer")
        return golds
    return _gold(value, row, answer_after)


def _gold(value: object, row: Row, answer_after: str | None) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = json.dumps(value)
    if value is not None and not isinstance(value, str):
        raise row.fail("answer", f"holds {kind_of(value)}; it must be text, a number, a list of these, or an object")
    text = value or ""
    if answer_after and text.strip():
        _, marker, text = text.rpartition(answer_after)
        if not marker:
            raise row.fail("answer", f"has no {answer_after!r} to take the answer after; correct data.answer_after")
    gold = text.strip()
    if not gold:
        after = f" after {answer_after!r}" if answer_after and value else ""
        raise row.fail("answer", f"the gold answer{after} is empty; remove the row or fill it in")
    return gold


def _thought(solution: str, answer_after: str | None) -> str:
    """A solution without its final answer and without gsm8k's ``<<48/2=24>>``."""
    text = thought_in(solution)
    if answer_after and answer_after in text:
        text = text.rpartition(answer_after)[0]
    return _CALCULATOR.sub("", _FINAL_LINE.sub("", text)).strip()

"""Rows of any table as Problems. Every error names the source, the row and the column, and the fix."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from rlreason.data.prompts import thought_in
from rlreason.errors import UsageError, nearest
from rlreason.types import Message, Problem, Reference

__all__ = ["Column", "Columns", "RowFormat", "problems_from_rows"]

Cells = Mapping[str, object]
#: A column's name, or several of which the first that the data has is taken.
Column = str | tuple[str, ...]
Meaning = Literal["id", "prompt", "answer", "solution", "tests", "messages"]

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_FINAL_LINE = re.compile(r"(?:\A|\n)####[^\n]*\s*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column holds what. Several names for one thing: the first that the data has is taken.

    Example: ``Columns(prompt=("prompt", "question"), answer=("solution", "answer"))``. A prompt or messages, and an
    answer or tests, are needed; a column that is named differently from its default is needed too.
    """

    #: A recipe's table is this class: pydantic refuses unknown columns.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    id: Column = "id"
    prompt: Column = "prompt"
    answer: Column = "answer"
    solution: Column = "solution"
    tests: Column = "tests"
    messages: Column = "messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """How rows are read: their columns, the marker before the gold answer (gsm8k: ``####``), and their verifier."""

    columns: Columns = field(default_factory=Columns)
    answer_after: str | None = None
    verifier: str = "math"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a row stands, for messages: ``at(17) == "sums.jsonl, line 17"``."""

    source: str
    unit: str

    def at(self, number: int) -> str:
        return f"{self.source}, {self.unit} {number}"


def problems_from_rows(
    rows: Iterator[tuple[int, Cells]], form: RowFormat, *, source: str, unit: str = "row"
) -> list[Problem]:
    """Problems of numbered rows. ``source`` and ``unit`` ("line" or "row", from 1) name a row in errors.

    A row without an id gets ``<source's stem>-<number>``. Raises UsageError.
    """
    place = _Place(source=source, unit=unit)
    column = " or ".join(map(repr, _names(form.columns, "id")))
    problems: list[Problem] = []
    numbers: dict[str, int] = {}
    for number, cells in rows:
        problem = _problem(cells, form, place, number)
        if problem.id in numbers:
            raise UsageError(
                f"{place.at(number)}, column {column}: id {problem.id!r} is that of {unit} {numbers[problem.id]} "
                "already; each problem needs its own"
            )
        numbers[problem.id] = number
        problems.append(problem)
    if not problems:
        raise UsageError(f"{source}: no rows in it; give a file with at least one problem")
    return problems


def _problem(cells: Cells, form: RowFormat, place: _Place, number: int) -> Problem:
    cell = _Cells(cells, form.columns, place.at(number))
    messages = _messages(cell)
    prompt = cell.text("prompt", required=not messages)
    if prompt is None:
        prompt = next(message.content for message in reversed(messages) if message.role == "user")
    reference = _reference(cell, form.answer_after)
    gold = reference if isinstance(reference, str) else reference[0] if isinstance(reference, tuple) else None
    solution = cell.text("solution")
    thought = _thought(solution, form.answer_after) if solution and gold else None
    return Problem(
        id=cell.text("id") or f"{Path(place.source).stem}-{number}",
        prompt=prompt,
        verifier=form.verifier,
        reference=reference,
        source=str(cells["source"]) if isinstance(cells.get("source"), str) else Path(place.source).stem,
        messages=messages,
        thought=thought or None,
        answer=gold if thought else None,
    )


class _Cells:
    """One row, read by what its columns mean. Errors name the row and the column."""

    def __init__(self, cells: Cells, columns: Columns, where: str) -> None:
        self._cells = cells
        self._columns = columns
        self._where = where

    def fail(self, meaning: Meaning, problem: str) -> UsageError:
        """The error about a cell that is there but wrong."""
        name = next((name for name in self._names(meaning) if name in self._cells), None)
        return UsageError(f"{self._where}, column {name!r}: {problem}")

    def value(self, meaning: Meaning, *, required: bool = False) -> object:
        """The cell; None where it is null, or the row has no such column and needs none."""
        names = self._names(meaning)
        for name in names:
            if name in self._cells:
                return self._cells[name]
        if required or names != _names(Columns(), meaning):
            raise UsageError(
                f"{self._where}: no column {' or '.join(map(repr, names))} for the {meaning}"
                f"{nearest(names[0], self._cells)} (there are: {', '.join(self._cells) or 'none'}); "
                f"set data.columns.{meaning}"
            )
        return None

    def _names(self, meaning: Meaning) -> tuple[str, ...]:
        return _names(self._columns, meaning)

    def text(self, meaning: Meaning, *, required: bool = False) -> str | None:
        value = self.value(meaning, required=required)
        if value is None and not required:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return json.dumps(value)
        if not isinstance(value, str):
            raise self.fail(meaning, f"holds {_kind(value)}; it must be text")
        if required and not value.strip():
            raise self.fail(meaning, "is empty; remove the row or fill it in")
        return value


def _names(columns: Columns, meaning: Meaning) -> tuple[str, ...]:
    column: Column = getattr(columns, meaning)
    return (column,) if isinstance(column, str) else column


def _messages(cell: _Cells) -> tuple[Message, ...]:
    value = cell.value("messages")
    if value is None:
        return ()
    turns: list[Message] = []
    for turn in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
        match turn:
            case {"role": "system" | "user" | "assistant" as role, "content": str() as content}:
                turns.append(Message(role=role, content=content))
            case _:
                raise cell.fail(
                    "messages",
                    "must be a list of {role, content}, the role system, user or assistant, the content text",
                )
    if not turns or turns[-1].role != "user":
        raise cell.fail("messages", "must end with a turn of the user, which the model is to answer")
    return tuple(turns)


def _reference(cell: _Cells, answer_after: str | None) -> Reference:
    tests = _structure(cell.value("tests"))
    if tests is not None:
        if not isinstance(tests, Mapping) or not tests:
            raise cell.fail(
                "tests", f"holds {_kind(tests)}; it must be an object such as {{'type': 'stdin', 'cases': […]}}"
            )
        return tests
    value = cell.value("answer", required=True)
    if isinstance(value, Mapping) and value:
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        golds = tuple(_gold(item, cell, answer_after) for item in value)
        if not golds:
            raise cell.fail("answer", "is an empty list; remove the row or give the gold answer")
        return golds
    return _gold(value, cell, answer_after)


def _gold(value: object, cell: _Cells, answer_after: str | None) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = json.dumps(value)
    if value is not None and not isinstance(value, str):
        raise cell.fail("answer", f"holds {_kind(value)}; it must be text, a number, a list of these, or an object")
    text = value or ""
    if answer_after and text.strip():
        _, marker, text = text.rpartition(answer_after)
        if not marker:
            raise cell.fail("answer", f"has no {answer_after!r} to take the answer after; correct data.answer_after")
    gold = text.strip()
    if not gold:
        after = f" after {answer_after!r}" if answer_after and value else ""
        raise cell.fail("answer", f"the gold answer{after} is empty; remove the row or fill it in")
    return gold


def _structure(value: object) -> object:
    """Parquet files often hold nested data as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _thought(solution: str, answer_after: str | None) -> str:
    """A solution without its final answer and without gsm8k's ``<<48/2=24>>``."""
    text = thought_in(solution)
    if answer_after and answer_after in text:
        text = text.rpartition(answer_after)[0]
    return _CALCULATOR.sub("", _FINAL_LINE.sub("", text)).strip()


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"

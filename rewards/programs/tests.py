"""The tests of a code problem, read from their mapping. ``BadTests`` says what is wrong with it."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rlreason.rewards.jail.jail import Limits


class BadTests(ValueError):
    """The tests are malformed: the problem's fault, not the program's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinCase:
    """Example: ``StdinCase(input="2 3\\n", output="5\\n")``."""

    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinTests:
    """Whole programs.

    ``checker``: source of ``check(input, output, expected)``, or of a whole program, where several outputs are right.
    ``lines``: whether lines have to be the same, else words only.
    """

    cases: tuple[StdinCase, ...]
    checker: str | None = None
    lines: bool = True
    prelude: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Code in the tests."""
        return (self.checker or "", self.prelude or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCase:
    """Example: ``CallCase(args=[2, 3], expected=5)``: plain data.

    ``argument``: the positional argument that holds the answer after the call; None where the result is the answer.
    """

    args: list[object]
    expected: object
    kwargs: dict[str, object] = field(default_factory=dict)
    argument: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTests:
    """Calls of one function. ``tolerance`` for floats, 0 for exact."""

    entry_point: str
    cases: tuple[CallCase, ...]
    tolerance: float = 0.0
    prelude: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Code in the tests."""
        return (self.prelude or "",)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    """Test code for a judge. ``pieces``: the set-up, then the asserts.

    Example: ``CodeTests(kind="check", pieces=("def check(candidate): ...",), entry_point="add")``.
    """

    kind: str
    pieces: tuple[str, ...]
    entry_point: str | None = None
    prelude: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Code in the tests."""
        return (*self.pieces, self.prelude or "")

    @property
    def steps(self) -> int:
        """Steps after the set-up."""
        return len(self.pieces) - 1 if self.kind == "asserts" else 1


def draws_of(source: str) -> random.Random:
    """Draws that a program can't foresee from the tests, and that stay the same for its text: so does its verdict."""
    return random.Random(hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest())


Tests = StdinTests | CallTests | CodeTests
_TYPES = "stdin, function, asserts, unittest, pytest"
#: Keys of ``limits`` in tests: the field of ``Limits`` and what its numbers count.
_LIMITS = {
    "seconds": ("wall_seconds", 1.0),
    "total_seconds": ("total_seconds", 1.0),
    "memory_mb": ("memory_mb", 1),
    "output_kb": ("output_bytes", 1024),
}


def read_tests(tests: Mapping[str, object]) -> Tests:
    """The tests of a mapping, in any of the forms that ``check_program`` names. Raises BadTests."""
    kind = tests.get("type")
    prelude = None if tests.get("prelude") is None else _text(tests, "prelude")
    if kind == "stdin":
        return _stdin(tests, prelude)
    if kind == "function":
        entry_point = _text(tests, "entry_point")
        for key in ("code", "check"):
            if key in tests:
                code = (_text(tests, key),)
                return CodeTests(kind="check", pieces=code, entry_point=entry_point, prelude=prelude)
        return _calls(tests, entry_point, prelude)
    if kind == "asserts":
        asserts = tests.get("asserts")
        if not isinstance(asserts, (list, tuple)) or not asserts or not all(isinstance(one, str) for one in asserts):
            raise BadTests("tests: 'asserts' must be a list of at least one statement")
        setup = _text(tests, "setup") if "setup" in tests else ""
        return CodeTests(kind="asserts", pieces=(setup, *asserts), prelude=prelude)
    if kind in ("unittest", "pytest"):
        return CodeTests(kind="unittest", pieces=(_text(tests, "code"),), prelude=prelude)
    raise BadTests(f"tests: unknown type {kind!r}; known: {_TYPES}")


def read_limits(tests: Mapping[str, object], limits: Limits) -> Limits:
    """``limits`` with those that the tests set themselves. Raises BadTests."""
    wanted = tests.get("limits")
    if wanted is None:
        return limits
    if not isinstance(wanted, Mapping):
        raise BadTests(f"tests: 'limits' must be an object of {', '.join(_LIMITS)}")
    changes: dict[str, float] = {}
    for key, value in wanted.items():
        if key not in _LIMITS:
            raise BadTests(f"tests: unknown limit {key!r}; known: {', '.join(_LIMITS)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
            raise BadTests(f"tests: limit {key!r} must be a positive number, not {value!r}")
        field_name, factor = _LIMITS[key]
        changes[field_name] = value * factor if isinstance(factor, float) else math.ceil(value * factor)
    if "wall_seconds" in changes:
        changes["cpu_seconds"] = changes["wall_seconds"]
        if "total_seconds" not in changes:
            changes["total_seconds"] = max(limits.total_seconds, 6 * changes["wall_seconds"])
    return replace(limits, **changes)  # type: ignore[arg-type]


def _text(tests: Mapping[str, object], key: str) -> str:
    value = tests.get(key)
    if not isinstance(value, str):
        raise BadTests(f"tests: {key!r} must be text, not {type(value).__name__}")
    return value


def _case_list(tests: Mapping[str, object]) -> list[Mapping[str, object]]:
    cases = tests.get("cases")
    if not isinstance(cases, (list, tuple)) or not cases or not all(isinstance(case, Mapping) for case in cases):
        raise BadTests("tests: 'cases' must be a list of at least one object")
    return list(cases)


def _stdin(tests: Mapping[str, object], prelude: str | None) -> StdinTests:
    cases = tuple(StdinCase(input=_text(case, "input"), output=_text(case, "output")) for case in _case_list(tests))
    lines = tests.get("lines", True)
    if not isinstance(lines, bool):
        raise BadTests("tests: 'lines' must be true or false")
    checker = None if tests.get("checker") is None else _text(tests, "checker")
    if checker is not None and "testlib.h" in checker:
        raise BadTests("tests: the checker is written in C++ (testlib), which nothing here compiles")
    return StdinTests(cases=cases, checker=checker, lines=lines, prelude=prelude)


def _calls(tests: Mapping[str, object], entry_point: str, prelude: str | None) -> CallTests:
    cases = []
    for number, case in enumerate(_case_list(tests), start=1):
        arguments, named = case.get("args", []), case.get("kwargs") or {}
        if not isinstance(arguments, (list, tuple)) or not isinstance(named, Mapping) or "expected" not in case:
            raise BadTests(f"tests: case {number} needs a list 'args' and 'expected'")
        at = case.get("argument")
        if at is not None and (type(at) is not int or not 0 <= at < len(arguments)):
            raise BadTests(f"tests: case {number}: 'argument' must be the number of a positional argument, from 0")
        cases.append(CallCase(args=list(arguments), kwargs=dict(named), expected=case["expected"], argument=at))
    tolerance = tests.get("tolerance", 0.0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise BadTests("tests: 'tolerance' must be a number from 0 to below 1")
    return CallTests(entry_point=entry_point, cases=tuple(cases), tolerance=float(tolerance), prelude=prelude)

"""The tests of a code problem, read from their mapping. ``BadTests`` says what is wrong with it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field


class BadTests(ValueError):
    """The tests are malformed: the problem's fault, not the program's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinCase:
    """Example: ``StdinCase(input="2 3\\n", output="5\\n")``."""

    input: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StdinTests:
    """Whole programs. ``checker``: source of ``check(input, output, expected) -> bool``, where outputs may differ."""

    cases: tuple[StdinCase, ...]
    checker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCase:
    """Example: ``CallCase(args=[2, 3], expected=5)``: plain data."""

    args: list[object]
    expected: object
    kwargs: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTests:
    """Calls of one function. ``tolerance`` for floats, 0 for exact."""

    entry_point: str
    cases: tuple[CallCase, ...]
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTests:
    """Test code for a judge. ``pieces``: the set-up, then the asserts.

    Example: ``CodeTests(kind="check", pieces=("def check(candidate): ...",), entry_point="add")``.
    """

    kind: str
    pieces: tuple[str, ...]
    entry_point: str | None = None

    @property
    def steps(self) -> int:
        """Steps after the set-up."""
        return len(self.pieces) - 1 if self.kind == "asserts" else 1


def draws_of(source: str) -> random.Random:
    """Draws that a program can't foresee from the tests, and that stay the same for its text: so does its verdict."""
    return random.Random(hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest())


Tests = StdinTests | CallTests | CodeTests
_TYPES = "stdin, function, asserts, unittest"


def read_tests(tests: Mapping[str, object]) -> Tests:
    """The tests of a mapping, in any of the forms that ``check_program`` names. Raises BadTests."""
    kind = tests.get("type")
    if kind == "stdin":
        return _stdin(tests)
    if kind == "function":
        entry_point = _text(tests, "entry_point")
        for key in ("code", "check"):
            if key in tests:
                return CodeTests(kind="check", pieces=(_text(tests, key),), entry_point=entry_point)
        return _calls(tests, entry_point)
    if kind == "asserts":
        asserts = tests.get("asserts")
        if not isinstance(asserts, (list, tuple)) or not asserts or not all(isinstance(one, str) for one in asserts):
            raise BadTests("tests: 'asserts' must be a list of at least one statement")
        setup = _text(tests, "setup") if "setup" in tests else ""
        return CodeTests(kind="asserts", pieces=(setup, *asserts))
    if kind == "unittest":
        return CodeTests(kind="unittest", pieces=(_text(tests, "code"),))
    raise BadTests(f"tests: unknown type {kind!r}; known: {_TYPES}")


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


def _stdin(tests: Mapping[str, object]) -> StdinTests:
    cases = tuple(StdinCase(input=_text(case, "input"), output=_text(case, "output")) for case in _case_list(tests))
    return StdinTests(cases=cases, checker=None if tests.get("checker") is None else _text(tests, "checker"))


def _calls(tests: Mapping[str, object], entry_point: str) -> CallTests:
    cases = []
    for number, case in enumerate(_case_list(tests), start=1):
        arguments, named = case.get("args", []), case.get("kwargs") or {}
        if not isinstance(arguments, (list, tuple)) or not isinstance(named, Mapping) or "expected" not in case:
            raise BadTests(f"tests: case {number} needs a list 'args' and 'expected'")
        cases.append(CallCase(args=list(arguments), kwargs=dict(named), expected=case["expected"]))
    tolerance = tests.get("tolerance", 0.0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise BadTests("tests: 'tolerance' must be a number from 0 to below 1")
    return CallTests(entry_point=entry_point, cases=tuple(cases), tolerance=float(tolerance))

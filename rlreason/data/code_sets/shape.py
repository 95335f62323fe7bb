"""What every code data set becomes: a question, the tests of the verifier ``code``, and a reference solution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from rlreason.data.code_sets.cells import BadRow

#: A limit below these is raised to it: the interpreter itself needs some of both.
LEAST_SECONDS: Final = 1.0
LEAST_MEGABYTES: Final = 128.0
#: Seconds of one ``check(candidate)`` that holds all cases of a problem, at most.
_CHECK_SECONDS: Final = 60.0
_LONG: Final = 10**4000


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeProblem:
    """One problem. ``tests`` is what ``rlreason.rewards.programs`` reads; docs/sandbox.md has its forms.

    Example: ``CodeProblem(key="HumanEval/0", prompt="Complete …", tests={"type": "function", …}, solution="def …")``.
    """

    #: The data set's name of it; "" where it has none.
    key: str
    prompt: str
    tests: Mapping[str, object]
    #: A program that passes the tests; "" where the set has none.
    solution: str = ""
    #: Short columns that nothing was made of.
    rest: Mapping[str, object] = field(default_factory=dict)

    def row(self) -> dict[str, object]:
        """The row of a problem file: ``id``, ``prompt``, ``tests``, ``solution`` and the other columns."""
        row: dict[str, object] = {"id": self.key} if self.key else {}
        row |= {"prompt": self.prompt, "tests": self.tests}
        if self.solution:
            row["solution"] = self.solution
        return row | {name: value for name, value in self.rest.items() if name not in row}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What goes with the cases. None: the verifier's own header (``prelude``) and limits."""

    prelude: str | None = None
    #: Of one case.
    seconds: float | None = None
    megabytes: float | None = None


def stdin_tests(
    cases: Sequence[tuple[str, str]], setting: Setting, *, lines: bool = True, checker: str | None = None
) -> dict[str, object]:
    """Tests of a whole program: inputs and expected outputs.

    ``lines``: the output's lines must be those that are expected; else only its words. ``checker``: docs/sandbox.md.
    """
    if not cases:
        raise BadRow("it has no test cases")
    tests: dict[str, object] = {"type": "stdin", "cases": [{"input": one, "output": other} for one, other in cases]}
    if not lines:
        tests["lines"] = False
    if checker is not None:
        tests["checker"] = checker
    return tests | _common(setting)


def call_tests(
    entry_point: str, cases: Sequence[tuple[Sequence[object], object]], setting: Setting
) -> dict[str, object]:
    """Tests of one function: positional arguments and the expected result, which JSON can write."""
    if not cases:
        raise BadRow("it has no test cases")
    if any(_is_long(value) for case in cases for value in case):
        return either_tests(entry_point, [(arguments, [expected]) for arguments, expected in cases], setting)
    calls = [{"args": list(arguments), "expected": expected} for arguments, expected in cases]
    return {"type": "function", "entry_point": entry_point, "cases": calls} | _common(setting)


def check_tests(entry_point: str, code: str, setting: Setting) -> dict[str, object]:
    """Tests that are code: ``check(candidate)``."""
    return {"type": "function", "entry_point": entry_point, "code": code} | _common(setting)


def either_tests(
    entry_point: str, cases: Sequence[tuple[Sequence[object], Sequence[object]]], setting: Setting
) -> dict[str, object]:
    """Tests of one function, each with several accepted results, or with arguments that JSON can't write.

    A tuple is a list there, as in ``call_tests``. All cases run in one ``check(candidate)``, which has their seconds
    together, up to a minute.
    """
    if not cases:
        raise BadRow("it has no test cases")
    written = (f"    ({_literal(list(arguments))}, {_literal(list(accepted))}),\n" for arguments, accepted in cases)
    code = _EITHER.format(cases="".join(written))
    if setting.seconds is not None:
        setting = Setting(
            prelude=setting.prelude,
            seconds=max(setting.seconds, min(setting.seconds * len(cases), _CHECK_SECONDS)),
            megabytes=setting.megabytes,
        )
    return check_tests(entry_point, code, setting)


_EITHER: Final = """\
_CASES = [
{cases}]


def _plain(value):
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {{key: _plain(item) for key, item in value.items()}}
    return value


def check(candidate):
    for arguments, accepted in _CASES:
        assert _plain(candidate(*arguments)) in accepted
"""


def _is_long(value: object) -> bool:
    """Whether an integer in ``value`` has more digits than Python writes, or JSON reads, by default."""
    if isinstance(value, list | tuple):
        return any(map(_is_long, value))
    if isinstance(value, dict):
        return any(_is_long(item) for pair in value.items() for item in pair)
    return isinstance(value, int) and abs(value) >= _LONG


def _literal(value: object) -> str:
    """Python for ``value``, plain data. Long integers are in hex, which has no limit."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return hex(value) if _is_long(value) and isinstance(value, int) else repr(value)


def _common(setting: Setting) -> dict[str, object]:
    common: dict[str, object] = {} if setting.prelude is None else {"prelude": setting.prelude}
    limits: dict[str, float] = {}
    if setting.seconds is not None:
        limits["seconds"] = max(setting.seconds, LEAST_SECONDS)
    if setting.megabytes is not None:
        limits["memory_mb"] = max(setting.megabytes, LEAST_MEGABYTES)
    return common | {"limits": limits} if limits else common


def asked_for_program(question: str) -> str:
    """The question, with how the program is to read and answer."""
    return (
        f"{question.strip()}\n\n"
        "Write a Python program that reads the input from standard input and prints the answer to standard output."
    )


def asked_for_function(question: str, starter: str, name: str = "") -> str:
    """The question, with the code that is to be completed, or else the function's name."""
    if starter.strip():
        return f"{question.strip()}\n\nComplete this Python code:\n\n```python\n{starter.rstrip()}\n```"
    owner, _, method = name.rpartition("().")
    wanted = f"a method `{method}` of a class `{owner}`" if owner else f"a function named `{name}`"
    return f"{question.strip()}\n\nWrite it in Python as {wanted}."

"""A problem's header (``prelude``) that fails by itself is the problem's fault, and no program can say that it did."""

from __future__ import annotations

from typing import Any

import pytest

from rlreason.rewards.jail.jail import Limits, capabilities
from rlreason.rewards.programs.packages import NONE, Packages
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import Verdict

pytestmark = pytest.mark.skipif(capabilities().level == "none", reason=f"needs a jail: {capabilities()}")
LIMITS = Limits(wall_seconds=20.0, cpu_seconds=20.0, total_seconds=60.0)
CALLED: dict[str, dict[str, Any]] = {
    "stdin": {"type": "stdin", "cases": [{"input": "", "output": "1"}]},
    "function": {"type": "function", "entry_point": "f", "cases": [{"args": [1], "expected": 1}]},
    "check": {"type": "function", "entry_point": "f", "code": "def check(f):\n    assert f(1) == 1\n"},
    "asserts": {"type": "asserts", "asserts": ["assert f(1) == 1"]},
}
RIGHT = "print(1)\ndef f(x):\n    return x\n"
#: Says the header's words on every descriptor there is.
FORGER = """
import json, os, struct
data = json.dumps(["header", "it was not me"]).encode()
for descriptor in range(3, 20):
    try:
        os.write(descriptor, struct.pack(">I", len(data)) + data)
    except OSError:
        pass
print(2)
def f(x):
    return 2
"""
#: How the program is at fault.
PROGRAMS = {"right": RIGHT, "wrong": RIGHT.replace("1", "2").replace("return x", "return 2"), "broken": "def f(:\n"}


@pytest.mark.parametrize("kind", CALLED)
@pytest.mark.parametrize(
    ("prelude", "reason"),
    [
        ("from no_such_package.deep import name\n", "header needs no_such_package: name it in [reward.code] packages"),
        ("LIMIT = 1 // 0\n", "header fails by itself: ZeroDivisionError"),
        ("import sys\nsys.exit(0)\n", "header fails by itself: SystemExit"),
    ],
)
def test_a_header_that_fails_is_broken_whatever_the_program(kind: str, prelude: str, reason: str) -> None:
    for program in (*PROGRAMS.values(), FORGER):
        result = check_program(program, {**CALLED[kind], "prelude": prelude}, limits=LIMITS)
        assert (result.verdict, result.score) == (Verdict.BROKEN, None), result
        assert reason in result.detail


@pytest.mark.parametrize("kind", CALLED)
@pytest.mark.parametrize("prelude", [None, "", "import math\n"])
def test_a_program_has_no_say_in_it(kind: str, prelude: str | None) -> None:
    tests = {**CALLED[kind], "prelude": prelude}
    assert check_program(RIGHT, tests, limits=LIMITS).verdict is Verdict.CORRECT
    # The same words and exceptions from the program itself.
    for program in (FORGER, "import no_such_package\n", "LIMIT = 1 // 0\n", "import sys\nsys.exit(0)\n"):
        result = check_program(program, tests, limits=LIMITS)
        assert (result.verdict, result.score) == (Verdict.WRONG, 0.0), result


def test_packages_are_in_view_where_a_text_names_one() -> None:
    here = Packages(program={"numpy": "/p/numpy"}, tests={"pytest": "/p/pytest"}, paths=("/p/numpy", "/p/pytest"))
    for text in ("import numpy as np", "from numpy.linalg import norm", "__import__('numpy')", "@pytest.mark.skip"):
        assert here.if_named(["", text]) is here
    for text in ("", "import numpyro", "my_pytest = 1", "import collections"):
        assert here.if_named([text]) is NONE
    assert NONE.if_named(["import numpy"]) is NONE


@pytest.mark.parametrize("where", ["program", "prelude", "tests"])
def test_a_package_works_wherever_it_is_named(where: str) -> None:
    pytest.importorskip("numpy")
    texts = {"program": "", "prelude": "", "tests": "", where: "import numpy\nONE = int(numpy.ones(1).sum())\n"}
    program = f"{texts['program']}\ndef f(x):\n    return {'x' if where == 'tests' else 'ONE'}\n"
    tests = {"type": "asserts", "setup": texts["tests"], "asserts": ["assert f(1) == 1"], "prelude": texts["prelude"]}
    assert check_program(program, tests, limits=LIMITS).verdict is Verdict.CORRECT
    without = check_program(program, tests, limits=LIMITS, packages=())
    assert without.verdict is {"program": Verdict.WRONG, "prelude": Verdict.BROKEN, "tests": Verdict.CORRECT}[where]

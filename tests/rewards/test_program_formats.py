"""Ways in which programs and tests are written, right and wrong: our own cases, one a line of program_formats.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlreason.rewards.jail.jail import Limits, capabilities
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import Verdict

pytestmark = pytest.mark.skipif(capabilities().level == "none", reason=f"needs a jail: {capabilities()}")
CASES = Path(__file__).with_name("program_formats.jsonl").read_text(encoding="utf-8").splitlines()
WANTED = {"pass": {Verdict.CORRECT}, "fail": {Verdict.WRONG, Verdict.TIMED_OUT}, "broken": {Verdict.BROKEN}}
LIMITS = Limits(wall_seconds=20.0, cpu_seconds=20.0, total_seconds=60.0)


@pytest.mark.parametrize("case", map(json.loads, CASES), ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    for package in ("numpy", "pytest", "hypothesis", "sortedcontainers"):
        if package in json.dumps(case):
            pytest.importorskip(package)
    result = check_program(case["program"], case["tests"], limits=LIMITS)
    assert result.verdict in WANTED[case["want"]], result
    assert (result.score is None) == (case["want"] == "broken")
    #: The tests of these run in the program's process, and say so.
    assert ("weaker" in result.detail) == (case["id"] in WEAKER)


WEAKER = {
    "patch random", "decorator", "subclass program class", "weak prelude", "memo decorator on test func",
    "str method arg", "operator arg", "test class instance arg", "mbpp setup code",
}  # fmt: skip

"""Public formats of code problems, right and wrong answers: labelled cases of the shared data, judged by ``code``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlreason.rewards.jail.jail import capabilities
from rlreason.rewards.programs.verifier import code
from rlreason.types import Completion, Problem, Verdict

DATA = Path(__file__).parents[3] / "shared" / "data" / "program_cases_2026_11.jsonl"
pytestmark = [
    pytest.mark.skipif(not DATA.exists(), reason=f"needs {DATA}"),
    pytest.mark.skipif(capabilities().level == "none", reason=f"needs a jail: {capabilities()}"),
]
#: Cases that are not as wanted, with the reason.
EXCEPTIONS: dict[str, str] = {}
#: Seconds of CPU by themselves.
LONG = ("time_many_cases", "time_case_15")
NEEDS = {"numpy": "numpy", "test_needs_numpy": "numpy", "pytest_raises": "pytest"}


def rows() -> list[Any]:
    if not DATA.exists():
        return []
    sys.set_int_max_str_digits(0)  # one expected value has 6,000 digits
    try:
        read = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    finally:
        sys.set_int_max_str_digits(4300)
    return [pytest.param(row, id=row["id"], marks=[pytest.mark.slow] if row["kind"] in LONG else []) for row in read]


@pytest.mark.parametrize("row", rows())
def test_labelled_case(row: dict[str, Any]) -> None:
    if row["kind"] in NEEDS:
        pytest.importorskip(NEEDS[row["kind"]])
    timeout = 2.0 if row["kind"] == "hang_default_limits" else 30.0
    problem = Problem(id=row["id"], prompt="", verifier="code", reference=row["tests"])
    result = code(problem, Completion.from_text(row["response"]), timeout=timeout)
    as_wanted = (result.verdict is Verdict.CORRECT) == (row["want"] == "pass")
    assert as_wanted == (row["id"] not in EXCEPTIONS), result
    if row["want"] == "fail":  # a program must not choose to be left without a score
        assert result.score == 0.0

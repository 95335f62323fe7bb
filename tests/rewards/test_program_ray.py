"""Programs checked in the processes of a local Ray cluster."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from rlreason.rewards.programs.on_ray import RayProgramPool
from rlreason.types import Verdict

RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a\n"
TESTS: dict[str, object] = {"type": "function", "entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]}


def test_results_in_order_and_no_job_taken_early() -> None:
    ray = pytest.importorskip("ray", reason="needs Ray (pip install ray)")
    taken = 0

    def jobs() -> Iterator[tuple[str, dict[str, object]]]:
        nonlocal taken
        for at in range(30):
            taken += 1
            yield (RIGHT if at % 3 else WRONG), TESTS

    with RayProgramPool(in_flight=4) as pool:
        verdicts = []
        for result in pool.imap(jobs()):
            verdicts.append(result.verdict)
            assert taken - len(verdicts) <= 4
        assert verdicts == [Verdict.CORRECT if at % 3 else Verdict.WRONG for at in range(30)]
        assert [result.verdict for result in pool.map([(RIGHT, {"type": "riddle"})])] == [Verdict.BROKEN]
    assert not ray.is_initialized()


def test_without_ray_the_error_names_the_fix() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from rlreason.rewards.programs.on_ray import RayProgramPool\n"
        "try: RayProgramPool()\n"
        "except RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install" in done.stdout, done.stderr

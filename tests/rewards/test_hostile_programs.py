"""The hostile programs of the shared data: each gets the verdict its header asks for, and nothing of it remains."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from jail_tools import own_processes, run_as_nobody, unprivileged_python

from rlreason.rewards.jail.jail import Limits, capabilities
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import RewardResult, Verdict

PROGRAMS = Path(__file__).parents[3] / "shared" / "data" / "hostile_programs"
NAMES = sorted(path.stem for path in PROGRAMS.glob("*.py"))
pytestmark = [
    pytest.mark.skipif(not NAMES, reason=f"needs the hostile programs in {PROGRAMS}"),
    pytest.mark.skipif(bool(capabilities().missing), reason=f"this host lacks layers: {capabilities()}"),
]
ADDITION = [((2, 3), 5), ((3, 4), 7), ((0, 0), 0), ((-1, -2), -3)]
ASSERTS = [f"assert add{args} == {total}" for args, total in ADDITION]
STDIN = {
    "type": "stdin",
    "cases": [{"input": f"{a} {b}\n", "output": f"{total}\n"} for (a, b), total in ADDITION[:2]],
}
FUNCTION = {
    "calls": {
        "type": "function",
        "entry_point": "add",
        "cases": [{"args": list(args), "expected": total} for args, total in ADDITION],
    },
    "check": {
        "type": "function",
        "entry_point": "add",
        "code": "def check(candidate):\n    add = candidate\n    " + "\n    ".join(ASSERTS),
    },
    "asserts": {"type": "asserts", "setup": "", "asserts": ASSERTS},
    "unittest": {
        "type": "unittest",
        "code": "import unittest\nfrom solution import add\n\nclass Tests(unittest.TestCase):\n"
        + "".join(f"    def test_{i}(self):\n        {one}\n" for i, one in enumerate(ASSERTS)),
    },
}
#: Places where the programs try to leave something; as root and with the real home folder.
TRACES = [
    Path(folder, name)
    for folder in ("/etc", "/usr", "/var/tmp", "/dev/shm", "/tmp", ".", "..", str(Path.home()), "/output", "/result")
    for name in ("hostile_marker", "pwned_by_pickle", "conftest.py", "sitecustomize.py", "result.json", "reward.txt")
    if not Path(folder, name).exists()
]
LIMITS = Limits(wall_seconds=3.0, cpu_seconds=3.0, total_seconds=10.0)


def source(name: str) -> str:
    return 'import os; os.environ["HOSTILE_OK"] = "1"\n' + (PROGRAMS / f"{name}.py").read_text()


def kind(name: str) -> str:
    return (PROGRAMS / f"{name}.py").read_text().split("# KIND: ")[1][0]


def wanted(name: str) -> set[Verdict]:
    """Verdicts that the header allows."""
    text = (PROGRAMS / f"{name}.py").read_text().split("MUST SHOW:")[1].splitlines()[0]
    if "verdict=pass" in text:
        return {Verdict.CORRECT}
    if "verdict=timeout" in text:
        return {Verdict.TIMED_OUT}
    if "verdict=crash" in text:  # since CPython 3.11 such a recursion fills memory instead, slowly
        return {Verdict.WRONG, Verdict.TIMED_OUT}
    return {Verdict.WRONG}


def check(name: str, form: str) -> RewardResult:
    tests = STDIN if form == "stdin" else FUNCTION[form]
    return check_program(source(name), tests, limits=LIMITS)


FORMS = [(name, form) for name in NAMES for form in (FUNCTION if kind(name) == "F" else ["stdin"])]


@pytest.mark.parametrize(("name", "form"), FORMS, ids=[f"{name}-{form}" for name, form in FORMS])
def test_hostile_program(name: str, form: str) -> None:
    honest("warm up")
    files, processes = len(os.listdir("/proc/self/fd")), own_processes()
    mounts = Path("/proc/self/mountinfo").read_text()
    result = check(name, form)
    assert result.verdict in wanted(name), result
    assert result.score == float(result.verdict is Verdict.CORRECT)
    assert len(os.listdir("/proc/self/fd")) == files
    assert own_processes() == processes
    assert [str(path) for path in TRACES if path.exists()] == []
    # What a program fills is a file system of its own, in memory, which goes with it: nothing of it is mounted here.
    assert Path("/proc/self/mountinfo").read_text() == mounts
    honest(name)


def honest(after: str) -> None:
    assert check_program("print(sum(map(int, input().split())))", STDIN).verdict is Verdict.CORRECT, after
    assert check_program("def add(a, b): return a + b", FUNCTION["calls"]).verdict is Verdict.CORRECT, after


AS_NOBODY = """
import json, sys
from rlreason.rewards.jail.jail import Limits, capabilities
from rlreason.rewards.programs.verifier import check_program
jobs = json.load(open(sys.argv[1]))
limits = Limits(wall_seconds=3.0, cpu_seconds=3.0, total_seconds=10.0)
print(json.dumps([capabilities().missing, [check_program(*job, limits=limits).verdict for job in jobs]]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root only: the rest runs as an ordinary user already")
def test_as_an_ordinary_user(tmp_path: Path) -> None:
    python = unprivileged_python()
    if python is None:
        pytest.skip("no interpreter and checkout that an ordinary user can read")
    # One form for each function: which is no matter of the user.
    jobs = [(source(name), FUNCTION["calls"] if kind(name) == "F" else STDIN) for name in NAMES]
    folder = Path(os.path.realpath("/tmp"), f"rlreason-jobs-{os.getpid()}.json")
    folder.write_text(json.dumps(jobs))
    try:
        done = run_as_nobody(python, AS_NOBODY, str(folder))
    finally:
        folder.unlink()
    assert done.returncode == 0, done.stderr
    missing, verdicts = json.loads(done.stdout)
    assert missing == {}
    wrong = [(name, v) for name, v in zip(NAMES, verdicts, strict=True) if Verdict(v) not in wanted(name)]
    assert wrong == []
    assert [str(path) for path in TRACES if path.exists()] == []

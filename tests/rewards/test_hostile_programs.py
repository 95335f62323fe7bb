"""The hostile programs of the shared data: each gets the verdict its header asks for, and nothing of it remains."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jail_tools import own_processes, run_as_nobody, unprivileged_python

from rlreason.rewards.jail.jail import Limits, capabilities
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import RewardResult, Verdict

DATA = Path(__file__).parents[3] / "shared" / "data"
PROGRAMS = DATA / "hostile_programs"
#: A second set, whose headers say which tests a program is for, and how often it runs with another VARIANT.
NEWER = DATA / "hostile_programs_2026_11"
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
SHORT = Limits(wall_seconds=2.0, cpu_seconds=2.0, total_seconds=10.0)


def source(name: str) -> str:
    return 'import os; os.environ["HOSTILE_OK"] = "1"\n' + (PROGRAMS / f"{name}.py").read_text()


def kind(name: str) -> str:
    return kind_of((PROGRAMS / f"{name}.py").read_text())


def wanted(name: str) -> set[Verdict]:
    """Verdicts that the header allows."""
    text = (PROGRAMS / f"{name}.py").read_text().split("MUST SHOW:")[1].splitlines()[0]
    if "verdict=pass" in text:
        return {Verdict.CORRECT}
    if "verdict=timeout" in text:
        return {Verdict.TIMED_OUT}
    if "__str__ loops" in (PROGRAMS / f"{name}.py").read_text():  # where a test asks for the text, in its own process
        return {Verdict.WRONG, Verdict.TIMED_OUT}
    if "verdict=crash" in text:  # since CPython 3.11 such a recursion fills memory instead, slowly
        return {Verdict.WRONG, Verdict.TIMED_OUT}
    return {Verdict.WRONG}


def kind_of(text: str) -> str:
    return text.split("# KIND: ")[1][0]


@dataclass(frozen=True)
class Attack:
    """One of the second set."""

    name: str
    source: str
    tests: dict[str, object]
    #: It may end without a score: its tests need what is not there.
    may_break: bool
    #: It prints the right answer at its end: earned, where the machine is fast enough for the limit. Its header asks
    #: for no verdict, only for a state of the machine afterwards.
    may_answer: bool


def newer() -> list[Attack]:
    found = []
    for path in sorted(NEWER.glob("*.py")):
        text = path.read_text()
        if kind_of(text) == "R":  # for code_remote: see test_program_remote
            continue
        given = re.search(r"^# TESTS: (.*)$", text, re.MULTILINE)
        tests = json.loads(given[1]) if given else FUNCTION["calls"] if kind_of(text) == "F" else STDIN
        variants = re.search(r"^# VARIANTS: (\d+)", text, re.MULTILINE)
        asked = text.split("MUST SHOW:")[1].splitlines()[0]
        may_break = "broken:" in asked
        may_answer = "verdict=" not in asked and text.rstrip().endswith("\nprint(a + b)")
        for number in range(int(variants[1]) if variants else 1):
            set_up = f"VARIANT = {number}\n" if variants else ""
            name = f"{path.stem}{f'-{number}' * bool(variants)}"
            found.append(Attack(name, set_up + text, tests, may_break, may_answer))
    return found


ATTACKS = newer()


def check(name: str, form: str) -> RewardResult:
    tests = STDIN if form == "stdin" else FUNCTION[form]
    return check_program(source(name), tests, limits=LIMITS)


FORMS = [(name, form) for name in NAMES for form in (FUNCTION if kind(name) == "F" else ["stdin"])]


@pytest.fixture
def nothing_remains() -> Iterator[None]:
    """No process, descriptor, mount, file, System V object, mark on a device: nothing is there that was not before."""
    honest("warm up")
    files, processes, before = len(os.listdir("/proc/self/fd")), own_processes(), host()
    yield
    assert len(os.listdir("/proc/self/fd")) == files
    assert own_processes() == processes
    assert [str(path) for path in TRACES if path.exists()] == []
    assert host() == before
    honest("afterwards")


def host() -> list[str]:
    """What a program might change for all: mounts (what it fills is a file system of its own), IPC, devices, limits."""
    shared = [Path("/proc/sysvipc", name).read_text().split() for name in ("sem", "msg")]
    devices = [os.stat(f"/dev/{name}") for name in ("null", "full", "random", "urandom")]
    return [
        Path("/proc/self/mountinfo").read_text(),
        str(shared),
        str([(one.st_mode, one.st_uid) for one in devices]),
        str(os.stat("/dev/full").st_mtime),
        str(os.getpriority(os.PRIO_PROCESS, 0)),
        str(os.sched_getaffinity(0)),
    ]


@pytest.mark.parametrize(("name", "form"), FORMS, ids=[f"{name}-{form}" for name, form in FORMS])
def test_hostile_program(name: str, form: str, nothing_remains: None) -> None:
    result = check(name, form)
    assert result.verdict in wanted(name), result
    assert result.score == float(result.verdict is Verdict.CORRECT)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_newer_hostile_program(attack: Attack, nothing_remains: None) -> None:
    result = check_program(attack.source, attack.tests, limits=SHORT)
    assert is_safe(attack, str(result.verdict), result.score), result


def is_safe(attack: Attack, verdict: str, score: float | None) -> bool:
    """Neither right, but by an honest answer, nor by its own doing without a score."""
    if verdict == "broken":
        return attack.may_break
    if verdict == "correct":
        return attack.may_answer
    return (verdict, score) in {("wrong", 0.0), ("timed_out", 0.0)}


def honest(after: str) -> None:
    assert check_program("print(sum(map(int, input().split())))", STDIN).verdict is Verdict.CORRECT, after
    assert check_program("def add(a, b): return a + b", FUNCTION["calls"]).verdict is Verdict.CORRECT, after
    # In a jail of its own, which has packages in view.
    assert check_program("def add(a, b): return a + b  # pytest", FUNCTION["calls"]).verdict is Verdict.CORRECT, after


AS_NOBODY = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from rlreason.rewards.jail import jail as module
from rlreason.rewards.jail.jail import Jail, Limits
from rlreason.rewards.programs.verifier import check_program
jobs, off = json.load(open(sys.argv[1]))
first = Jail(off=off)
first.close()
if off:  # every jail of this process then is one without these layers
    make = Jail.__init__
    Jail.__init__ = lambda jail, **more: make(jail, off=off, **more)
    module.capabilities = lambda: first.capabilities
limits = Limits(wall_seconds=2.0, cpu_seconds=2.0, total_seconds=10.0)
def work(job):
    result = check_program(*job, limits=limits)
    return str(result.verdict), result.score, result.detail[:200]
with ThreadPoolExecutor(4) as pool:
    print(json.dumps([first.capabilities.level, sorted(first.capabilities.missing), list(pool.map(work, jobs))]))
"""
#: One form for each function: which is no matter of the user. The first set's controls run for longer.
OLDER = [name for name in NAMES if "control" not in name]


@pytest.mark.skipif(os.geteuid() != 0, reason="root only: the rest runs as an ordinary user already")
@pytest.mark.parametrize(("off", "level", "missing"), [((), "namespaces", 0), (("user_namespace",), "landlock", 6)])
def test_as_an_ordinary_user(off: tuple[str, ...], level: str, missing: int) -> None:
    python = unprivileged_python()
    if python is None:
        pytest.skip("no interpreter and checkout that an ordinary user can read")
    jobs = [(source(name), FUNCTION["calls"] if kind(name) == "F" else STDIN) for name in OLDER]
    jobs += [(attack.source, attack.tests) for attack in ATTACKS]
    folder = Path(os.path.realpath("/tmp"), f"rlreason-jobs-{os.getpid()}.json")
    folder.write_text(json.dumps([jobs, off]))
    before = host()
    try:
        done = run_as_nobody(python, AS_NOBODY, str(folder))
    finally:
        folder.unlink()
    assert done.returncode == 0, done.stderr
    found, lacks, results = json.loads(done.stdout)
    assert (found, len(lacks)) == (level, missing)
    old, new = results[: len(OLDER)], results[len(OLDER) :]
    right = [name for name in OLDER if wanted(name) == {Verdict.CORRECT}]
    wrong = [(name, one) for name, one in zip(OLDER, old, strict=True) if one[1] != float(name in right)]
    assert wrong == []
    safe = [is_safe(attack, one[0], one[1]) for attack, one in zip(ATTACKS, new, strict=True)]
    assert all(safe), [(a.name, one) for a, one, good in zip(ATTACKS, new, safe, strict=True) if not good]
    assert [str(path) for path in TRACES if path.exists()] == []
    assert host() == before

"""The jail as a whole: limits, what one run leaves for the next, and how zygotes live and die."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jail_tools import NAMESPACES, ROOT, own_processes, run, zygote_processes

from rlreason.rewards.jail import jail as jail_module
from rlreason.rewards.jail.jail import Jail, JailUnavailable, Limits, capabilities, leased
from rlreason.rewards.jail.run import RunLost
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import Verdict

pytestmark = pytest.mark.skipif(capabilities().level != "namespaces", reason=f"needs namespaces: {capabilities()}")
ECHO = {"type": "stdin", "cases": [{"input": "7\n", "output": "7\n"}]}


@pytest.fixture(scope="module")
def jail() -> Iterator[Jail]:
    made = Jail()
    yield made
    made.close()


def printed(jail: Jail, program: str, **keywords: object) -> str:
    return run(jail, program, **keywords).stdout.decode().strip()  # type: ignore[arg-type]


def test_a_program_sees_little(jail: Jail) -> None:
    assert printed(jail, "import os\nprint(os.getpid(), os.getppid(), os.getuid())") == "1 0 65534"
    assert printed(jail, "import os\nprint('HOME' in os.environ, len(os.environ))") == "True 8"
    assert printed(jail, "import os\nprint(os.getcwd(), os.listdir())") == "/tmp []"
    assert printed(jail, "import os\nprint(os.path.exists('/home'), os.listdir('/etc'))").startswith("False [")
    assert printed(jail, f"import os\nprint(os.path.exists({str(ROOT)!r}))") == "False"
    assert printed(jail, "import glob\nprint(glob.glob('/proc/[0-9]*'))") == "['/proc/1']"
    assert printed(jail, "import os\nprint(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])") == "[0, 1, 2]"


def test_the_hash_seed_is_fixed(jail: Jail) -> None:
    other = Jail()
    try:
        assert printed(jail, "print(hash('rlreason'))") == printed(other, "print(hash('rlreason'))")
    finally:
        other.close()


@pytest.mark.parametrize("name", ["/dev/stdin", "/proc/self/fd/0", 0])
def test_standard_input_opens_by_name(jail: Jail, name: object) -> None:
    assert printed(jail, f"print(open({name!r}).read())", stdin=b"2 3") == "2 3"


def test_its_own_output_does_not_open_for_reading(jail: Jail) -> None:
    # It would wait for itself.
    program = "try: open('/dev/stdout').read()\nexcept PermissionError: print('no')"
    assert printed(jail, program) == "no"


def test_exit_handlers_threads_and_buffers_finish(jail: Jail) -> None:
    program = (
        "import atexit, sys, threading, time\natexit.register(lambda: print('last'))\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('second'))).start()\nsys.stdout.write('first ')"
    )
    assert printed(jail, program).split() == ["first", "second", "last"]


@pytest.mark.parametrize(
    ("program", "code"),
    [("import sys; sys.exit()", 0), ("import sys; sys.exit(3)", 3), ("import sys; sys.exit('no')", 1), ("1/0", 1),
     ("import os, signal; os.kill(1, signal.SIGKILL)", 0), ("import ctypes; ctypes.string_at(0)", -11), ("(", 1)],
)  # fmt: skip
def test_exit_codes(jail: Jail, program: str, code: int) -> None:
    report = run(jail, program).report
    assert report is not None
    assert report.exit_code == code


def test_children_work(jail: Jail) -> None:
    program = (
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(41 + 1)'], capture_output=True,"
        " text=True).stdout)"
    )
    assert printed(jail, program) == "42"
    assert printed(jail, "import multiprocessing as m\nwith m.Pool(2) as p: print(p.map(abs, [-1, 2]))") == "[1, 2]"


LIMITED = {
    "file size": ("open('x', 'wb').write(b'x' * (3 << 20))", Limits(file_mb=2), "OSError"),
    "disk": ("for i in range(9): open(f'x{i}', 'wb').write(b'x' * (1 << 20))", Limits(tmp_mb=4), "OSError"),
    "inodes": ("for i in range(9999): open(f'x{i}', 'wb')", Limits(), "OSError"),
    "open files": ("kept = [open('/dev/null') for _ in range(99)]", Limits(), "OSError"),
    "memory": ("x = bytearray(300 << 20)", Limits(memory_mb=200), "MemoryError"),
    "processes": (
        "import os, time\nfor _ in range(20):\n    if os.fork() == 0: time.sleep(9)",
        Limits(processes=10),
        "BlockingIOError",
    ),
    "threads": (
        "import threading as t, time\nfor _ in range(20): t.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        Limits(processes=10),
        "RuntimeError",
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_limits(jail: Jail, name: str) -> None:
    program, limits, error = LIMITED[name]
    assert error in run(jail, program, limits=limits).stderr.decode()


def test_as_many_processes_as_allowed(jail: Jail) -> None:
    program = "import os, time\nfor _ in range(9):\n    if os.fork() == 0: time.sleep(9)\nprint('all')"
    assert printed(jail, program, limits=Limits(processes=10)) == "all"


def test_cpu_limit(jail: Jail) -> None:
    report = run(jail, "while True: pass", limits=Limits(cpu_seconds=1.0, wall_seconds=60.0)).report
    assert report is not None
    assert report.exit_code == -signal.SIGKILL
    assert report.killed == ""


def test_output_limit_on_either_pipe(jail: Jail) -> None:
    limits = Limits(output_bytes=100_000, wall_seconds=5.0)
    flood = run(jail, "while True: print('x' * 1000)", limits=limits)
    assert flood.flooded
    assert len(flood.stdout) == 100_000
    quiet = run(jail, "import sys\nfor _ in range(10**4): print('x' * 1000, file=sys.stderr)", limits=limits)
    assert len(quiet.stderr) <= 1 << 16
    assert quiet.report is not None
    assert quiet.report.exit_code == 0


def test_nothing_stays_for_the_next_run(jail: Jail) -> None:
    run(
        jail,
        "import builtins, sys, math\nopen('/tmp/left', 'w')\nmath.pi = 3\nsys.path.insert(0, '/tmp')\ndel builtins.len",
    )
    assert printed(jail, "import math, os, sys\nprint(os.listdir('/tmp'), len(str(math.pi)), '/tmp' in sys.path)") == (
        "[] 17 False"
    )


def test_descriptors_and_processes_return_to_the_start(jail: Jail) -> None:
    run(jail, "print(1)")
    files, processes = len(os.listdir("/proc/self/fd")), own_processes()
    for _ in range(20):
        run(jail, "import os\nfor _ in range(5): os.fork()\nprint(1)", limits=Limits(wall_seconds=5.0))
        run(jail, "raise SystemExit")
    assert len(os.listdir("/proc/self/fd")) == files
    assert own_processes() == processes


def test_a_dead_zygote_is_replaced() -> None:
    assert check_program("print(input())", ECHO).verdict is Verdict.CORRECT
    with leased() as first:
        pid = first.pid
    os.kill(pid, signal.SIGKILL)
    for _ in range(3):
        assert check_program("print(input())", ECHO).verdict is Verdict.CORRECT


def test_a_zygote_that_dies_during_a_run_takes_it_along() -> None:
    jail = Jail()
    one = jail.spawn(Limits())
    one.send(["stdin", "import time\ntime.sleep(60)"])
    time.sleep(0.2)
    mine = [jail.pid, *own_processes(jail.pid)]
    assert len(mine) >= 3  # the waiting process, the zygote, the run
    os.kill(jail.pid, signal.SIGKILL)
    jail.close()
    assert gone(mine)
    with pytest.raises(RunLost):
        one.close()


def gone(pids: list[int]) -> bool:
    """Whether all end within half a minute."""
    for _ in range(300):
        if not set(pids) & set(zygote_processes()):
            return True
        time.sleep(0.1)
    return False


def test_everything_ends_with_a_killed_parent() -> None:
    code = (
        "import sys, threading, time\nfrom rlreason.rewards.programs.verifier import check_program\n"
        "tests = {'type': 'stdin', 'cases': [{'input': '', 'output': ''}]}\n"
        "threading.Thread(target=check_program, args=('while True: pass', tests)).start()\n"
        "time.sleep(1.5)\nprint('up', flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    started = own_processes(parent.pid)
    assert len(started) >= 3
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(started)


def test_threads_share_no_jail() -> None:
    verdicts: list[Verdict] = []

    def work(answer: str) -> None:
        verdicts.append(check_program(f"input()\nprint({answer})", ECHO).verdict)

    threads = [threading.Thread(target=work, args=("7",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [Verdict.CORRECT] * 4


def test_a_host_without_isolation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Jail(off=NAMESPACES | {"landlock"})
    bare.close()
    assert bare.capabilities.level == "none"
    monkeypatch.setattr(jail_module, "capabilities", lambda: bare.capabilities)
    for require in ("best", "full"):
        result = check_program("print(input())", ECHO, require=require)  # type: ignore[arg-type]
        assert (result.verdict, result.score) == (Verdict.BROKEN, None)
        assert "landlock: switched off" in result.detail
    assert check_program("print(input())", ECHO, require="unsafe").verdict is Verdict.CORRECT


def test_the_next_best_is_not_full(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Jail(off=NAMESPACES)
    second.close()
    monkeypatch.setattr(jail_module, "capabilities", lambda: second.capabilities)
    with pytest.raises(JailUnavailable, match="without user_namespace"), leased("full"):
        pass
    with leased("best") as jail:
        assert jail.alive


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="memory_mb must be positive"):
        Limits(memory_mb=0)


needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@needs_bwrap
def test_an_outer_wall_is_another_one() -> None:
    """Without any layer of the jail's own that concerns files and processes, bubblewrap's hold."""
    look = "import os\nprint(os.path.exists('/etc/passwd'), os.path.exists('/sys'), len(os.listdir('/proc')) > 0)"
    layers = NAMESPACES | {"landlock", "seccomp", "other_uid"}
    for outer, seen in (("", "True True True"), ("bwrap", "False False True")):
        jail = Jail(off=layers, outer=outer)  # type: ignore[arg-type]
        try:
            assert printed(jail, look) == seen
        finally:
            jail.close()


@needs_bwrap
def test_within_an_outer_wall_all_layers_hold_and_programs_are_checked() -> None:
    inside = capabilities("bwrap")
    assert (inside.level, inside.missing) == (capabilities().level, capabilities().missing)
    assert inside.extras["bwrap"] == ""
    assert check_program("print(input())", ECHO, outer="bwrap").verdict is Verdict.CORRECT
    before = own_processes()
    assert check_program("print(8)", ECHO, outer="bwrap").verdict is Verdict.WRONG
    assert own_processes() == before  # the same jail again


def test_an_outer_wall_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    capabilities.cache_clear()
    result = check_program("print(input())", ECHO, outer="bwrap")
    assert (result.verdict, result.score) == (Verdict.BROKEN, None)
    assert "bubblewrap is not installed" in result.detail


def test_packages_below_tmp_are_seen_and_every_layer_holds() -> None:
    """An environment may lie below /tmp, which every run has its own of."""
    folder = Path(tempfile.mkdtemp(dir="/tmp")) / "site"
    folder.mkdir()
    folder.parent.chmod(0o755)
    (folder / "shown.py").write_text("answer = 42\n")
    try:
        with leased(visible=(str(folder),)) as jail:
            assert jail.capabilities.level == capabilities().level
            program = (
                f"import sys, os; sys.path.append({str(folder)!r}); import shown\n"
                f"print(shown.answer, os.listdir('/tmp') == [{folder.parent.name!r}], sys.dont_write_bytecode)\n"
                f"try: open({str(folder / 'shown.py')!r}, 'w')\nexcept OSError as error: print(error.errno)"
            )
            one = run(jail, program)
    finally:
        shutil.rmtree(folder.parent)
    first, number = one.stdout.decode().split("\n")[:2]
    assert first == "42 True True" if capabilities().level == "namespaces" else first.startswith("42")
    assert int(number) in {errno.EROFS, errno.EACCES}


def test_a_jail_that_has_less_than_the_host_can_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a jail shows its programs may be in the way of a layer; nothing runs at a lower level without a word."""
    real = Jail._settle

    def less(self: Jail, off: dict[str, str]) -> object:
        found = real(self, off)
        if not self.visible:
            return found
        layers = {**found.layers, "mount_namespace": "in the way"}
        return dataclasses.replace(found, layers=layers, level="none" if found.level == "none" else "landlock")

    if capabilities().level != "namespaces":
        pytest.skip("the host gives no namespaces")
    monkeypatch.setattr(Jail, "_settle", less)
    with pytest.raises(JailUnavailable, match=r"not met by a jail that shows \['/opt'\]"), leased(visible=("/opt",)):
        pass

"""Level "landlock", without namespaces: an ordinary user's files and processes stay as they are, each by a rule that
matters, and the report says what can't be refused."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path

import pytest
from jail_tools import ROOT, run_as_nobody, unprivileged_python

from rlreason.rewards.jail import seccomp
from rlreason.rewards.jail.jail import Capabilities, capabilities

pytestmark = pytest.mark.skipif(
    bool(capabilities().layers["landlock"] or capabilities().layers["seccomp"]), reason=f"{capabilities()}"
)
#: Attack on {victim}, a file of the user, or {pid}, a process of the user.
ATTACKS = {
    "chmod": "os.chmod('{victim}', 0o777)",
    "lchown": "os.chown('{victim}', os.getuid(), os.getgid(), follow_symlinks=False)",
    "utime": "os.utime('{victim}', (0, 0))",
    "setxattr": "os.setxattr('{victim}', 'user.mark', b'1')",
    "truncate": "os.truncate('{victim}', 0)",
    "truncate on opening": "os.open('{victim}', os.O_RDONLY | os.O_TRUNC)",
    "fchmod of what it may read": "os.fchmod(os.open(os.__file__, os.O_RDONLY), 0o644)",
    "renice": "os.setpriority(os.PRIO_PROCESS, {pid}, 15)",
    "renice all": "os.setpriority(os.PRIO_USER, os.getuid(), 15)",
    "pin": "os.sched_setaffinity({pid}, {{0}})",
    "limit": "resource.prlimit({pid}, resource.RLIMIT_NOFILE, (9, 9))",
    "signal": "os.kill({pid}, 0)",
    "signal by owner": "fcntl.fcntl(0, fcntl.F_SETOWN, {pid})",
    "which signal": "fcntl.fcntl(0, 10, 9)",
    "owner by ioctl": "fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack('i', {pid}))",
    "remove shared memory": "check(libc.shmctl({segment}, 0, None))",
    "a lock": "fcntl.lockf(open(os.__file__), fcntl.LOCK_SH)",
    "read another's memory": "check(libc.ptrace(16, {pid}, None, None))",
    "openat2": "check(libc.syscall(437, -100, b'{victim}', bytes(24), 24))",
}
_SCRIPT = """
import ctypes, json, os, subprocess, sys, tempfile
sys.path.insert(0, {tests!r})
from jail_tools import NAMESPACES, run
from rlreason.rewards.jail.jail import Jail
libc = ctypes.CDLL(None)
head = '''import ctypes, fcntl, os, resource, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), "refused")
'''
found = {{}}
sleeper = subprocess.Popen(["sleep", "60"])
segment = libc.shmget(0x5EED0000 + os.getpid() % 0x10000, 4096, 0o1600)
with tempfile.TemporaryDirectory() as folder:
    for layer, off in (("with", NAMESPACES), ("without", NAMESPACES | {{"seccomp", "landlock"}})):
        jail = Jail(off=off)
        for name, attack in json.loads(sys.argv[1]).items():
            victim = os.path.join(folder, "victim")
            with open(victim, "w") as file:
                file.write("weights")
            os.utime(victim, (1e9, 1e9))
            before = os.stat(victim), os.getpriority(os.PRIO_PROCESS, sleeper.pid)
            one = run(jail, head + "try:\\n    " + attack.format(victim=victim, pid=sleeper.pid, segment=segment)
                      + "\\n    print('done')\\nexcept (OSError, ValueError) as error: print(type(error).__name__)")
            changed = os.path.getsize(victim) != 7 or os.getpriority(os.PRIO_PROCESS, sleeper.pid) != before[1]
            changed = changed or os.stat(victim)[:2] + os.stat(victim)[7:9] != before[0][:2] + before[0][7:9]
            found[f"{{layer}} {{name}}"] = [(one.stdout or one.stderr).decode().strip()[-80:], changed]
        level = jail.capabilities.level if layer == "with" else level
        jail.close()
sleeper.kill()
libc.shmctl(segment, 0, None)
print(json.dumps([level, found]))
"""


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[object]]:
    script = _SCRIPT.format(tests=str(Path(__file__).parent))
    if os.geteuid() == 0:
        python = unprivileged_python()
        if python is None:
            pytest.skip("no interpreter and checkout that an ordinary user can read")
        done = run_as_nobody(python, script, json.dumps(ATTACKS))
    else:
        import subprocess

        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(ATTACKS)],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    level, found = json.loads(done.stdout)
    assert level == "landlock"
    return dict(found)


@pytest.mark.parametrize("name", ATTACKS)
def test_refused(outcomes: dict[str, list[object]], name: str) -> None:
    said, changed = outcomes[f"with {name}"]
    assert said != "done"
    assert str(said).endswith("Error"), said
    assert not changed


def test_without_the_layers_they_succeed(outcomes: dict[str, list[object]]) -> None:
    """So it is the layers that refuse them. What fails there too is refused by the kernel's own rules."""
    succeeded = {name for name in ATTACKS if outcomes[f"without {name}"][0] == "done"}
    assert set(ATTACKS) - succeeded <= {"fchmod of what it may read", "read another's memory", "setxattr", "openat2"}


def test_the_report_says_what_can_not_be_refused() -> None:
    report = str(Capabilities(level="landlock", layers={}))
    assert "sees whether a path of the host exists" in report
    assert Capabilities(level="namespaces", layers={}).remarks != Capabilities(level="landlock", layers={}).remarks


def test_the_filter_is_known_for_both_machines() -> None:
    for machine in ("x86_64", "aarch64"):
        plain = seccomp.build(machine=machine)
        assert len(seccomp.build(machine=machine, private=False)) > len(plain)
        assert len(plain) % 8 == 0


def _answer(program: bytes, machine: str, number: int, arguments: tuple[int, ...] = (0,) * 6) -> int:
    """What the kernel would do: a BPF filter over one call. Every step goes forward."""
    data = struct.pack("=IIQ6Q", number, seccomp._ARCHITECTURES[machine], 0, *arguments)
    at = held = 0
    while True:
        code, if_true, if_false, value = struct.unpack_from("=HBBI", program, 8 * at)
        at += 1
        if code == seccomp._LOAD:
            (held,) = struct.unpack_from("=I", data, value)
        elif code == seccomp._RETURN:
            return int(value)
        else:
            holds = {seccomp._JEQ: held == value, seccomp._JGE: held >= value, seccomp._JSET: bool(held & value)}
            at += if_true if holds[code] else if_false


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_answers_each_call_as_the_lists_say(machine: str, private: bool) -> None:
    which = list(seccomp._ARCHITECTURES).index(machine)
    lists = [(seccomp._EPERM, seccomp._REFUSED), (seccomp._ENOSYS, seccomp._MISSING)]
    lists += [(seccomp._KILL_PROCESS, seccomp._FATAL)]
    if not private:
        lists += [(seccomp._EPERM, seccomp._REFUSED_OUTSIDE), (seccomp._ENOSYS, seccomp._MISSING_OUTSIDE)]
    wanted = {numbers[which]: answer for answer, calls in lists for numbers in calls.values()}
    asked = (seccomp._CLONE, seccomp._IOCTL, seccomp._PRCTL, seccomp._SOCKETPAIR, seccomp._PRLIMIT, seccomp._FCNTL)
    by_arguments = {numbers[which] for numbers in (*asked, seccomp._SETRLIMIT, seccomp._MMAP)}
    program = seccomp.build(machine=machine, private=private)
    for number in {*range(480), 1 << 30, (1 << 32) - 1} - by_arguments:
        unknown = seccomp._ENOSYS if number >= seccomp._FIRST_UNKNOWN else seccomp._ALLOW
        assert _answer(program, machine, number) == wanted.get(number, unknown), number
    clone, ioctl = seccomp._CLONE[which], seccomp._IOCTL[which]
    assert _answer(program, machine, clone, (seccomp._CLONE_THREAD, *(0,) * 5)) == seccomp._ALLOW
    assert _answer(program, machine, clone, (0x10000000, *(0,) * 5)) == seccomp._EPERM
    assert _answer(program, machine, ioctl, (0, 0x5401, *(0,) * 4)) == seccomp._ALLOW
    assert _answer(program, machine, ioctl, (0, 0x5412, *(0,) * 4)) == seccomp._EPERM
    mapping = seccomp._MMAP[which]
    assert _answer(program, machine, mapping, (0, 4096, 3, 0x21, 0, 0)) == seccomp._ASK
    assert _answer(program, machine, mapping, (0, 4096, 3, 0x22, 0, 0)) == seccomp._ALLOW

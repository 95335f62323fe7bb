"""What no limit of a single process counts: shared and kernel memory, processor time in sum, a fair share of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from jail_tools import run

from rlreason.rewards.jail.cgroup import Hierarchy, own_groups
from rlreason.rewards.jail.jail import Jail, Limits, capabilities
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import Verdict

pytestmark = pytest.mark.skipif(capabilities().level != "namespaces", reason=f"needs namespaces: {capabilities()}")
SMALL = Limits(memory_mb=200, wall_seconds=30.0)
LIBC = "import ctypes, mmap, os, time\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"


@pytest.fixture(scope="module")
def jail() -> Iterator[Jail]:
    made = Jail(off=("cgroup",))  # the jail's own counts
    yield made
    made.close()


MEMORY = {
    "shared by children": (
        "import mmap, os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        held = mmap.mmap(-1, 90 << 20)\n"
        "        for at in range(0, len(held), 4096): held[at] = 1\n        time.sleep(9)\nfor _ in range(3): os.wait()"
    ),
    "shared, all but a page unmapped": (
        f"{LIBC}for _ in range(3):\n    at = libc.mmap(None, 90 << 20, 3, 0x21, -1, 0)\n"
        "    ctypes.memset(at, 1, 90 << 20)\n    libc.munmap(ctypes.c_void_p(at + 4096), (90 << 20) - 4096)\n"
        "time.sleep(9)"
    ),
    "a mapping for every other page": (
        f"{LIBC}at = libc.mmap(None, 120 << 20, 3, 0x22, -1, 0)\n"
        "for page in range(0, 30_000, 2): libc.mprotect(ctypes.c_void_p(at + page * 4096), 4096, 1)\ntime.sleep(9)"
    ),
    "unread in sockets": (
        "import os, socket, time\nfor _ in range(25):\n    if os.fork() == 0:\n        kept = []\n"
        "        for _ in range(28):\n            kept.append(socket.socketpair())\n"
        "            for end in kept[-1]:\n                end.setblocking(False)\n"
        "                try:\n                    while True: end.send(b'x' * 4096)\n"
        "                except OSError: pass\n"
        "        time.sleep(9)\n        os._exit(0)\nfor _ in range(25): os.wait()"
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_that_no_process_is_charged_for(jail: Jail, name: str) -> None:
    report = run(jail, MEMORY[name], limits=SMALL).report
    assert report is not None
    assert report.killed == "memory"


def test_memory_within_the_limit_is_fine(jail: Jail) -> None:
    program = (
        "import mmap, os, socket\nheld = mmap.mmap(-1, 90 << 20)\nif os.fork() == 0:\n    held[:3] = b'yes'\n"
        "    os._exit(0)\nos.wait()\npairs = [socket.socketpair() for _ in range(20)]\nprint(held[:3].decode())"
    )
    assert run(jail, program, limits=SMALL).stdout == b"yes\n"


def test_processor_time_is_limited_in_sum(jail: Jail) -> None:
    program = "import os\nfor _ in range(5): os.fork()\nwhile True: pass"
    report = run(jail, program, limits=Limits(cpu_seconds=1.0, wall_seconds=60.0)).report
    assert report is not None
    assert report.killed == "cpu"
    assert report.cpu_seconds < 1.0  # none of its processes alone


def test_many_busy_processes_get_nicer_and_one_does_not(jail: Jail) -> None:
    spin = (
        "import os, time\nend = time.process_time() + 0.3\n{}\nwhile time.process_time() < end: pass\nprint(os.nice(0))"
    )
    limits = Limits(cpu_seconds=30.0, wall_seconds=60.0)
    several = run(jail, spin.format("for _ in range(2): os.fork()"), limits=limits).stdout.split()
    assert max(map(int, several)) > 0
    assert run(jail, spin.format("time.sleep(0)"), limits=limits).stdout == b"0\n"


REFUSED = {
    "setsid": "os.setsid()",
    "flock": "fcntl.flock(open('/dev/null', 'w'), fcntl.LOCK_EX)",
    "lease": "fcntl.fcntl(open('/tmp/x', 'w'), 1024, 1)",
    "owner of signals": "fcntl.fcntl(0, fcntl.F_SETOWN, 1)",
    "socket buffers": "socket.socketpair()[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)",
    "core limit": "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))",
    "core limit by prlimit": "resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))",
    "times of a device": "os.utime('/dev/full')",
    "mode of a device": "os.chmod('/dev/null', 0o600)",
    "sync": "check(libc.syscall(306, 0))",
    "inotify": "check(libc.inotify_init1(0))",
    "dumpable": "check(libc.prctl(4, 0, 0, 0, 0))",
    "a filter of its own": "check(libc.prctl(22, 1, 0, 0, 0))",
    "removing System V objects": "check(libc.shmctl(0, 0, None))",
    "terminal input": "fcntl.ioctl(0, 0x5412, b'x')",
    "flags of a file": "fcntl.ioctl(0, 0x40086602, bytes(8))",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_at_every_level(jail: Jail, name: str) -> None:
    program = (
        "import ctypes, fcntl, os, resource, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "def check(result):\n    if result < 0: raise OSError(ctypes.get_errno(), 'refused')\n"
        f"try:\n    {REFUSED[name]}\n    print('done')\nexcept OSError as error: print(error.errno)\n"
        "except ValueError: print(1)"
    )
    assert run(jail, program).stdout in (b"1\n", b"30\n"), name  # not permitted; a read-only file system


def test_what_honest_programs_need_is_there(jail: Jail) -> None:
    program = (
        "import asyncio, fcntl, multiprocessing, os, resource, sqlite3, subprocess, sys, termios\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), sys.stdin.isatty())\n"
        "resource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))\n"
        "async def f(): return await asyncio.to_thread(os.getpid)\nprint(asyncio.run(f()))\n"
        "value = multiprocessing.Value('i', 3)\nprint(value.value)\nopen('x', 'w').write('1')\nos.chmod('x', 0o600)\n"
        "os.utime('x')\nfcntl.lockf(open('x', 'w'), fcntl.LOCK_EX)\ndb = sqlite3.connect('y')\n"
        "db.execute('create table t (a)')\ndb.commit()\nprint(subprocess.run(['true']).returncode)"
    )
    assert run(jail, program).stdout == b"(1, 1) False\n1\n3\n0\n", run(jail, program).stderr


def test_an_honest_program_keeps_its_verdict_beside_a_busy_one() -> None:
    hostile = (
        "import os\nfor _ in range(30):\n    try:\n        if os.fork() == 0:\n            try: os.setsid()\n"
        "            except OSError: pass\n            while True: pass\n    except OSError: break\nwhile True: pass"
    )
    honest = "import time\nwhile time.process_time() < 0.5: pass\nprint(input())"
    tests = {"type": "stdin", "cases": [{"input": "7\n", "output": "7\n"}]}
    found: dict[str, list[Verdict]] = {hostile: [], honest: []}

    def work(program: str) -> None:
        found[program].append(check_program(program, tests, limits=Limits(wall_seconds=3.0, cpu_seconds=3.0)).verdict)

    threads = [threading.Thread(target=work, args=(one,)) for one in (hostile, honest, honest)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {hostile: [Verdict.TIMED_OUT], honest: [Verdict.CORRECT] * 2}


def test_where_control_groups_are_found() -> None:
    mounts = (
        "25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "27 25 0:24 /docker/c0 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    groups = "4:memory:/docker/c0/job\n1:cpu,cpuacct:/\n2:pids:/elsewhere\n0::/user.slice\n"
    assert own_groups(mounts, groups) == {
        "memory": Hierarchy(1, Path("/sys/fs/cgroup/memory/job")),
        "cpu": Hierarchy(1, Path("/sys/fs/cgroup/cpu,cpuacct")),
        "cpuacct": Hierarchy(1, Path("/sys/fs/cgroup/cpu,cpuacct")),
        "": Hierarchy(2, Path("/sys/fs/cgroup/unified/user.slice")),
    }


@pytest.mark.skipif(bool(capabilities().extras["cgroup"]), reason=f"no group: {capabilities().extras['cgroup']}")
def test_a_control_group_ends_what_the_watch_does_not_see() -> None:
    """Without the watch and the limits of processes, the group alone ends a program with too much memory; it leaves
    nothing behind."""
    program = "import os, time\nheld = []\nwhile True: held.append(bytearray(b'x' * (8 << 20)))"
    before = groups()
    jail = Jail(off=("memory_watch", "rlimits"))
    try:
        report = run(jail, program, limits=Limits(memory_mb=64, tmp_mb=1, wall_seconds=30.0)).report
        assert groups() > before
        bare = Jail(off=("memory_watch", "rlimits", "cgroup"))
        held = "held = bytearray(b'x' * (400 << 20))\nprint('held')"
        assert run(bare, held, limits=Limits(memory_mb=64, tmp_mb=1)).stdout == b"held\n"
        bare.close()
    finally:
        jail.close()
    assert report is not None
    assert (report.exit_code, report.killed) == (-9, "")
    assert groups() == before


def groups() -> set[Path]:
    """Control groups of this process's jails."""
    return set(Path("/sys/fs/cgroup").glob(f"**/rlreason-{os.getpid()}-*"))

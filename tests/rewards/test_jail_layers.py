"""Each layer of the jail stops an attack that succeeds when that layer is switched off, and nothing else is."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from jail_tools import NAMESPACES, ROOT, output, run, run_as_nobody, unprivileged_python

from rlreason.rewards.jail.confine import LAYERS
from rlreason.rewards.jail.jail import Jail, Limits, capabilities

pytestmark = pytest.mark.skipif(bool(capabilities().missing), reason=f"this host lacks layers: {capabilities()}")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what root must not lend; needs root")
TRY = "try: print({})\nexcept Exception as e: print(type(e).__name__)"


def off(*layers: str) -> frozenset[str]:
    return frozenset(layers)


def test_user_namespace() -> None:
    # Without it the program is a user of the host, with what belongs to that user within reach.
    program = "print(open('/proc/self/uid_map').read().split())"
    assert output(program, off=off("landlock")).split("'")[1] == "65534"
    assert output(program, off=NAMESPACES | {"landlock"}).split("'")[1] == "0"


def test_mount_namespace() -> None:
    program = TRY.format("len(open('/etc/passwd').read()) > 0")
    assert output(program, off=off("landlock")) == "FileNotFoundError"
    assert output(program, off=off("landlock", "mount_namespace")) == "True"


def test_pid_namespace() -> None:
    # A daemon outlives the kill of its process group.
    daemon = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        "        os.closerange(0, 9)\n        time.sleep(60)\n    os._exit(0)"
    )
    for layers, left in ((off("seccomp"), 0), (off("seccomp", "pid_namespace"), 1)):
        jail = Jail(off=layers)
        run(jail, daemon + "\nos.wait()")
        survivors = _sleepers(jail.pid)
        jail.close()
        assert len(survivors) == left
        for pid in survivors:
            os.kill(pid, 9)


def _sleepers(zygote: int) -> list[int]:
    """Processes with the zygote's command line, outside its tree of parents: daemons it lost."""
    wanted = Path(f"/proc/{zygote}/cmdline").read_bytes()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            same = (folder / "cmdline").read_bytes() == wanted
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if same and int(folder.name) != zygote and parent != zygote:
            found.append(int(folder.name))
    return found


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_net_namespace(listener: int) -> None:
    program = "import socket\n" + TRY.format(f"bool(socket.create_connection(('127.0.0.1', {listener}), 5))")
    assert output(program, off=off("seccomp", "landlock")) == "OSError"
    assert output(program, off=off("seccomp", "landlock", "net_namespace")) == "True"


def test_ipc_namespace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    key = 0x5EED0000 + os.getpid() % 0x10000
    segment = libc.shmget(key, 4096, 0o1666)
    assert segment >= 0
    try:
        program = f"import ctypes\nprint(ctypes.CDLL(None).shmget({key}, 4096, 0o666) >= 0)"
        assert output(program, off=off("seccomp")) == "False"
        assert output(program, off=off("seccomp", "ipc_namespace")) == "True"
    finally:
        libc.shmctl(segment, 0, None)


def test_uts_namespace() -> None:
    program = "import os\nprint(os.uname().nodename)"
    assert output(program) == "jail"
    assert output(program, off=off("uts_namespace")) == os.uname().nodename


def test_landlock() -> None:
    program = TRY.format("len(open('/etc/passwd').read()) > 0")
    assert output(program, off=NAMESPACES) == "PermissionError"
    assert output(program, off=NAMESPACES | {"landlock"}) == "True"


def test_seccomp() -> None:
    program = "import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000))"
    assert output(program) == "-1"
    assert output(program, off=off("seccomp")) == "0"


@as_root
def test_no_new_privs(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/") and str(folder) != "/tmp":
            folder.chmod(0o755)
    gainer = tmp_path / "id"
    shutil.copy("/usr/bin/id", gainer)
    gainer.chmod(0o4755)
    program = f"import subprocess\nprint(subprocess.run(['{gainer}', '-u'], capture_output=True, text=True).stdout)"
    layers = NAMESPACES | {"landlock", "seccomp"}
    assert output(program, off=layers) != "0"
    assert output(program, off=layers | {"no_new_privs"}) == "0"


def test_rlimits() -> None:
    program = "import threading\n" + TRY.format("len(bytearray(900 << 20)) > 0")
    assert output(program, off=off("memory_watch")) == "MemoryError"
    assert output(program, off=off("memory_watch", "rlimits")) == "True"


@as_root
def test_other_uid() -> None:
    program = TRY.format("len(open('/etc/shadow').read()) > 0")
    layers = NAMESPACES | {"landlock"}
    assert output(program, off=layers) == "PermissionError"
    assert output(program, off=layers | {"other_uid"}) == "True"


def test_memory_watch() -> None:
    # Each process keeps to its own limit; together they do not.
    program = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n"
        "        held = b'x' * (90 << 20)\n        time.sleep(3)\n        os._exit(0)\n"
        "for _ in range(5): os.wait()\nprint('held')"
    )
    limits = Limits(memory_mb=200, wall_seconds=30.0)
    assert output(program, limits=limits) == "killed: memory"
    assert output(program, off=off("memory_watch"), limits=limits) == "held"


def test_processes_that_share_memory_are_counted_once() -> None:
    program = (
        "import os, time\nheld = b'x' * (90 << 20)\nfor _ in range(5):\n    if os.fork() == 0:\n"
        "        time.sleep(1)\n        os._exit(0)\nfor _ in range(5): os.wait()\nprint('held')"
    )
    assert output(program, limits=Limits(memory_mb=200, wall_seconds=30.0)) == "held"


def test_every_layer_has_a_test() -> None:
    assert {f"test_{layer}" for layer in LAYERS} <= globals().keys()


def test_without_namespaces_a_program_is_one_process_that_writes_nowhere(listener: int) -> None:
    attempts = {
        "import os\n" + TRY.format("os.fork()"): "PermissionError",
        "import os\n" + TRY.format(f"os.kill({os.getpid()}, 0)"): "PermissionError",
        "import os\n" + TRY.format(f"os.kill({os.getppid()}, 9)"): "PermissionError",
        TRY.format("open('/tmp/jail_marker', 'w')"): "PermissionError",
        TRY.format("open('/dev/shm/jail_marker', 'w')"): "PermissionError",
        TRY.format(f"open('/proc/{os.getpid()}/environ').read()"): "PermissionError",
        "import socket\n" + TRY.format(f"socket.create_connection(('127.0.0.1', {listener}), 5)"): "PermissionError",
        "import threading\nt = threading.Thread(target=print, args=(7,))\nt.start()\nt.join()": "7",
        "import resource\n" + TRY.format(f"resource.prlimit({os.getpid()}, resource.RLIMIT_CORE)"): "PermissionError",
        "print(sum(map(int, open('/dev/full', 'rb').read(3))))": "0",
    }
    jail = Jail(off=NAMESPACES)
    assert jail.capabilities.level == "landlock"
    try:
        for program, wanted in attempts.items():
            one = run(jail, program)
            assert one.stdout.decode().strip() == wanted, (program, one.stderr.decode())
    finally:
        jail.close()


#: Prints which layers are missing at what level, and whether a program with too many processes still prints "all".
_MANY = """
from rlreason.rewards.jail.jail import capabilities
from rlreason.rewards.programs.verifier import check_program
bomb = "import os, time\\nfor _ in range(100):\\n    os.fork() or time.sleep(9)\\nprint('all')"
tests = {"type": "stdin", "cases": [{"input": "", "output": "all"}]}
print(capabilities().level, *sorted(capabilities().missing), str(check_program(bomb, tests).verdict))
"""


@as_root
def test_root_that_can_not_leave_is_reported() -> None:
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs util-linux")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [unshare, "-r", sys.executable, "-c", _MANY], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["none", "other_uid", "rlimits", "broken"], done.stderr


@as_root
def test_an_ordinary_user_as_root_of_its_own_namespace_runs_programs() -> None:
    unshare, python = shutil.which("unshare"), unprivileged_python()
    if unshare is None or python is None:
        pytest.skip("needs util-linux and an interpreter that an ordinary user can read")
    done = run_as_nobody(python, _MANY, before=(unshare, "-r"))
    assert done.stdout.split() == ["namespaces", "other_uid", "wrong"], done.stderr

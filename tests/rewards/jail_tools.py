"""What the jail's tests share: running one program in a given jail, and counting what is left of one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from rlreason.rewards.jail.jail import Jail, Limits
from rlreason.rewards.jail.run import Run, pump

ROOT = Path(__file__).parents[2]
NOBODY = 65534
NAMESPACES = frozenset({"user_namespace"})  # the others stand on it


def run(jail: Jail, source: str, *, stdin: bytes = b"", limits: Limits | None = None) -> Run:
    """Run ``source`` as a whole program to its end, or to its wall limit."""
    limits = limits or Limits(wall_seconds=20.0, cpu_seconds=20.0)
    one = jail.spawn(limits)
    try:
        one.feed(stdin)
        one.send(["stdin", source])
        pump([one], time.monotonic() + limits.wall_seconds, lambda: one.drained)
    finally:
        one.close()
    return one


def output(source: str, *, off: frozenset[str] = frozenset(), limits: Limits | None = None) -> str:
    """What ``source`` prints in a jail without the layers ``off``; what it died of where it died."""
    jail = Jail(off=off)
    try:
        one = run(jail, source, limits=limits)
    finally:
        jail.close()
    assert one.report is not None
    if one.report.killed:
        return f"killed: {one.report.killed}"
    return one.stdout.decode().strip() or one.stderr.decode().strip().splitlines()[-1]


def zygote_processes() -> list[int]:
    """Every process that is a zygote or a child of one: they share their command line. Of any user."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"rlreason.rewards.jail.zygote" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def own_processes(ancestor: int | None = None) -> list[int]:
    """Those among them that descend from ``ancestor`` (default: this process)."""
    parents = {int(folder.name): _parent(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    tree = {ancestor or os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sorted(tree & set(zygote_processes()))


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0


def unprivileged_python() -> str | None:
    """An interpreter and a checkout that an ordinary user can read; None where root has no such thing to lend."""
    for python in (sys.executable, "/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11"):
        if not Path(python).exists():
            continue
        try:
            done = run_as_nobody(python, "import rlreason.rewards.programs.verifier")
        except PermissionError:
            continue
        if done.returncode == 0:
            return python
    return None


def run_as_nobody(
    python: str, code: str, *arguments: str, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` as an ordinary user (root only). ``before``: a command that starts the interpreter."""
    return subprocess.run(
        [*before, python, "-c", code, *arguments],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

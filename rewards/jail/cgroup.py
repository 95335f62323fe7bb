"""A control group for one jail, where this user may make one: memory with the kernel's part, processes, a fair share.

Both versions of the interface. Version 2 needs a group that was delegated (to a user by systemd's ``Delegate=yes``; or
root) and in which the controllers can be switched on for its children; version 1 needs root. What can't be had is
reported, and the jail's own counts remain.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CONTROLLERS = ("memory", "cpu", "pids")
_NAME = re.compile(r"rlreason-(\d+)-\d+")
_numbers = itertools.count()
#: The zygote itself, and the pages of the interpreter that were first read here.
_BASE_BYTES = 128 << 20
_REMOVE_SECONDS = 2.0
#: What a jail may keep between two checks.
_KEPT_BYTES = 64 << 20
_USAGE_FILES = {1: ("memory.usage_in_bytes", "memory.force_empty"), 2: ("memory.current", "memory.reclaim")}
_LIMIT_FILES = {1: ("memory.limit_in_bytes", "pids.max"), 2: ("memory.max", "pids.max")}


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where this process's own group of some controllers lies. Example: ``Hierarchy(1, Path("/sys/…/memory/a"))``."""

    version: int
    folder: Path


def own_groups(mounts: str, groups: str) -> dict[str, Hierarchy]:
    """Controller to this process's group, from the texts of /proc/self/mountinfo and /proc/self/cgroup.

    Version 2 goes by the name "".
    """
    places: dict[str, tuple[int, str, str]] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            root, point = before.split()[3:5]
            for name in ("",) if kind == "cgroup2" else options.split(","):
                places[name] = (2 if kind == "cgroup2" else 1, root, point)
    found = {}
    for line in groups.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if name in places:
                version, root, point = places[name]
                inside = os.path.relpath(path, root)
                if not inside.startswith(".."):
                    found[name] = Hierarchy(version, Path(point, inside))
    return found


class Cgroup:
    """Groups of one jail, made at once. ``missing``: controller to the reason why it could not be had."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self._groups: dict[str, Hierarchy] = {}
        self._limits: tuple[int, int] | None = None
        #: Where the memory in use is read, after each check.
        self._usage = -1
        try:
            mounts, groups = (Path(f"/proc/self/{name}").read_text() for name in ("mountinfo", "cgroup"))
        except OSError as error:
            self.missing = dict.fromkeys(CONTROLLERS, str(error))
            return
        own, name = own_groups(mounts, groups), f"rlreason-{os.getpid()}-{next(_numbers)}"
        for controller in CONTROLLERS:
            try:
                self._groups[controller] = _made(controller, own, name)
            except OSError as error:
                self.missing[controller] = error.strerror or str(error)
        if self._groups.keys() < {"memory", "pids"}:  # a share of the processor alone is what the watch gives, too
            self._remove()

    def take(self, pid: int) -> None:
        """Put a process that has just been started into the groups."""
        for controller, group in list(self._groups.items()):
            try:
                (group.folder / "cgroup.procs").write_text(str(pid))
            except OSError as error:
                self.missing[controller] = error.strerror or str(error)
                del self._groups[controller]

    def limit(self, memory_bytes: int, processes: int) -> None:
        """For all processes of the jail together, besides the zygote's own."""
        if self._limits == (memory_bytes, processes):
            return
        self._limits = (memory_bytes, processes)
        for controller, value in (("memory", memory_bytes + _BASE_BYTES), ("pids", processes)):
            if controller in self._groups:
                group = self._groups[controller]
                with contextlib.suppress(OSError):
                    (group.folder / _LIMIT_FILES[group.version][controller == "pids"]).write_text(str(value))

    def tidy(self) -> None:
        """After a check: have the kernel drop what it still keeps for it, names that were looked up above all."""
        if "memory" not in self._groups:
            return
        memory = self._groups["memory"]
        usage, drop = _USAGE_FILES[memory.version]
        with contextlib.suppress(OSError):
            if self._usage < 0:
                self._usage = os.open(memory.folder / usage, os.O_RDONLY | os.O_CLOEXEC)
            much = int(os.pread(self._usage, 64, 0)) - _KEPT_BYTES
            if much > 0:
                (memory.folder / drop).write_text("0" if memory.version == 1 else str(much))

    def close(self) -> None:
        """Remove the groups. Their processes have ended."""
        self.tidy()
        if self._usage >= 0:
            os.close(self._usage)
            self._usage = -1
        self._remove()

    def _remove(self) -> None:
        end = time.monotonic() + _REMOVE_SECONDS
        for folder in {group.folder for group in self._groups.values()}:
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:  # its last process is still on its way out
                    if time.monotonic() < end:
                        time.sleep(0.01)
                        continue
                break
        self._groups.clear()


def _made(controller: str, own: Mapping[str, Hierarchy], name: str) -> Hierarchy:
    """A group of ``controller`` below this process's own. Raises OSError."""
    names = [name for name in (controller, "") if name in own]
    if not names:
        raise OSError(0, "no control groups here")
    parent = own[names[0]]
    if parent.version == 2:
        _switch_on(controller, parent.folder)
    _sweep(parent.folder)
    group = Hierarchy(parent.version, parent.folder / name)
    group.folder.mkdir(exist_ok=True)
    return group


def _switch_on(controller: str, folder: Path) -> None:
    """Raises OSError where the controller is not to be had for children of this group."""
    if controller not in (folder / "cgroup.controllers").read_text().split():
        raise OSError(0, f"the {controller} controller is not delegated to this group")
    switches = folder / "cgroup.subtree_control"
    if controller not in switches.read_text().split():
        switches.write_text(f"+{controller}")  # refused where the group has processes of its own


def _sweep(parent: Path) -> None:
    """Remove what processes that were killed have left."""
    for folder in parent.glob("rlreason-*"):
        made = _NAME.fullmatch(folder.name)
        if made is not None and not os.path.exists(f"/proc/{made[1]}"):
            with contextlib.suppress(OSError):
                folder.rmdir()

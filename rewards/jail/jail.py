"""The jail: untrusted programs in processes that can see, reach and use little, on the user's own machine.

Layers (each probed, see ``capabilities``): user, pid, mount, net, ipc and uts namespaces with a read-only view of the
interpreter and a private /tmp of limited size; Landlock; seccomp; no_new_privs; resource limits; a user of its own
when started by root; a watch over the memory of all processes of a run. A zygote interpreter takes the shared layers
once and forks per run. Where namespaces are refused, a program runs under Landlock and seccomp as one single process
that can write nowhere.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from rlreason.rewards.jail.cgroup import Cgroup
from rlreason.rewards.jail.confine import LAYERS, NAMESPACES
from rlreason.rewards.jail.outer import Outer, OuterMissing, command
from rlreason.rewards.jail.record import RECORD, Order
from rlreason.rewards.jail.run import LayerDenied, Report, Run, RunLost, open_ends, pump

Require = Literal["full", "best", "unsafe"]

_START_SECONDS = 60.0
_END_SECONDS = 5.0
#: Of a jail itself: who waits, the zygote, and those that are on their way out.
_SPARE_PROCESSES = 16
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
#: Threads would reserve 64 MB of address space each for their heaps.
_ENVIRONMENT["MALLOC_ARENA_MAX"] = "1"
#: So would numpy's, one for each processor of the host.
_ENVIRONMENT |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
#: Not -I, which would ignore the hash seed: -s, -P and an empty environment are the rest of it.
_FLAGS = ("-s", "-S", "-P", "-B")
_BOOT = """
import sys, types
for name in ("rlreason", "rlreason.rewards", "rlreason.rewards.jail"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["rlreason.rewards.jail"].__path__ = [{folder!r}]
from rlreason.rewards.jail.zygote import main
main({control}, {off!r}, {namespaces}, {visible!r})
"""
#: Without namespaces, these have to hold for ``require="best"``.
_NEXT_BEST = ("landlock", "seccomp", "no_new_privs", "rlimits")


#: By level: what its layers can't refuse. A test holds docs/sandbox.md against it.
_REMARKS: dict[str, tuple[str, ...]] = {
    "namespaces": ("names looked up below /usr stay in the kernel's cache until it needs the memory",),
    "landlock": (
        "a program sees whether a path of the host exists, with its size, times and permissions",
        "names looked up anywhere stay in the kernel's cache until it needs the memory",
    ),
    "none": ("programs are not isolated",),
}


class JailUnavailable(Exception):
    """This host can't give the isolation that was required; the message says what is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one program may use. Example: ``Limits(wall_seconds=2.0, memory_mb=256)``.

    ``wall_seconds`` and ``cpu_seconds`` (of all processes together) are for one case, ``total_seconds`` of wall time
    for all cases of a program.
    ``memory_mb`` bounds each process's address space and the memory of all processes together, without ``tmp_mb``
    of files. ``processes`` counts threads too. ``output_bytes`` is for one case's output; a result that
    crosses as data may take a quarter of it.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 10.0
    total_seconds: float = 60.0
    memory_mb: int = 512
    processes: int = 32
    file_mb: int = 16
    tmp_mb: int = 64
    output_bytes: int = 16 << 20
    open_files: int = 64

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"limit {name} must be positive, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the jail can enforce on this host.

    Example: ``Capabilities(level="namespaces", layers={"seccomp": "", "landlock": "Landlock: Function not ..."})``.
    """

    level: Literal["namespaces", "landlock", "none"]
    #: Layer to "" where it holds, else the reason why it does not.
    layers: Mapping[str, str]
    #: The same of what comes on top where it can be had, and what no level asks for.
    extras: Mapping[str, str] = field(default_factory=dict)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a program at this level can do that it should not."""
        return _REMARKS[self.level]

    @property
    def missing(self) -> Mapping[str, str]:
        """Layers that do not hold, with the reason."""
        return {layer: reason for layer, reason in self.layers.items() if reason}

    @property
    def rank(self) -> int:
        """Higher with a better level."""
        return ("none", "landlock", "namespaces").index(self.level)

    def allows(self, require: Require) -> bool:
        """Whether this is enough for ``require``."""
        if require == "full":
            return not self.missing
        return require == "unsafe" or self.level != "none"

    def __str__(self) -> str:
        holds = ", ".join(layer for layer, reason in self.layers.items() if not reason)
        lacks = "".join(f"\n  without {layer}: {reason}" for layer, reason in self.missing.items())
        more = "".join(f"\n  without {name}: {why}" if why else f"\n  with {name}" for name, why in self.extras.items())
        remarks = "".join(f"\n  note: {remark}" for remark in self.remarks)
        return f"level {self.level}: {holds or 'nothing holds'}{lacks}{more}{remarks}"


class Jail:
    """A zygote, started at once, with the best isolation that the host allows. One check at a time.

    ``visible``: absolute paths that programs may read besides the interpreter and the system, at their own places
    (packages); what the zygote's user can't read is left out. ``off`` switches layers off, for tests of the others
    only. ``outer``: a wall around all of it, see ``outer``. Raises JailUnavailable where no zygote starts.
    """

    def __init__(self, *, off: Collection[str] = (), visible: tuple[str, ...] = (), outer: Outer = "") -> None:
        self.visible = visible
        self.outer: Outer = outer
        try:
            self._before = command(outer, visible)
        except OuterMissing as error:
            raise JailUnavailable(str(error)) from None
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._owner: tuple[int, int] | None = None
        #: The longest that a run of the present lease which had to be ended was kept from a processor.
        self.waited_seconds = 0.0
        self._cgroup = None if "cgroup" in off else Cgroup()
        self.capabilities = self._settle({layer: "switched off" for layer in off if layer in LAYERS})

    def _settle(self, off: dict[str, str]) -> Capabilities:
        """Start with everything; leave out what the host denies, one layer after the other."""
        namespaces = "user_namespace" not in off  # the others need it
        why_none = ""
        while True:
            try:
                layers = self._start(off, namespaces=namespaces)
                self._try_out()
                break
            except LayerDenied as error:
                self._stop()
                if error.layer == "" or error.layer in off:
                    self.close()
                    raise JailUnavailable(f"no program can be started: {error}") from error
                if error.layer in NAMESPACES:
                    namespaces, why_none = False, str(error)
                else:
                    off[error.layer] = str(error)
            except RunLost as error:
                self._stop()
                if not namespaces:
                    self.close()
                    raise JailUnavailable(f"the zygote does not start: {error}") from error
                namespaces, why_none = False, str(error)
        for layer in layers:
            if layer in off:
                layers[layer] = off[layer]
            elif layer in NAMESPACES and why_none:
                layers[layer] = why_none
        fallback = all(layers[layer] == "" for layer in _NEXT_BEST)
        confined = all(layers[layer] == "" for layer in ("mount_namespace", "pid_namespace", *_NEXT_BEST[1:]))
        level: Literal["namespaces", "landlock", "none"]
        level = "namespaces" if confined else "landlock" if fallback else "none"
        return Capabilities(level=level, layers=layers, extras=self._extras())

    def _extras(self) -> dict[str, str]:
        missing = {"": "switched off"} if self._cgroup is None else self._cgroup.missing
        extras = {"cgroup": "; ".join(f"{name}: {why}" if name else why for name, why in missing.items())}
        return extras | ({self.outer: ""} if self.outer else {})

    def _start(self, off: Collection[str], *, namespaces: bool) -> dict[str, str]:
        ours, theirs = socket.socketpair()
        boot = _BOOT.format(
            folder=str(Path(__file__).resolve().parent),
            control=theirs.fileno(),
            off=sorted(off),
            namespaces=namespaces,
            visible=list(self.visible),
        )
        with theirs:
            self._process = subprocess.Popen(
                [
                    *self._before,
                    os.path.realpath(sys.executable) if self._before else sys.executable,
                    *_FLAGS,
                    "-c",
                    boot,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,  # Ctrl-C is the trusted process's to handle
            )
        if self._cgroup is not None:
            self._cgroup.take(self._process.pid)  # long before the interpreter has started, and forks
        self._control = ours
        ours.settimeout(_START_SECONDS)
        try:
            record = ours.recv(RECORD, socket.MSG_WAITALL)
        except OSError as error:
            raise RunLost(f"no sign of life: {error}") from error
        ours.settimeout(None)
        if len(record) < RECORD:
            raise RunLost(f"exit status {self._process.wait()}")
        answer = json.loads(record)
        if "failed" in answer:
            raise RunLost(answer["failed"])
        uid, gid = answer["user"]
        self._owner = (uid, gid) if os.geteuid() == 0 and uid != 0 else None
        return {layer: str(answer["layers"][layer]) for layer in LAYERS}

    def _try_out(self) -> None:
        """One empty program: layers that are taken in the child show here whether they can be."""
        run = self.spawn(Limits())
        try:
            run.feed(b"")
            run.send(["stdin", ""])
            pump([run], time.monotonic() + _START_SECONDS, lambda: run.report is not None)
        finally:
            run.close()
        assert run.report is not None
        if run.report.exit_code != 0:
            raise RunLost(f"an empty program ended with {run.report}: {run.stderr.decode(errors='replace')[-300:]}")

    def spawn(self, limits: Limits, *, cpu_seconds: float | None = None) -> Run:
        """Fork a child that waits for its job on the channel. ``cpu_seconds`` if not for one case alone."""
        assert self._control is not None
        if self._cgroup is not None:  # a program, and the tests' process beside it
            self._cgroup.limit(2 * (limits.memory_mb + limits.tmp_mb) << 20, 2 * limits.processes + _SPARE_PROCESSES)
        ends, theirs = open_ends(self._owner)
        run = Run(ends=ends, output_bytes=limits.output_bytes)
        run.on_report = self._hear
        order = Order(
            memory_mb=limits.memory_mb,
            cpu_seconds=math.ceil(cpu_seconds or limits.cpu_seconds),
            processes=limits.processes,
            file_mb=limits.file_mb,
            tmp_mb=limits.tmp_mb,
            open_files=limits.open_files,
        )
        try:
            socket.send_fds(self._control, [order.encode()], theirs)
        except OSError as error:
            with contextlib.suppress(RunLost):
                run.close()
            raise RunLost(f"the zygote died: {error}") from error
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return run

    def _hear(self, report: Report) -> None:
        if report.killed == "told":
            self.waited_seconds = max(self.waited_seconds, report.waited_seconds)

    @property
    def alive(self) -> bool:
        """Whether the zygote still runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the zygote."""
        assert self._process is not None
        return self._process.pid

    def tidy(self) -> None:
        """After a check: what the host still keeps of it goes, where that can be had."""
        if self._cgroup is not None:
            self._cgroup.tidy()

    def close(self) -> None:
        """End the zygote and every run with it."""
        self._stop()
        if self._cgroup is not None:
            self._cgroup.close()

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # it ends by itself, after all that it started
                self._process.wait(_END_SECONDS)
            self._process.kill()
            self._process.wait()
            self._process = None


_idle: list[tuple[int, Jail]] = []
_lock = threading.Lock()


@contextlib.contextmanager
def leased(require: Require = "best", visible: tuple[str, ...] = (), outer: Outer = "") -> Iterator[Jail]:
    """A jail for one check, from those that are idle in this process or a new one. Raises JailUnavailable.

    ``visible``, ``outer``: see ``Jail``.
    """
    capable = capabilities(outer) if outer else capabilities()
    if not capable.allows(require):
        raise JailUnavailable(f'require="{require}" is not met on this host; {capable}')
    with _lock:
        # A jail of the process that this one was forked from is not ours to use.
        mine = [
            entry
            for entry in _idle
            if entry[0] == os.getpid() and (entry[1].visible, entry[1].outer) == (visible, outer)
        ]
        jail = None
        if mine:
            _idle.remove(mine[-1])
            jail = mine[-1][1]
    if jail is None or not jail.alive:
        jail = Jail(visible=visible, outer=outer)
    if not jail.capabilities.allows(require) or jail.capabilities.rank < capable.rank:
        found = jail.capabilities
        jail.close()  # what this one shows its programs is in the way of a layer that the host has
        raise JailUnavailable(f'require="{require}" is not met by a jail that shows {list(visible)}; {found}')
    jail.waited_seconds = 0.0
    try:
        yield jail
    except RunLost:
        jail.close()
        raise
    finally:
        jail.tidy()
        if jail.alive:
            with _lock:
                _idle.append((os.getpid(), jail))


@atexit.register
def close_all() -> None:
    """End the idle zygotes of this process."""
    with _lock:
        for owner, jail in _idle:
            if owner == os.getpid():
                jail.close()
        _idle.clear()


@lru_cache
def capabilities(outer: Outer = "") -> Capabilities:
    """Which layers of the jail hold on this host, within an outer wall if that is named; probed once.

    Raises JailUnavailable where nothing can run at all.
    """
    jail = Jail(outer=outer)
    with _lock:
        _idle.append((os.getpid(), jail))
    return jail.capabilities

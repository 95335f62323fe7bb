"""The zygote: a warm interpreter that confines itself once and forks one jailed child per run.

It never sees a program, a test or a result: those travel over the run's own descriptors, between the trusted process
and the child. Protocol, in fixed records of JSON on a stream socket: at boot the zygote sends which layers hold. Per
run the trusted process sends the limits with five descriptors: standard input, output, error, the run's channel, the
run's status socket. On the status socket comes one record when the run has ended (before it one with ``failed`` if the
jail did not close); a byte to it, or its end of file, kills the run. End of file on the main socket kills everything.
Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlreason.rewards.jail import judge as jail_judge  # noqa: F401  # the children's; the folder is out of sight later
from rlreason.rewards.jail import linux
from rlreason.rewards.jail.confine import Confinement, LayerError, confine, enter
from rlreason.rewards.jail.driver import drive
from rlreason.rewards.jail.record import RECORD, encode_record

CHANNEL = 3  # descriptor of the run's channel in the child
_WATCH_SECONDS = 0.025
#: Imported before the first fork: what solutions import most, so that no run pays for it.
_WARM = str.split(
    "encodings.ascii encodings.latin_1 encodings.idna encodings.utf_16 abc array ast base64 bisect cmath "
    "collections collections.abc contextlib copy dataclasses datetime decimal enum fractions functools hashlib "
    "heapq inspect io itertools json math numbers operator queue random re statistics string struct textwrap "
    "threading time traceback types typing unicodedata warnings zlib"
)
#: Imported too where a root's own interpreter may be out of reach for the user that programs run as.
_OUT_OF_REACH = str.split(
    "asyncio calendar concurrent.futures csv difflib glob gzip locale logging multiprocessing multiprocessing.pool "
    "pathlib pickle pprint secrets selectors shutil subprocess tempfile timeit unittest unittest.mock uuid zoneinfo"
)


@dataclass(slots=True, eq=False)
class _Run:
    """One child under way."""

    pid: int
    status: socket.socket
    memory_mb: int
    next_look: float
    #: "": not killed; "told": by the trusted process; "memory": it grew too large.
    killed: str = ""


class Zygote:
    """Serves runs until its socket closes. ``serve`` returns in each child, confined, and never in the zygote."""

    def __init__(self, control: socket.socket, state: Confinement) -> None:
        self._control = control
        self._state = state
        self._runs: list[_Run] = []
        # Its read end tells a child whether the zygote lives.
        self._lifeline, self._hold = os.pipe()
        self._wakeup, write = os.pipe()
        for descriptor in (self._wakeup, write):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._base_pages = _anonymous_pages(os.getpid())

    def serve(self) -> None:
        """Fork a child per order and look after it."""
        while True:
            watched: list[Any] = [self._control, self._wakeup, *(r.status for r in self._runs if not r.killed)]
            ready = select.select(watched, [], [], self._patience())[0]
            if self._wakeup in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            for run in list(self._runs):
                if run.status in ready and not run.killed:
                    self._kill(run, "told")
                self._look_after(run)
            if self._control in ready and self._take_order():
                return

    def _patience(self) -> float | None:
        looks = [run.next_look for run in self._runs if not run.killed]
        if not looks or not self._state.holds("memory_watch"):
            return None
        return max(0.0, min(looks) - time.monotonic())

    def _look_after(self, run: _Run) -> None:
        """Report the run if it has ended, kill it if it has grown too large."""
        pid, code, usage = os.wait4(run.pid, os.WNOHANG)
        if pid:
            report = {
                "exit": os.waitstatus_to_exitcode(code),
                "killed": run.killed,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "memory_kb": usage.ru_maxrss,
            }
            with contextlib.suppress(OSError):
                run.status.sendall(encode_record(report))
            run.status.close()
            self._runs.remove(run)
        elif self._state.holds("memory_watch") and not run.killed and time.monotonic() >= run.next_look:
            if _too_large(run, self._base_pages):
                self._kill(run, "memory")
            run.next_look = time.monotonic() + _WATCH_SECONDS

    def _kill(self, run: _Run, reason: str) -> None:
        """The child is the init of its pid namespace, or may not fork: its whole tree goes with it."""
        run.killed = reason
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, signal.SIGKILL)
        if not self._state.holds("pid_namespace"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(run.pid, signal.SIGKILL)

    def _take_order(self) -> bool:
        """True in the child. The zygote ends, and with it every run, when the trusted process has gone."""
        try:
            record, descriptors, _, _ = socket.recv_fds(self._control, RECORD, 5)
            while record and len(record) < RECORD:
                more = self._control.recv(RECORD - len(record))
                record = record + more if more else b""
        except OSError:
            record = b""
        if not record:
            for run in self._runs:
                self._kill(run, "told")
            os._exit(0)
        order = json.loads(record)
        if self._state.home_pid_namespace >= 0:
            linux.setns(self._state.home_pid_namespace, linux.CLONE_NEWPID)
            linux.unshare(linux.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            self._become_child(order, descriptors)
            return True
        for descriptor in descriptors[:4]:
            os.close(descriptor)
        status = socket.socket(fileno=descriptors[4])
        self._runs.append(_Run(pid, status, order["memory_mb"], time.monotonic() + 2 * _WATCH_SECONDS))
        return False

    def _become_child(self, order: Mapping[str, int], descriptors: list[int]) -> None:
        """Only the run's own descriptors stay open; then the jail closes, or the child says why not and ends."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        moved = [_dup_above(descriptor) for descriptor in (*descriptors, self._lifeline)]
        for place, descriptor in enumerate(moved[:4]):
            os.dup2(descriptor, place, inheritable=place < CHANNEL)
        lifeline, status = CHANNEL + 1, CHANNEL + 2
        os.dup2(moved[5], lifeline, inheritable=False)
        os.dup2(moved[4], status, inheritable=False)
        os.closerange(status + 1, 1 << 20)
        try:
            enter(self._state, order)
        except BaseException as error:
            layer = error.layer if isinstance(error, LayerError) else ""
            os.write(status, encode_record({"failed": f"{type(error).__name__}: {error}"[:500], "layer": layer}))
            os._exit(1)
        # The zygote may have died before the child asked to die with it.
        if select.select([lifeline], [], [], 0)[0]:
            os._exit(1)
        os.close(lifeline)
        os.close(status)


def _dup_above(descriptor: int) -> int:
    """A copy with a number that no later ``dup2`` of ``_become_child`` overwrites."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, CHANNEL + 3)


def _anonymous_pages(pid: int) -> int:
    """Resident pages of ``pid`` that belong to no file. 0 when it has gone or /proc is not there."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            fields = file.read().split()
    except OSError:
        return 0
    return max(0, int(fields[1]) - int(fields[2]))


def _tree(pid: int) -> list[int]:
    """``pid`` and all its descendants."""
    found = [pid]
    for one in found:
        try:
            for task in os.listdir(f"/proc/{one}/task"):
                with open(f"/proc/{one}/task/{task}/children", "rb") as file:
                    found += map(int, file.read().split())
        except OSError:
            continue
    return found


def _own_share(pid: int) -> int:
    """Anonymous bytes of ``pid``, pages shared after a fork counted by their share. 0 where it can't be read."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss_Anon:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _too_large(run: _Run, base_pages: int) -> bool:
    """Whether the run's processes hold more than its memory limit together."""
    tree = _tree(run.pid)
    page, limit = resource.getpagesize(), run.memory_mb << 20
    if sum(max(0, _anonymous_pages(pid) - base_pages) for pid in tree) * page <= limit:
        return False
    shares = [_own_share(pid) for pid in tree]
    return sum(shares) > limit or not any(shares)


def main(control_fd: int, off: list[str], namespaces: bool) -> None:
    """Confine this process, report, serve."""
    control = socket.socket(fileno=control_fd)
    try:
        for name in _WARM if namespaces or os.getuid() else _WARM + _OUT_OF_REACH:
            importlib.import_module(name)
        sys.path[:] = [path for path in sys.path if os.path.isdir(path)]
        sys.executable = os.path.realpath(sys.executable)
        state = confine(off, namespaces=namespaces)
        if sys.platform.startswith("linux"):
            linux.set_dumpable(on=False)
    except Exception as error:
        control.sendall(encode_record({"failed": f"{type(error).__name__}: {error}"[:500]}))
        return
    gc.collect()
    gc.freeze()
    gc.disable()
    control.sendall(encode_record({"layers": state.layers, "user": state.host_user}))
    Zygote(control, state).serve()
    # From here on in a jailed child. The zygote's frames are gone.
    control.detach()
    gc.enable()
    drive(CHANNEL)

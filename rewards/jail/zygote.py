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
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from rlreason.rewards.jail import judge as jail_judge  # noqa: F401  # the children's; the folder is out of sight later
from rlreason.rewards.jail import linux
from rlreason.rewards.jail.confine import Confinement, LayerError, confine, enter
from rlreason.rewards.jail.driver import drive
from rlreason.rewards.jail.record import RECORD, encode_record
from rlreason.rewards.jail.watch import Watch, anonymous_pages, waited_seconds

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
    number: int
    status: socket.socket
    watch: Watch
    next_look: float
    #: "": not killed; "told": by the trusted process; "memory", "cpu": it took too much.
    killed: str = ""
    waited_seconds: float = 0.0


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
        # Where a child leaves the descriptor on which it will ask for shared memory.
        self._asks, self._asking = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._asks.setblocking(False)
        self._started = 0
        self._base_pages = anonymous_pages(os.getpid())

    def serve(self) -> None:
        """Fork a child per order and look after it."""
        while True:
            ready = self._wait()
            if self._wakeup in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
            self._take_listeners()
            for run in list(self._runs):
                if run.status.fileno() in ready and not run.killed:
                    self._kill(run, "told")
                if run.watch.listener in ready and not run.killed and (reason := run.watch.grant()):
                    self._kill(run, reason)
                self._look_after(run)
            if self._control.fileno() in ready and self._take_order():
                return

    def _wait(self) -> set[int]:
        """Descriptors that have something to read, or have ended. Not those on which nobody can ask any more."""
        poll, ready = select.poll(), set()
        for descriptor in (self._control.fileno(), self._wakeup):
            poll.register(descriptor, select.POLLIN)
        for run in self._runs:
            if not run.killed:
                poll.register(run.status, select.POLLIN)
                if run.watch.listener >= 0:
                    poll.register(run.watch.listener, select.POLLIN)
        patience = self._patience()
        for descriptor, events in poll.poll(None if patience is None else math.ceil(1000 * patience)):
            ready.add(descriptor)
            for run in self._runs:
                if run.watch.listener == descriptor and not events & select.POLLIN:
                    run.watch.close()
        return ready

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
                "waited_seconds": run.waited_seconds,
            }
            with contextlib.suppress(OSError):
                run.status.sendall(encode_record(report))
            run.status.close()
            run.watch.close()
            self._runs.remove(run)
        elif self._state.holds("memory_watch") and not run.killed and time.monotonic() >= run.next_look:
            if reason := run.watch.look():
                self._kill(run, reason)
            run.next_look = time.monotonic() + _WATCH_SECONDS

    def _kill(self, run: _Run, reason: str) -> None:
        """The child is the init of its pid namespace, or may not fork: its whole tree goes with it."""
        run.killed = reason
        run.waited_seconds = waited_seconds(run.pid)
        run.watch.close()  # a call that waits for an answer gets an error, and the process its signal
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
        self._started += 1
        pid = os.fork()
        if pid == 0:
            self._become_child(order, descriptors)
            return True
        for descriptor in descriptors[:4]:
            os.close(descriptor)
        status = socket.socket(fileno=descriptors[4])
        watch = Watch(
            pid=pid, memory_mb=order["memory_mb"], cpu_seconds=order["cpu_seconds"], base_pages=self._base_pages
        )
        self._runs.append(_Run(pid, self._started, status, watch, time.monotonic() + 2 * _WATCH_SECONDS))
        return False

    def _take_listeners(self) -> None:
        """Keep the descriptors that children have left, each with its run.

        At each turn: nobody is woken for it. Who asks before the first look at a run waits until then.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                number, descriptors, _, _ = socket.recv_fds(self._asks, 32, 1)
                for descriptor in descriptors:
                    for run in self._runs:
                        if run.number == int(number) and not run.killed:
                            run.watch.listener = descriptor
                            break
                    else:
                        os.close(descriptor)

    def _become_child(self, order: Mapping[str, int], descriptors: list[int]) -> None:
        """Only the run's own descriptors stay open; then the jail closes, or the child says why not and ends."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        moved = [_dup_above(descriptor) for descriptor in (*descriptors, self._lifeline, self._asking.fileno())]
        for place, descriptor in enumerate(moved[:4]):
            os.dup2(descriptor, place, inheritable=place < CHANNEL)
        lifeline, status, asking = CHANNEL + 1, CHANNEL + 2, CHANNEL + 3
        os.dup2(moved[5], lifeline, inheritable=False)
        os.dup2(moved[4], status, inheritable=False)
        os.dup2(moved[6], asking, inheritable=False)
        os.closerange(asking + 1, 1 << 20)
        try:
            listener = enter(self._state, order)
            if listener >= 0:
                with socket.socket(fileno=os.dup(asking)) as channel:
                    socket.send_fds(channel, [str(self._started).encode()], [listener])
                os.close(listener)
            os.close(asking)
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
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, CHANNEL + 4)


def main(control_fd: int, off: list[str], namespaces: bool, visible: list[str]) -> None:
    """Confine this process, report, serve."""
    control = socket.socket(fileno=control_fd)
    try:
        for name in _WARM if namespaces or os.getuid() else _WARM + _OUT_OF_REACH:
            importlib.import_module(name)
        sys.path[:] = [path for path in sys.path if os.path.isdir(path)]
        sys.executable = os.path.realpath(sys.executable)
        state = confine(off, namespaces=namespaces, visible=visible)
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

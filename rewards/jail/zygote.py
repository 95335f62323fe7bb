"""The zygote: a warm interpreter that confines itself once and forks one jailed child per run.

It never sees a program, a test or a result: those travel over the run's own descriptors, between the trusted process
and the child. Protocol, in records of fixed size on a stream socket: at boot the zygote sends which layers hold. Per
run the trusted process sends an ``Order`` with five descriptors: standard input, output, error, the run's channel, the
run's status socket. On the status socket comes an "E" and an ``Ended`` when the run has ended, before it an "F" and a
record of texts if the jail did not close; a byte to it, or its end of file, kills the run. End of file on the main
socket kills everything.

Every page that is written after a fork is a copy: what is called once per run is kept short.
Standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass

from rlreason.rewards.jail import judge as jail_judge  # noqa: F401  # the children's; the folder is out of sight later
from rlreason.rewards.jail import linux
from rlreason.rewards.jail.confine import Confinement, LayerError, confine, enter
from rlreason.rewards.jail.driver import drive
from rlreason.rewards.jail.record import ORDER_BYTES, Ended, Order, encode_record
from rlreason.rewards.jail.watch import Watch, anonymous_pages, waited_seconds

CHANNEL = 3  # descriptor of the run's channel in the child
_WATCH_SECONDS = 0.025
#: Where the kernel does not tell when a child ends, it is looked for.
_END_SECONDS = 0.005
#: Imported before the first fork: what solutions import most, so that no run pays for it.
_WARM = str.split(
    "encodings.ascii encodings.latin_1 encodings.idna encodings.utf_16 abc array ast base64 bisect cmath "
    "collections collections.abc contextlib copy dataclasses datetime decimal enum fractions functools "
    "heapq inspect io itertools json math numbers operator queue random re statistics string struct textwrap "
    "threading time traceback types typing unicodedata warnings zlib"
)
#: Imported too where a root's own interpreter may be out of reach for the user that programs run as.
_OUT_OF_REACH = str.split(
    "asyncio calendar concurrent.futures csv difflib glob gzip hashlib locale logging multiprocessing "
    "multiprocessing.pool pathlib pickle pprint secrets selectors shutil subprocess tempfile timeit unittest "
    "unittest.mock uuid zoneinfo"
)


@dataclass(slots=True, eq=False)
class _Run:
    """One child under way."""

    pid: int
    number: int
    #: Readable when the child has ended; -1 where the kernel has no such thing.
    end: int
    status: int
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
        # A child puts its own descriptors there, and must overwrite none that it needs.
        while os.dup(0) < CHANNEL:
            pass
        # Its read end tells a child whether the zygote lives.
        self._lifeline, self._hold = os.pipe()
        # Where a child leaves the descriptor on which it will ask for shared memory.
        self._asks, self._asking = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._asks.setblocking(False)
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._started = 0
        #: Runs of which no descriptor has come: it may still.
        self._unheard: set[int] = set()
        self._base_pages = anonymous_pages(os.getpid())

    def serve(self) -> None:
        """Fork a child per order and look after it."""
        while True:
            ready = self._wait()
            self._take_listeners()
            for run in list(self._runs):
                if run.status in ready and not run.killed:
                    self._kill(run, "told")
                if run.watch.listener in ready and not run.killed:
                    self._grant(run)
                self._look_after(run, ended=run.end < 0 or run.end in ready)
            if self._control.fileno() in ready and self._take_order():
                return

    def _wait(self) -> set[int]:
        """Descriptors that have something to read, or have ended. Not those on which nobody can ask any more."""
        ready = set()
        patience = self._patience()
        for descriptor, events in self._poll.poll(None if patience is None else math.ceil(1000 * patience)):
            ready.add(descriptor)
            if not events & select.POLLIN:
                for run in self._runs:
                    if run.watch.listener == descriptor:
                        self._deafen(run)
        return ready

    def _patience(self) -> float | None:
        ends = [_END_SECONDS] if any(run.end < 0 for run in self._runs) else []
        looks = [run.next_look for run in self._runs if not run.killed]
        if looks and self._state.holds("memory_watch"):
            ends.append(max(0.0, min(looks) - time.monotonic()))
        return min(ends, default=None)

    def _grant(self, run: _Run) -> None:
        listener = run.watch.listener
        reason = run.watch.grant()
        if run.watch.listener < 0:  # it has closed
            self._poll.unregister(listener)
        if reason:
            self._kill(run, reason)

    def _deafen(self, run: _Run) -> None:
        """Nobody asks for shared memory any more."""
        if run.watch.listener >= 0:
            self._poll.unregister(run.watch.listener)
            run.watch.close()

    def _look_after(self, run: _Run, *, ended: bool) -> None:
        """Report the run if it has ended, kill it if it has grown too large."""
        pid, code, usage = os.wait4(run.pid, os.WNOHANG) if ended else (0, 0, None)
        if usage is not None and pid:
            report = Ended(
                os.waitstatus_to_exitcode(code),
                run.killed,
                usage.ru_utime + usage.ru_stime,
                usage.ru_maxrss,
                run.waited_seconds,
            )
            with contextlib.suppress(OSError):
                os.write(run.status, b"E" + report.encode())
            self._deafen(run)
            if not run.killed:
                self._poll.unregister(run.status)
            os.close(run.status)
            if run.end >= 0:
                self._poll.unregister(run.end)
                os.close(run.end)
            self._unheard.discard(run.number)
            self._runs.remove(run)
        elif self._state.holds("memory_watch") and not run.killed and time.monotonic() >= run.next_look:
            if reason := run.watch.look():
                self._kill(run, reason)
            run.next_look = time.monotonic() + _WATCH_SECONDS

    def _kill(self, run: _Run, reason: str) -> None:
        """The child is the init of its pid namespace, or may not fork: its whole tree goes with it."""
        run.killed = reason
        run.waited_seconds = waited_seconds(run.pid)
        self._poll.unregister(run.status)
        self._deafen(run)  # a call that waits for an answer gets an error, and the process its signal
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pid, signal.SIGKILL)
        if not self._state.holds("pid_namespace"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(run.pid, signal.SIGKILL)

    def _take_order(self) -> bool:
        """True in the child. The zygote ends, and with it every run, when the trusted process has gone."""
        try:
            record, descriptors = _received(self._control, ORDER_BYTES, 5)
            while record and len(record) < ORDER_BYTES:
                more = self._control.recv(ORDER_BYTES - len(record))
                record = record + more if more else b""
        except OSError:
            record = b""
        if not record:
            for run in self._runs:
                if not run.killed:
                    self._kill(run, "told")
            os._exit(0)
        order = Order.decode(record)
        if self._state.home_pid_namespace >= 0:
            linux.setns(self._state.home_pid_namespace, linux.CLONE_NEWPID)
            linux.unshare(linux.CLONE_NEWPID)
        self._started += 1
        pid = os.fork()
        if pid == 0:
            self._become_child(order, descriptors)
            return True
        if self._state.asks:
            self._unheard.add(self._started)
        for descriptor in descriptors[:4]:
            os.close(descriptor)
        self._follow(pid, descriptors[4], order)
        return False

    def _follow(self, pid: int, status: int, order: Order) -> None:
        watch = Watch(pid=pid, memory_mb=order.memory_mb, cpu_seconds=order.cpu_seconds, base_pages=self._base_pages)
        end = -1
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):  # before Linux 5.3, or refused
                end = linux.pidfd(pid)
        self._runs.append(_Run(pid, self._started, end, status, watch, time.monotonic() + 2 * _WATCH_SECONDS))
        self._poll.register(status, select.POLLIN)
        if end >= 0:
            self._poll.register(end, select.POLLIN)

    def _take_listeners(self) -> None:
        """Keep the descriptors that children have left, each with its run.

        At each turn: nobody is woken for it. Who asks before the first look at a run waits until then.
        """
        try:
            while self._unheard:
                number, descriptors = _received(self._asks, 32, 1)
                self._unheard.discard(int(number))
                for descriptor in descriptors:
                    for run in self._runs:
                        if run.number == int(number) and not run.killed:
                            run.watch.listener = descriptor
                            self._poll.register(descriptor, select.POLLIN)
                            break
                    else:
                        os.close(descriptor)
        except BlockingIOError:
            pass

    def _become_child(self, order: Order, descriptors: list[int]) -> None:
        """Only the run's own descriptors stay open; then the jail closes, or the child says why not and ends."""
        for place, descriptor in enumerate(descriptors[:4]):
            os.dup2(descriptor, place, inheritable=place < CHANNEL)
        status, asking, start = descriptors[4], self._asking.fileno(), CHANNEL + 1
        for descriptor in sorted((self._lifeline, status, asking)):
            os.closerange(start, descriptor)
            start = descriptor + 1
        os.closerange(start, 1 << 20)
        try:
            listener = enter(self._state, order)
            if listener >= 0:
                passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", listener))
                self._asking.sendmsg([b"%d" % self._started], [passed])
                os.close(listener)
            os.close(asking)
        except BaseException as error:
            layer = error.layer if isinstance(error, LayerError) else ""
            os.write(status, b"F" + encode_record({"failed": f"{type(error).__name__}: {error}"[:500], "layer": layer}))
            os._exit(1)
        # The zygote may have died before the child asked to die with it.
        if select.select([self._lifeline], [], [], 0)[0]:
            os._exit(1)
        os.close(self._lifeline)
        os.close(status)


def _received(channel: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """A message with the descriptors that came with it."""
    data, passed, _, _ = channel.recvmsg(size, socket.CMSG_SPACE(4 * most))
    found: list[int] = []
    for _, _, packed in passed:
        found += struct.unpack(f"={len(packed) // 4}i", packed)
    return data, found


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
    zygote = Zygote(control, state)
    zygote.serve()
    # From here on in a jailed child. What is left of the zygote stays: to take it down would cost more.
    gc.enable()
    drive(CHANNEL)

"""The trusted side of one jailed run: feed it, drain it, bound it, end it. Nothing it says is believed here."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.record import ENDED_BYTES, RECORD, Ended

_CHUNK = 1 << 16
_KEEP_ERRORS = 1 << 16
#: Bounds the lists of a frame: at the default of 16 MB of output, half a million.
_BYTES_PER_LIST = 32
#: A killed run that is not reported by then means a zygote that is gone or stuck.
_GRACE_SECONDS = 10.0


class RunLost(Exception):
    """The jail itself failed; says nothing of the program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a run ended. Example: ``Report(exit_code=0, cpu_seconds=0.004, memory_kb=14000, killed="")``.

    ``exit_code`` negative: ended by that signal. ``killed``: "memory" or "cpu" by the watch over all its processes,
    "told" by the trusted side. ``waited_seconds``: of a killed run, ready but without a processor that was free.
    """

    exit_code: int
    cpu_seconds: float
    memory_kb: int
    killed: str
    waited_seconds: float = 0.0


class Run:
    """A run under way. All descriptors are non-blocking; ``pump`` moves the data."""

    def __init__(self, *, ends: Ends, output_bytes: int) -> None:
        self._ends = ends
        self._output_bytes = output_bytes
        self._status = bytearray()
        self._incoming = bytearray()
        self._sending: dict[int, deque[memoryview]] = {ends.channel: deque()}
        self._open = {ends.stdin, ends.stdout, ends.stderr, ends.channel, ends.status}
        #: Frames that came over the channel and were not taken yet, undecoded.
        self.frames: deque[bytes] = deque()
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.report: Report | None = None
        #: Hears of the report.
        self.on_report: Callable[[Report], None] | None = None
        #: It wrote more than its limit, and is being killed for it.
        self.flooded = False

    # --- what the caller does ---

    def send(self, *frames: list[object]) -> None:
        """Queue frames for the channel."""
        for frame in frames:
            self.send_bytes(jail_data.dumps(frame))

    def send_bytes(self, data: bytes) -> None:
        """Queue one frame that is already encoded; what the channel takes at once has gone."""
        self._sending[self._ends.channel].append(memoryview(struct.pack(">I", len(data)) + data))
        if self._ends.channel in self._open:
            self._write(self._ends.channel)

    def feed(self, data: bytes) -> None:
        """Put all of standard input into its file. To be called before the job is sent: nobody reads it until then."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._ends.stdin, rest) :]
        _seal(self._ends.stdin)
        self._close(self._ends.stdin)

    def kill(self) -> None:
        """End the run with all its processes. ``report`` follows."""
        with contextlib.suppress(OSError):
            os.write(self._ends.status, b"k")

    def close(self) -> None:
        """Kill it if it still runs, wait until it is gone, free the descriptors. Raises RunLost."""
        try:
            if self.report is None and self._ends.status in self._open:
                self.kill()
                if not pump([self], time.monotonic() + _GRACE_SECONDS, lambda: self.report is not None):
                    raise RunLost("a killed run did not end")
        finally:
            for descriptor in list(self._open):
                self._close(descriptor)

    @property
    def drained(self) -> bool:
        """Ended, and everything that it wrote has been read."""
        return self.report is not None and not self._open & {self._ends.stdout, self._ends.stderr}

    # --- what pump needs ---

    def interests(self) -> list[tuple[int, int]]:
        """Descriptors to poll, with their events."""
        wanted = []
        for descriptor in self._open - {self._ends.stdin}:
            events = select.POLLIN
            if self._sending.get(descriptor):
                events |= select.POLLOUT
            wanted.append((descriptor, events))
        return wanted

    def handle(self, descriptor: int, events: int) -> None:
        """Move data for one ready descriptor."""
        if descriptor not in self._open:
            return
        if events & (select.POLLOUT | select.POLLERR) and descriptor in self._sending:
            self._write(descriptor)
        if events & (select.POLLIN | select.POLLHUP) and descriptor in self._open:
            self._read(descriptor)

    def _write(self, descriptor: int) -> None:
        queue = self._sending[descriptor]
        try:
            while queue:
                written = os.write(descriptor, queue[0][: 1 << 20])
                queue[0] = queue[0][written:]
                if not queue[0]:
                    queue.popleft()
        except BlockingIOError:
            return
        except OSError:  # the other side has closed
            queue.clear()

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(descriptor)
            if descriptor == self._ends.status and self.report is None:
                raise RunLost("the zygote died")
            return
        if descriptor == self._ends.status:
            self._take_status(data)
        elif descriptor == self._ends.channel:
            self._take_frames(data)
        elif descriptor == self._ends.stdout:
            self._keep(self.stdout, data, self._output_bytes)
        else:
            self._keep(self.stderr, data, min(_KEEP_ERRORS, self._output_bytes))

    def _keep(self, buffer: bytearray, data: bytes, limit: int) -> None:
        room = limit - len(buffer)
        buffer += data[:room]
        if len(data) > room and buffer is self.stdout:
            self._flood()

    def _flood(self) -> None:
        self.flooded = True
        self.kill()

    def _take_frames(self, data: bytes) -> None:
        if self.flooded:
            return
        self._incoming += data
        while len(self._incoming) >= 4:
            (size,) = struct.unpack_from(">I", self._incoming)
            if size > self._output_bytes:
                self._flood()
                return
            if len(self._incoming) < 4 + size:
                return
            frame = bytes(self._incoming[4 : 4 + size])
            self.frames.append(frame)
            del self._incoming[: 4 + size]
            # Nobody asked for so many; and small lists take far more memory when decoded.
            if len(self.frames) > 1000 or frame.count(b"[") > max(1000, self._output_bytes // _BYTES_PER_LIST):
                self._flood()
                return

    def _take_status(self, data: bytes) -> None:
        self._status += data
        while self._status:
            size = 1 + (ENDED_BYTES if self._status[:1] == b"E" else RECORD)
            if len(self._status) < size:
                return
            record = bytes(self._status[1:size])
            failed = self._status[:1] != b"E"
            del self._status[:size]
            if failed:
                texts = json.loads(record)
                raise LayerDenied(texts["layer"], texts["failed"])
            self.report = Report(**Ended.decode(record)._asdict())
            if self.on_report is not None:
                self.on_report(self.report)

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            os.close(descriptor)


class LayerDenied(RunLost):
    """A layer of the jail did not take effect in the child."""

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(reason)
        self.layer = layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """The trusted side's descriptors of one run."""

    stdin: int
    stdout: int
    stderr: int
    channel: int
    status: int


def open_ends(owner: tuple[int, int] | None) -> tuple[Ends, list[int]]:
    """Our ends, and the child's: standard input, output, error, channel, status.

    ``owner``: user and group to give them to, so that the child can open ``/dev/stdin``. Standard input is a file in
    memory, as with ``program < file``: contest programs ask for its size. The others are pipes, one way only: a program
    that opened its own output for reading would wait for itself.
    """
    opened: list[int] = []
    try:
        stdin_read, stdin_write = _input_file()
        opened += [stdin_read, stdin_write]
        stdout_read, stdout_write = os.pipe()
        opened += [stdout_read, stdout_write]
        stderr_read, stderr_write = os.pipe()
        opened += [stderr_read, stderr_write]
        channel = [end.detach() for end in socket.socketpair()]
        opened += channel
        status = [end.detach() for end in socket.socketpair()]
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    for descriptor, mode in ((stdin_read, 0o400), (stdout_write, 0o200), (stderr_write, 0o200)):
        os.fchmod(descriptor, mode)
        if owner is not None:
            os.fchown(descriptor, *owner)
    ends = Ends(stdin=stdin_write, stdout=stdout_read, stderr=stderr_read, channel=channel[0], status=status[0])
    for descriptor in (stdout_read, stderr_read, channel[0], status[0]):
        os.set_blocking(descriptor, False)
    return ends, [stdin_read, stdout_write, stderr_write, channel[1], status[1]]


def _input_file() -> tuple[int, int]:
    """A nameless file of its own for one run: descriptors to read it, and to write it."""
    if sys.platform == "linux":
        writing = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            writing = os.dup(file.fileno())
    try:
        return os.open(f"/dev/fd/{writing}", os.O_RDONLY | os.O_CLOEXEC), writing
    except OSError:
        os.close(writing)
        raise


def _seal(descriptor: int) -> None:
    """Whatever rights its owner takes, nobody changes the file any more."""
    if sys.platform == "linux":
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)


def pump(runs: Sequence[Run], deadline: float, until: Callable[[], bool]) -> bool:
    """Move data of all ``runs`` until ``until()`` holds (True) or the monotonic ``deadline`` passes (False).

    Raises RunLost when a zygote dies.
    """
    poller, registered = select.poll(), dict[int, tuple[Run, int]]()
    while not until():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        wanted = {descriptor: (run, events) for run in runs for descriptor, events in run.interests()}
        if wanted != registered:
            poller, registered = select.poll(), wanted
            for descriptor, (_, events) in wanted.items():
                poller.register(descriptor, events)
        for descriptor, events in poller.poll(left * 1000 + 1):
            wanted[descriptor][0].handle(descriptor, events)
    return True

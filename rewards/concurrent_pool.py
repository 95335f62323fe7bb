"""A worker process that runs many asynchronous calls at a time, and can be killed: what ``pool`` is for others.

A call that waits past its limit is cancelled. One that holds the event loop up (a plain ``time.sleep`` in an ``async
def``) can't be: then the worker says which it is, is killed, and the others begin anew in a fresh one. Where a worker
dies by itself its calls are tried again one at a time, so that only the one that kills it suffers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait

from rlreason.rewards.pool import Outcome

#: Seconds past its limit after which a call is taken to hold the loop up, and for the worker to say which call does.
_GRACE, _SAY = 1.0, 2.0
#: Seconds for the worker to read what it is sent.
_SEND_SECONDS = 5.0
_START_SECONDS = 120.0
_MAX_FAILED_STARTS = 3
_ATTEMPTS = 2
_BOOT = (
    "import sys; sys.path[:] = {path!r}; "
    "from rlreason.rewards.concurrent_worker import main; main({channel}, {lifeline})"
)


@dataclass(slots=True, eq=False)
class _Call:
    payload: object
    seconds: float
    answer: Future[Outcome] = field(default_factory=Future)
    begun: float = 0.0
    attempts: int = 0
    started: bool = False

    def begin(self) -> bool:
        """False where somebody cancelled it."""
        self.started = self.started or self.answer.set_running_or_notify_cancel()
        self.begun = time.monotonic()
        return self.started

    def settle(self, outcome: Outcome) -> None:
        """Its outcome."""
        if not self.answer.done():
            self.answer.set_result(outcome)


class _Worker:
    """The child with the calls that it has."""

    def __init__(self, job: Callable[..., object], memory_mb: int | None) -> None:
        ours, theirs = socket.socketpair()
        lifeline_theirs, self._lifeline = os.pipe()
        with theirs:
            boot = _BOOT.format(path=sys.path, channel=theirs.fileno(), lifeline=lifeline_theirs)
            self.process = subprocess.Popen(
                [sys.executable, "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(), lifeline_theirs),
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        os.close(lifeline_theirs)
        # Who holds the interpreter up reads nothing: a send that waits is an error, and not a thread that hangs.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_SEND_SECONDS), 0))
        self.channel = Connection(ours.detach())
        self.ready = False
        self.since = time.monotonic()
        #: When it was asked which call holds the loop up; None: it was not.
        self.asked: float | None = None
        self.calls: dict[int, _Call] = {}
        with contextlib.suppress(OSError):
            self.channel.send((job, memory_mb))

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self.channel.close()
        os.close(self._lifeline)


class ConcurrentPool:
    """``ConcurrentPool(job, seconds=limit_of_an_item, concurrency=32)``: ``submit_all(items)`` gives a future of the
    Outcome of each. ``job`` must pickle by name and give an awaitable."""

    def __init__(
        self,
        job: Callable[..., object],
        *,
        seconds: Callable[[object], float],
        concurrency: int = 32,
        memory_mb: int | None = 4096,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"need concurrency >= 1, not {concurrency}")
        self._job, self._seconds, self._concurrency, self._memory_mb = job, seconds, concurrency, memory_mb
        self._waiting: deque[_Call] = deque()
        #: Calls of a worker that died: they run alone.
        self._suspects: deque[_Call] = deque()
        self._worker: _Worker | None = None
        self._failed_starts = 0
        self._numbers = count()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._bell: tuple[socket.socket, socket.socket] | None = None
        self._closing = False

    def submit_all(self, items: Iterable[object]) -> list[Future[Outcome]]:
        """The outcome of each, some time; the futures raise only where the worker does not start."""
        calls = [_Call(item, float(self._seconds(item))) for item in items]
        if not calls:
            return []
        with self._lock:
            self._waiting.extend(calls)
            if self._thread is None:
                self._bell = socket.socketpair()
                self._thread = threading.Thread(target=self._serve, name="asynchronous rewards", daemon=True)
                self._thread.start()
            self._ring()
        return [call.answer for call in calls]

    def close(self) -> None:
        """End the worker; what is under way is cancelled. A later item starts a new one."""
        with self._lock:
            thread, self._closing = self._thread, True
            if thread is not None:
                self._ring()
        if thread is not None:
            thread.join()
        self._closing = False

    def _ring(self) -> None:
        assert self._bell is not None
        self._bell[0].send(b"!")

    def _serve(self) -> None:
        why: BaseException = RuntimeError("the reward pool was closed")
        try:
            while not self._closing:
                self._hand_out()
                self._collect()
        except BaseException as error:
            why = error
        with self._lock:
            left = [*self._waiting, *self._suspects, *(self._worker.calls.values() if self._worker else ())]
            self._waiting.clear()
            self._suspects.clear()
            if self._worker is not None:
                self._worker.stop()
            self._worker = None
            assert self._bell is not None
            for end in self._bell:
                end.close()
            self._thread, self._bell = None, None
        for call in left:
            if call.begin() and not call.answer.done():
                call.answer.set_exception(why)

    def _hand_out(self) -> None:
        if self._worker is None and (self._waiting or self._suspects):
            self._worker = _Worker(self._job, self._memory_mb)
        worker = self._worker
        while worker is not None and worker.ready and (call := self._next(len(worker.calls))) is not None:
            if not call.begin():
                continue
            number = next(self._numbers)
            worker.calls[number] = call
            try:
                worker.channel.send(("call", number, call.payload, call.seconds))
            except OSError:
                self._lost(worker)
                return

    def _next(self, under_way: int) -> _Call | None:
        """The next call that may begin beside ``under_way`` others: a suspect alone."""
        if self._suspects:
            return self._suspects.popleft() if not under_way else None
        with self._lock:
            return self._waiting.popleft() if self._waiting and under_way < self._concurrency else None

    def _collect(self) -> None:
        assert self._bell is not None
        bell, worker = self._bell[1], self._worker
        deadline = None if worker is None else self._deadline(worker)
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        if worker is None and (self._suspects or self._waiting):  # it was lost while it was given something
            patience = 0.0
        if bell in wait([bell, *([worker.channel] if worker else [])], timeout=patience):
            bell.recv(4096)
        if worker is None:
            return
        try:
            while worker.channel.poll():
                self._heard(worker, worker.channel.recv())
                if self._worker is not worker:
                    return
        except (EOFError, OSError):
            self._lost(worker)
            return
        deadline = self._deadline(worker)
        if deadline is not None and time.monotonic() > deadline:
            self._overdue(worker)

    def _deadline(self, worker: _Worker) -> float | None:
        """When something is wrong with the worker if it has said nothing more."""
        if not worker.ready:
            return worker.since + _START_SECONDS
        if worker.asked is not None:
            return worker.asked + _SAY
        return min((call.begun + call.seconds + _GRACE for call in worker.calls.values()), default=None)

    def _heard(self, worker: _Worker, message: tuple[object, ...]) -> None:
        match message:
            case ("ready",):
                worker.ready, self._failed_starts = True, 0
            case ("done", int() as number, fine, value) if number in worker.calls:
                call = worker.calls.pop(number)
                took = time.monotonic() - call.begun
                call.settle(
                    Outcome(value=value, seconds=took)
                    if fine
                    else Outcome(failure="raised", detail=str(value), seconds=took)
                )
                worker.asked = None
            case ("late", int() as number) if number in worker.calls:
                _expire(worker.calls.pop(number))
                worker.asked = None
            case ("at", int() as number) if worker.asked is not None:
                self._kill(worker, [number] if number in worker.calls else _guilty(worker))

    def _overdue(self, worker: _Worker) -> None:
        if not worker.ready:
            self._lost(worker)
        elif worker.asked is None:
            worker.asked = time.monotonic()
            with contextlib.suppress(OSError):
                worker.channel.send(("who",))
        else:  # not even its reading thread runs: one long C call, of nobody knows whom
            self._kill(worker, _guilty(worker))

    def _kill(self, worker: _Worker, guilty: list[int]) -> None:
        for number in guilty:
            _expire(worker.calls.pop(number))
        left = list(worker.calls.values())
        worker.stop()
        self._worker = None
        if not guilty:  # alone, each shows what it does
            self._suspects.extend(left)
            return
        with self._lock:
            self._waiting.extendleft(reversed(left))

    def _lost(self, worker: _Worker) -> None:
        """It died. One call alone in it is the reason, if it happens again; several become suspects."""
        worker.stop()
        self._worker = None
        status = worker.process.returncode
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                self._failed_starts = 0
                raise RuntimeError(f"reward workers do not start ({sys.executable}, exit {status})")
        alone = len(worker.calls) == 1
        for call in worker.calls.values():
            call.attempts += alone
            if call.attempts >= _ATTEMPTS:
                call.settle(Outcome(failure="crashed", detail=f"its worker process died (exit status {status})"))
            else:
                self._suspects.append(call)


def _guilty(worker: _Worker) -> list[int]:
    """Which call it is where the worker does not say: the one that is alone in it; of several, none is known."""
    return list(worker.calls) if len(worker.calls) == 1 else []


def _expire(call: _Call) -> None:
    seconds = time.monotonic() - call.begun
    call.settle(Outcome(failure="timed_out", detail=f"ran past {call.seconds:g} s", seconds=seconds))

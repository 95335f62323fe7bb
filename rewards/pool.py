"""Worker processes that can be killed: one function over many items, with a hard wall limit for each item.

- Plain child processes of ``sys.executable``, not ``multiprocessing`` ones: nothing re-imports the caller's main
  module (so no torch in workers), no fork of a threaded parent, works in any thread and inside Ray workers.
- Items travel in chunks, results come back one by one. So the limit is per item, queue time never counts, and when
  a worker is killed or dies only the item it was at is affected; the rest of its chunk goes to another worker.
- One thread hands out and collects for all callers, so nobody's items wait for another's slow one: a chunk is no more
  than a moment's work, and what waits behind an item that hangs is given to a free worker too.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Literal, Self

#: A worker that is not up by then counts as failed to start. Generous: a loaded machine imports slowly.
_START_SECONDS = 120.0
_MAX_FAILED_STARTS = 3
_END_SECONDS = 5.0
_CHUNK = 32
#: Items for a worker that a streaming call takes at a time; twice as many are on their way.
_WINDOW = 4 * _CHUNK
#: Seconds of work in a chunk, as far as the items before it tell.
_CHUNK_SECONDS = 0.02
#: An item that runs longer holds nothing back: another worker is started for what waits, and takes its chunk's rest.
_LONG_SECONDS = 0.25
_ATTEMPTS = 2  # an item whose worker died is tried once more: it may not have been the reason
_BOOT = "import sys; sys.path[:] = {path!r}; from rlreason.rewards.worker import main; main({channel}, {lifeline})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one item. Example: ``Outcome(failure="timed_out", detail="ran past 2 s", seconds=2.0)``."""

    value: object = None
    #: "" for a value; "raised": the function raised; "crashed": its worker died twice.
    failure: Literal["", "timed_out", "crashed", "raised"] = ""
    detail: str = ""
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Item:
    """One unit of work on its way. With a free worker it may be at two; the first answer counts."""

    payload: object
    answer: Future[Outcome] = field(default_factory=Future)
    begun: bool = False
    attempts: int = 0

    @property
    def open(self) -> bool:
        """Whether it still waits for its outcome."""
        return not self.answer.done()

    def begin(self) -> bool:
        """Before it goes to a worker: from now on nobody can cancel it. False where somebody did."""
        self.begun = self.begun or self.answer.set_running_or_notify_cancel()
        return self.begun and self.open

    def settle(self, outcome: Outcome) -> None:
        """Its outcome, unless it has one."""
        if self.open:
            self.answer.set_result(outcome)

    def give_up(self, why: BaseException) -> None:
        """There will be no outcome."""
        if self.begin():
            self.answer.set_exception(why)


@dataclass(slots=True, eq=False)
class _Worker:
    """A child process with what it has been given and not answered, oldest first."""

    process: subprocess.Popen[bytes]
    channel: Connection
    lifeline: int
    ready: bool = False
    outstanding: deque[_Item] = field(default_factory=deque)
    #: Whether another worker has the rest of its chunk too.
    shared: bool = False
    #: When the item it is at (or its start) began, on the monotonic clock.
    since: float = 0.0
    #: Seconds past its limit that the item may take to end by itself, see ``rewards.limit``.
    extra: float = 0.0

    @property
    def free(self) -> bool:
        return self.ready and not self.outstanding

    @property
    def long_at(self) -> float | None:
        """When the item it is at will have run long; None where it is at none."""
        return self.since + _LONG_SECONDS if self.ready and self.outstanding else None

    @property
    def shares(self) -> bool:
        """Whether something waits behind its item that another worker could take."""
        return not self.shared and len(self.outstanding) > 1

    def stop(self) -> None:
        idle = self.free
        self.channel.close()
        if idle:  # it ends by itself, and puts away what it has set up, such as a jail
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
        self.process.kill()
        self.process.wait()
        os.close(self.lifeline)


class Pool:
    """``Pool(function, workers=2, timeout=5.0)``: ``submit(item)`` gives a future of its Outcome, ``map(items)`` one
    Outcome per item, in order.

    ``function`` must pickle by name; it runs in the workers. Any number of threads may call. Use as a context manager,
    or ``close()``.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *,
        workers: int = 1,
        timeout: float | Callable[[object], float] = 10.0,
        memory_mb: int | None = 4096,
    ) -> None:
        """``timeout``: seconds for an item, or what gives them for one."""
        if workers < 1 or (isinstance(timeout, (int, float)) and timeout <= 0):
            raise ValueError(f"need workers >= 1 and timeout > 0, not {workers} and {timeout}")
        self._function = function
        self._size = workers
        self._timeout = timeout
        self._memory_mb = memory_mb
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        #: Seconds of an answered item, newer ones weighing more; None before the first.
        self._pace: float | None = None
        self._queue: deque[_Item] = deque()
        self._lock = threading.Lock()  # of the queue and the thread; the workers are the thread's alone
        self._thread: threading.Thread | None = None
        self._closing = False
        self._rung = False
        self._bell: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; what is under way is cancelled. A later item starts new ones."""
        with self._lock:
            thread, self._closing = self._thread, True
            if thread is not None:
                self._ring()
        if thread is not None:
            thread.join()
        self._closing = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are up."""
        return tuple(worker.process.pid for worker in list(self._workers))

    def submit(self, item: object) -> Future[Outcome]:
        """The item's Outcome, some time. The future raises only where workers do not start; cancelling it drops an item
        that no worker has begun."""
        return self.submit_all([item])[0]

    def submit_all(self, items: Iterable[object]) -> list[Future[Outcome]]:
        """``submit`` for each: they are shared out together."""
        entries = [_Item(item) for item in items]
        if not entries:
            return []
        with self._lock:
            self._queue.extend(entries)
            if self._thread is None:
                self._bell = socket.socketpair()
                self._thread = threading.Thread(target=self._serve, name="reward pool", daemon=True)
                self._thread.start()
            self._ring()
        return [entry.answer for entry in entries]

    def map(self, items: Iterable[object]) -> list[Outcome]:
        """One Outcome per item, in order. Never raises for what an item does."""
        return list(self.imap(items))

    def imap(self, items: Iterable[object]) -> Iterator[Outcome]:
        """Like ``map``, streaming: memory is bounded whatever the number of items."""
        source = iter(items)
        answers: deque[Future[Outcome]] = deque()
        try:  # the workers are busy with what was taken last while the results before it are read
            while fresh := self.submit_all(islice(source, _WINDOW * self._size)):
                yield from _in_order(answers)
                answers.extend(fresh)
            yield from _in_order(answers)
        finally:  # left early (an error, an abandoned iterator)
            for answer in answers:
                answer.cancel()

    def _ring(self) -> None:
        """Wake the thread. Call it with the lock."""
        if not self._rung:
            assert self._bell is not None
            self._rung = True
            self._bell[0].send(b"!")

    def _serve(self) -> None:
        """The thread: hand out and collect until ``close``, or until workers do not start."""
        why: BaseException = RuntimeError("the reward pool was closed")
        try:
            while not self._closing:
                self._dispatch()
                self._collect()
        except BaseException as error:
            why = error
        with self._lock:
            left = [*self._queue, *(item for worker in self._workers for item in worker.outstanding)]
            self._queue.clear()
            for worker in self._workers:
                worker.stop()
            self._workers = []
            assert self._bell is not None
            for end in self._bell:
                end.close()
            self._thread, self._bell, self._rung = None, None, False
        for item in left:
            item.give_up(why)

    def _dispatch(self) -> None:
        """Give free workers their chunks; start workers while there is work for them."""
        now = time.monotonic()
        at_long = [one for one in self._workers if one.long_at is not None and one.long_at <= now]
        waiting = len(self._queue)
        if waiting or any(worker.shares for worker in at_long):
            while len(self._workers) < min(self._size, len(at_long) + 1 + waiting // 4):
                self._workers.append(self._spawn())
        for worker in [one for one in self._workers if one.free]:
            chunk = self._take() or self._rest_of_a_chunk(at_long)
            if not chunk:
                return
            worker.outstanding.extend(chunk)
            worker.since = time.monotonic()
            try:
                worker.channel.send([(item.payload, self._seconds(item.payload)) for item in chunk])
            except OSError:
                self._lost(worker)

    def _take(self) -> list[_Item]:
        """The next chunk: a share of what waits, and no more than a moment's work."""
        most = 1 if self._pace is None else int(_CHUNK_SECONDS / max(self._pace, 1e-6))
        with self._lock:
            share = max(1, min(-(-len(self._queue) // (2 * self._size)), _CHUNK, most))
            chunk: list[_Item] = []
            while self._queue and len(chunk) < share:
                item = self._queue.popleft()
                if item.begin():
                    chunk.append(item)
        return chunk

    def _rest_of_a_chunk(self, at_long: Sequence[_Worker]) -> list[_Item]:
        """What waits behind an item that runs long. Its worker may get to it all the same: these are quick ones."""
        for worker in at_long:
            if worker.shares:
                worker.shared = True
                return [item for item in list(worker.outstanding)[1:] if item.open]
        return []

    def _collect(self) -> None:
        """Wait for answers until the next deadline or call, then settle whatever came or ran out of time."""
        assert self._bell is not None
        bell, busy = self._bell[1], [one for one in self._workers if not one.free]
        now = time.monotonic()
        deadlines = [worker.since + self._limit(worker) for worker in busy]
        if len(busy) < self._size:  # somebody could help
            deadlines += [worker.long_at for worker in busy if worker.long_at is not None and worker.long_at > now]
        patience = max(0.0, min(deadlines) - now) if deadlines else None
        if self._queue and not busy:  # what was handed to a worker came back: it had died while it was free
            patience = 0.0
        if bell in wait([bell, *(worker.channel for worker in busy)], timeout=patience):
            with self._lock:
                bell.recv(16)
                self._rung = False
        for worker in busy:
            try:
                while worker.channel.poll():
                    self._settle(worker, worker.channel.recv())
            except (EOFError, OSError):
                self._lost(worker)
                continue
            if not worker.free and time.monotonic() - worker.since > self._limit(worker):
                self._expire(worker)

    def _limit(self, worker: _Worker) -> float:
        if not worker.ready:
            return _START_SECONDS
        return self._seconds(worker.outstanding[0].payload) + worker.extra

    def _seconds(self, payload: object) -> float:
        """Wall seconds for an item."""
        return self._timeout(payload) if callable(self._timeout) else self._timeout

    def _settle(self, worker: _Worker, message: tuple[bool, object] | str | float) -> None:
        now = time.monotonic()
        if isinstance(message, float):  # it ends by itself, by then
            worker.extra = message
            return
        if isinstance(message, str):
            worker.ready = True
            self._failed_starts = 0
        else:
            fine, value = message
            item = worker.outstanding.popleft()
            seconds = now - worker.since
            self._pace = seconds if self._pace is None else 0.9 * self._pace + 0.1 * seconds
            if fine:
                item.settle(Outcome(value=value, seconds=seconds))
            else:
                item.settle(Outcome(failure="raised", detail=str(value), seconds=seconds))
        worker.since, worker.extra = now, 0.0
        if not worker.outstanding:
            worker.shared = False

    def _expire(self, worker: _Worker) -> None:
        if not worker.ready:
            self._lost(worker)
            return
        seconds, limit = time.monotonic() - worker.since, self._limit(worker)
        item = worker.outstanding.popleft()
        item.settle(Outcome(failure="timed_out", detail=f"ran past {limit:g} s", seconds=seconds))
        self._again(worker)

    def _lost(self, worker: _Worker) -> None:
        """The worker died. The item it was at gets one more try; the others just move on."""
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                self._failed_starts = 0
                self._again(worker)
                raise RuntimeError(f"reward workers do not start ({sys.executable}, exit {worker.process.returncode})")
        if worker.outstanding:
            item = worker.outstanding[0]
            item.attempts += 1
            if item.attempts >= _ATTEMPTS:
                worker.outstanding.popleft()
                worker.process.wait()
                code = worker.process.returncode
                item.settle(Outcome(failure="crashed", detail=f"its worker process died (exit status {code})"))
        self._again(worker)

    def _again(self, worker: _Worker) -> None:
        """The worker goes; what only it had and did not answer is next in the queue."""
        self._workers.remove(worker)
        elsewhere = {id(item) for other in self._workers for item in other.outstanding}
        left = [item for item in worker.outstanding if item.open and id(item) not in elsewhere]
        with self._lock:
            self._queue.extendleft(reversed(left))
        worker.stop()

    def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        lifeline_theirs, lifeline_ours = os.pipe()
        boot = _BOOT.format(path=sys.path, channel=theirs.fileno(), lifeline=lifeline_theirs)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a reward prints must not land in the caller's output
                pass_fds=(theirs.fileno(), lifeline_theirs),
                # One order of sets in every worker: the same answer whichever worker gives it.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        os.close(lifeline_theirs)
        worker = _Worker(process, Connection(ours.detach()), lifeline_ours, since=time.monotonic())
        with contextlib.suppress(OSError):  # a worker that died at once is found by _collect
            worker.channel.send((self._function, self._memory_mb))
        return worker


def _in_order(answers: deque[Future[Outcome]]) -> Iterator[Outcome]:
    """The outcomes of ``answers``, which become empty. The last is waited for first: one wait instead of many."""
    if answers:
        answers[-1].result()
    while answers:
        yield answers.popleft().result()

"""Worker processes that can be killed: one function over many items, with a hard wall limit for each item.

- Plain child processes of ``sys.executable``, not ``multiprocessing`` ones: nothing re-imports the caller's main
  module (so no torch in workers), no fork of a threaded parent, works in any thread and inside Ray workers.
- Items travel in chunks, results come back one by one. So the limit is per item, queue time never counts, and when
  a worker is killed or dies only the item it was at is affected; the rest of its chunk goes to a fresh worker.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Literal, Self

#: A worker that is not up by then counts as failed to start. Generous: a loaded machine imports slowly.
_START_SECONDS = 120.0
_MAX_FAILED_STARTS = 3
_CHUNK = 32
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
    """One unit of work on its way. ``outcome`` None until it is settled."""

    payload: object
    attempts: int = 0
    outcome: Outcome | None = None


@dataclass(slots=True, eq=False)
class _Worker:
    """A child process with what it has been given and not answered, oldest first."""

    process: subprocess.Popen[bytes]
    channel: Connection
    lifeline: int
    ready: bool = False
    outstanding: deque[_Item] = field(default_factory=deque)
    #: When the item it is at (or its start) began, on the monotonic clock.
    since: float = 0.0

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.channel.close()
        os.close(self.lifeline)


class Pool:
    """``Pool(function, workers=2, timeout=5.0)``: ``map(items)`` gives one Outcome per item, in order.

    ``function`` must pickle by name; it runs in the workers. One call at a time; others wait. Use as a context
    manager, or ``close()``.
    """

    def __init__(
        self,
        function: Callable[..., object],
        *,
        workers: int = 1,
        timeout: float = 10.0,
        memory_mb: int | None = 4096,
    ) -> None:
        if workers < 1 or timeout <= 0:
            raise ValueError(f"need workers >= 1 and timeout > 0, not {workers} and {timeout}")
        self._function = function
        self._size = workers
        self._timeout = timeout
        self._memory_mb = memory_mb
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers. A later ``map`` starts new ones."""
        for worker in self._workers:
            worker.stop()
        self._workers = []

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are up."""
        return tuple(worker.process.pid for worker in self._workers)

    def start(self) -> None:
        """Start the workers now instead of at the first item."""
        while len(self._workers) < self._size:
            self._workers.append(self._spawn())

    def map(self, items: Iterable[object]) -> list[Outcome]:
        """One Outcome per item, in order. Never raises for what an item does."""
        return list(self.imap(items))

    def imap(self, items: Iterable[object]) -> Iterator[Outcome]:
        """Like ``map``, streaming: memory is bounded whatever the number of items."""
        with self._lock:
            try:
                yield from self._run(iter(items))
            finally:
                # Left early (an error, an abandoned iterator): answers still on their way would confuse the next call.
                for worker in [w for w in self._workers if w.outstanding]:
                    self._retire(worker)

    def _run(self, source: Iterator[object]) -> Iterator[Outcome]:
        order: deque[_Item] = deque()
        queue: deque[_Item] = deque()
        window = _CHUNK * self._size * 8
        exhausted = False
        while True:
            while not exhausted and len(order) < window:
                try:
                    item = _Item(next(source))
                except StopIteration:
                    exhausted = True
                    break
                order.append(item)
                queue.append(item)
            while order and order[0].outcome is not None:
                outcome = order.popleft().outcome
                assert outcome is not None
                yield outcome
            if not order:
                if exhausted:
                    return
                continue
            self._dispatch(queue)
            self._collect(queue)

    def _dispatch(self, queue: deque[_Item]) -> None:
        """Give idle workers their chunks; start workers while there is work for them."""
        while queue and len(self._workers) < min(self._size, 1 + len(queue) // 4):
            self._workers.append(self._spawn())
        for worker in [w for w in self._workers if w.ready and not w.outstanding]:
            share = max(1, min(_CHUNK, -(-len(queue) // (2 * self._size))))
            chunk = [queue.popleft() for _ in range(min(share, len(queue)))]
            if not chunk:
                return
            worker.outstanding.extend(chunk)
            worker.since = time.monotonic()
            try:
                worker.channel.send([item.payload for item in chunk])
            except OSError:
                self._lost(worker, queue)

    def _collect(self, queue: deque[_Item]) -> None:
        """Wait for answers until the next deadline, then settle whatever came or ran out of time."""
        busy = [w for w in self._workers if w.outstanding or not w.ready]
        if not busy:
            return
        now = time.monotonic()
        patience = max(0.0, min(w.since + self._limit(w) for w in busy) - now)
        wait([w.channel for w in busy], timeout=patience)
        for worker in busy:
            try:
                while worker.channel.poll():
                    self._settle(worker, worker.channel.recv())
            except (EOFError, OSError):
                self._lost(worker, queue)
                continue
            if time.monotonic() - worker.since > self._limit(worker) and (worker.outstanding or not worker.ready):
                self._expire(worker, queue)

    def _limit(self, worker: _Worker) -> float:
        return self._timeout if worker.ready else _START_SECONDS

    def _settle(self, worker: _Worker, message: tuple[bool, object] | str) -> None:
        now = time.monotonic()
        if isinstance(message, str):
            worker.ready = True
            self._failed_starts = 0
        else:
            fine, value = message
            item = worker.outstanding.popleft()
            seconds = now - worker.since
            if fine:
                item.outcome = Outcome(value=value, seconds=seconds)
            else:
                item.outcome = Outcome(failure="raised", detail=str(value), seconds=seconds)
        worker.since = now

    def _expire(self, worker: _Worker, queue: deque[_Item]) -> None:
        if not worker.ready:
            self._lost(worker, queue)
            return
        item = worker.outstanding.popleft()
        item.outcome = Outcome(
            failure="timed_out", detail=f"ran past {self._timeout:g} s", seconds=time.monotonic() - worker.since
        )
        queue.extendleft(reversed(worker.outstanding))
        self._retire(worker)

    def _lost(self, worker: _Worker, queue: deque[_Item]) -> None:
        """The worker died. The item it was at gets one more try; the others just move on."""
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                self._failed_starts = 0
                self._retire(worker)
                raise RuntimeError(f"reward workers do not start ({sys.executable}, exit {worker.process.returncode})")
        if worker.outstanding:
            item = worker.outstanding[0]
            item.attempts += 1
            if item.attempts >= _ATTEMPTS:
                worker.outstanding.popleft()
                worker.process.wait()
                code = worker.process.returncode
                item.outcome = Outcome(failure="crashed", detail=f"its worker process died (exit status {code})")
        queue.extendleft(reversed(worker.outstanding))
        self._retire(worker)

    def _retire(self, worker: _Worker) -> None:
        worker.outstanding.clear()
        if worker in self._workers:
            self._workers.remove(worker)
        worker.stop()

    def _spawn(self) -> _Worker:
        ours, theirs = socket.socketpair()
        lifeline_theirs, lifeline_ours = os.pipe()
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _BOOT.format(path=sys.path, channel=theirs.fileno(), lifeline=lifeline_theirs),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a reward prints must not land in the caller's output
                pass_fds=(theirs.fileno(), lifeline_theirs),
                # One order of sets in every worker: the same answer whichever worker gives it.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        os.close(lifeline_theirs)
        worker = _Worker(
            process=process, channel=Connection(ours.detach()), lifeline=lifeline_ours, since=time.monotonic()
        )
        with contextlib.suppress(OSError):  # a worker that died at once is found by _collect
            worker.channel.send((self._function, self._memory_mb))
        return worker

"""What each rollout worker does next: take weights, take groups, draw. Live, or as recorded in an earlier run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlreason.sampler.jobs import Job

#: Seconds that a worker draws before it reports, so that weights and new groups can be slipped in.
SLICE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliver:
    """Give the worker the weights of ``version``."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Hand over ``jobs`` and draw for ``seconds``, or for exactly ``steps`` engine steps."""

    jobs: tuple[Job, ...]
    seconds: float = SLICE
    steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Replace the worker by a new one: it died in the recorded run."""


Op = Deliver | Draw | Restart


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What a schedule sees of an idle worker: the version it holds (None: no weights yet) and its unfinished groups."""

    version: int | None
    outstanding: int


class Schedule(Protocol):
    """Decides; the pool carries out."""

    def add(self, jobs: Sequence[Job]) -> None:
        """Groups to draw; asked for once each."""
        ...

    def again(self, worker: int, jobs: Sequence[Job]) -> None:
        """``worker`` died with these groups unfinished."""
        ...

    def next(self, worker: int, state: WorkerState, newest: int | None) -> Op | None:
        """What ``worker`` does now; ``newest``: the newest version that can be delivered. None: it waits."""
        ...


class LiveSchedule:
    """Groups go to the workers in turn. New weights are taken as soon as they are there: between two tokens of a group
    (``in_flight``), or when the worker's groups are done. Nothing here depends on time, so that without asynchrony the
    same recipe gives each worker the same work."""

    def __init__(self, workers: int, *, in_flight: bool = False) -> None:
        self._queues: list[deque[Job]] = [deque() for _ in range(workers)]
        self._in_flight = in_flight
        self._turn = 0

    def add(self, jobs: Sequence[Job]) -> None:
        """See ``Schedule.add``."""
        for job in jobs:
            self._queues[self._turn].append(job)
            self._turn = (self._turn + 1) % len(self._queues)

    def again(self, worker: int, jobs: Sequence[Job]) -> None:
        """See ``Schedule.again``: they go to the others, before what waits there."""
        others = [queue for place, queue in enumerate(self._queues) if place != worker] or self._queues
        for place, job in enumerate(jobs):
            others[place % len(others)].appendleft(job)

    def next(self, worker: int, state: WorkerState, newest: int | None) -> Op | None:
        """See ``Schedule.next``."""
        if newest is None:
            return None
        if state.version is None or (newest > state.version and (self._in_flight or not state.outstanding)):
            return Deliver(version=newest)
        queue = self._queues[worker]
        jobs = []
        while queue and queue[0].min_version <= state.version:
            jobs.append(queue.popleft())
        return Draw(jobs=tuple(jobs)) if jobs or state.outstanding else None


class ReplayedSchedule:
    """Does what an earlier run recorded, worker by worker, to the engine step."""

    def __init__(self, lines: Iterable[Mapping[str, object]], workers: int) -> None:
        """``lines``: rows of schedule.jsonl. Raises ValueError where they are of more workers."""
        self._ops: list[deque[Mapping[str, object]]] = [deque() for _ in range(workers)]
        self._jobs: dict[str, Job] = {}
        for line in lines:
            worker = line["worker"]
            assert isinstance(worker, int)
            if worker >= workers:
                raise ValueError(
                    f"the schedule is of at least {worker + 1} rollout workers, and this run has {workers}"
                )
            self._ops[worker].append(line)

    def add(self, jobs: Sequence[Job]) -> None:
        """See ``Schedule.add``."""
        self._jobs.update((job.key, job) for job in jobs)

    def again(self, worker: int, jobs: Sequence[Job]) -> None:
        """See ``Schedule.again``: the record says who draws them."""
        self.add(jobs)

    def next(self, worker: int, state: WorkerState, newest: int | None) -> Op | None:
        """See ``Schedule.next``."""
        if not self._ops[worker]:
            return None
        line = self._ops[worker][0]
        op = self._read(line, newest)
        if op is not None:
            self._ops[worker].popleft()
        return op

    def _read(self, line: Mapping[str, object], newest: int | None) -> Op | None:
        if "deliver" in line:
            version = line["deliver"]
            assert isinstance(version, int)
            return Deliver(version=version) if newest is not None and newest >= version else None
        if "restart" in line:
            return Restart()
        keys, steps = line["jobs"], line["steps"]
        assert isinstance(keys, list)
        assert isinstance(steps, int)
        if any(key not in self._jobs for key in keys):
            return None
        return Draw(jobs=tuple(self._jobs.pop(key) for key in keys), steps=steps)

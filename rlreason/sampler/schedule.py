"""What each rollout worker does next: take weights, take jobs, draw. Live, or as recorded in an earlier run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlreason.sampler.jobs import Job

#: Why a worker was started anew where a run went on: what was being drawn then was asked for, and drawn, twice.
RESUMED = "the run was resumed"
#: Seconds that a worker draws before it reports, so that weights and new jobs can be slipped in.
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
    """What a schedule sees of an idle worker: the version it holds (None: no weights yet) and its unfinished jobs."""

    version: int | None
    outstanding: int


class Schedule(Protocol):
    """Decides; the pool carries out."""

    #: Whose turn it is: a counter that a resumed run may set, so that its workers get the work they would have got.
    position: int

    def add(self, jobs: Sequence[Job]) -> None:
        """Completions to draw; asked for once each."""
        ...

    def again(self, worker: int, jobs: Sequence[Job]) -> None:
        """``worker`` died with these jobs unfinished."""
        ...

    def lose(self, worker: int) -> None:
        """``worker`` is gone for good: what was meant for it goes to the others, as all that comes."""
        ...

    def next(self, worker: int, state: WorkerState, newest: int | None) -> Op | None:
        """What ``worker`` does now; ``newest``: the newest version that can be delivered. None: it waits."""
        ...


class LiveSchedule:
    """Groups go to the workers in turn, all jobs of a group to one worker, which computes their prompt once. New
    weights are taken as soon as they are there: between two tokens of a completion (``in_flight``), or when the
    worker's jobs are done. Nothing here depends on time, so that without asynchrony the same recipe gives each worker
    the same work.
    """

    def __init__(self, workers: int, *, in_flight: bool = False) -> None:
        self.position = 0
        self._queues: list[deque[Job]] = [deque() for _ in range(workers)]
        #: Places that have a worker.
        self._places = list(range(workers))
        self._in_flight = in_flight

    def add(self, jobs: Sequence[Job]) -> None:
        """See ``Schedule.add``; a group's jobs must come in one call to stay together."""
        for group in _groups(jobs):
            self._queues[self._places[self.position % len(self._places)]].extend(group)
            self.position += 1

    def again(self, worker: int, jobs: Sequence[Job]) -> None:
        """See ``Schedule.again``: they go to the others, before what waits there."""
        others = [self._queues[place] for place in self._places if place != worker] or [self._queues[worker]]
        shares: list[list[Job]] = [[] for _ in others]
        for place, group in enumerate(_groups(jobs)):
            shares[place % len(others)].extend(group)
        for queue, share in zip(others, shares, strict=True):
            queue.extendleft(reversed(share))

    def lose(self, worker: int) -> None:
        """See ``Schedule.lose``."""
        waiting = list(self._queues[worker])
        self._queues[worker].clear()
        self._places.remove(worker)
        self.again(worker, waiting)

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
        """``lines``: rows of schedule.jsonl. Raises ValueError where they are of more workers, or of a stage that was
        broken off and resumed."""
        self.position = 0
        self._ops: list[deque[Mapping[str, object]]] = [deque() for _ in range(workers)]
        self._jobs: dict[str, Job] = {}
        for line in lines:
            worker = line["worker"]
            assert isinstance(worker, int)
            if line.get("restart") == RESUMED:
                raise ValueError(
                    "the run was resumed in the middle of this stage, and what it drew twice can't be replayed"
                )
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

    def lose(self, worker: int) -> None:
        """Raises RuntimeError where the record has more for it to do."""
        if self._ops[worker]:
            raise RuntimeError(f"rollout worker {worker} is gone, and a replay needs every one that the run had")

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
        runs, steps = line["jobs"], line["steps"]
        assert isinstance(runs, list)
        assert isinstance(steps, int)
        keys = [f"{group_id}/{first + place}" for group_id, first, count in runs for place in range(count)]
        if any(key not in self._jobs for key in keys):
            return None
        return Draw(jobs=tuple(self._jobs.pop(key) for key in keys), steps=steps)


def record_of(jobs: Sequence[Job]) -> list[tuple[str, int, int]]:
    """``jobs`` for schedule.jsonl: (group, first sample, how many in a row), in their order.

    Example: ``[("grpo/3/p17", 0, 8), ("grpo/3/p18", 4, 1)]``: samples 0 to 7 of the one, sample 4 of the other.
    """
    runs: list[tuple[str, int, int]] = []
    for job in jobs:
        if runs and runs[-1][0] == job.group_id and runs[-1][1] + runs[-1][2] == job.sample:
            runs[-1] = (job.group_id, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((job.group_id, job.sample, 1))
    return runs


def _groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs of one group together, groups in the order of their first job."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group_id, []).append(job)
    return list(groups.values())

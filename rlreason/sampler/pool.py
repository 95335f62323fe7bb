"""Rollout workers as one: carries out a schedule, proves deliveries, replaces workers that die or hang, loses no group.

A group is drawn from counters, so when its worker dies it is drawn again elsewhere; it counts once, whoever finishes it
first. The pool does one thing per worker at a time and is driven by whoever calls ``turn``; another thread may publish
and ask meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rlreason.sampler.canary import Canary, Expectation, ProbeError
from rlreason.sampler.delivery import DeliveryError, Packer, Parcel, Receiver, few
from rlreason.sampler.handles import Call, Cluster, Handle, WorkerDied
from rlreason.sampler.jobs import Drawn, EngineSpec, Job, Progress
from rlreason.sampler.schedule import Deliver, Draw, LiveSchedule, Op, Restart, Schedule, WorkerState
from rlreason.sampler.worker import Receipt

#: Workers that die one after the other, with no group finished between them, end the run.
MAX_DEATHS = 3
#: Takes one recorded op: {"worker", "deliver" | "jobs", "steps" | "restart"}.
Record = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds after which a worker counts as hung: at work, and while its engine is built."""

    working: float = 120.0
    starting: float = 600.0


@dataclass(frozen=True, slots=True)
class Build:
    """The worker builds its engine."""


@dataclass(slots=True)
class _Worker:
    handle: Handle
    version: int | None = None
    #: Groups handed over and not finished, by key.
    outstanding: dict[str, Job] = field(default_factory=dict)
    op: Op | Build | None = None
    call: Call | None = None
    since: float = 0.0
    up: bool = False


@dataclass(slots=True)
class _Delivery:
    parcel: Parcel
    stored: Sequence[object]
    expected: Expectation | None


@dataclass(slots=True)
class PoolStats:
    """What happened since the last ``read``: deliveries, their seconds (longest of a worker), the largest difference of
    log-probabilities that the canary saw, workers replaced, groups that arrived twice."""

    deliveries: int = 0
    delivery_seconds: float = 0.0
    canary: float = 0.0
    replaced: int = 0
    duplicates: int = 0

    def read(self) -> dict[str, float]:
        """As metrics, and start anew."""
        scalars = {"delivery/seconds": self.delivery_seconds, "delivery/canary": self.canary} if self.deliveries else {}
        scalars |= {"workers/replaced": float(self.replaced), "groups/duplicate": float(self.duplicates)}
        self.deliveries = self.replaced = self.duplicates = 0
        self.delivery_seconds = self.canary = 0.0
        return scalars


class RolloutPool:
    """``workers`` of ``cluster`` under one schedule. ``canary`` None: deliveries are not proved."""

    def __init__(
        self,
        cluster: Cluster,
        spec: EngineSpec,
        workers: int,
        *,
        canary: Canary | None,
        packer: Packer | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Starts the workers; they build their engines meanwhile. The schedule is a live one until ``reschedule``."""
        self._cluster = cluster
        self._spec = spec
        self._schedule: Schedule = LiveSchedule(workers)
        self._canary = canary
        self._packer = packer or Packer()
        self._patience = patience or Patience()
        self._record: Record | None = None
        self._deliveries: dict[int, _Delivery] = {}
        self._kept = 1
        self._deaths = 0
        self._wanted: set[str] = set()
        self._lock = threading.RLock()
        self.stats = PoolStats()
        self._workers = [self._new_worker(place) for place in range(workers)]

    @property
    def newest(self) -> int | None:
        """The newest version that was published; None before the first."""
        return max(self._deliveries, default=None)

    @property
    def unfinished(self) -> int:
        """Groups asked for and not handed out yet."""
        return len(self._wanted)

    def reschedule(self, schedule: Schedule | None = None, record: Record | None = None, keep: int = 1) -> None:
        """Go on under another schedule (default: a live, synchronous one). Nothing may be under way.

        ``keep``: how many versions to hold, for workers that are to take an older one (a replay).
        """
        assert not self._wanted, "groups are under way"
        self._finish_calls()
        self._schedule, self._record = schedule or LiveSchedule(len(self._workers)), record
        self._kept = keep

    def follow(self, spec: EngineSpec, canary: Canary | None, packer: Packer) -> None:
        """Draw with another model from here on: its versions start again, and all workers take them. Workers of a GPU
        are started anew where the architecture differs, as only the end of a process gives all of its memory back."""
        self.reschedule()
        self._canary, self._packer = canary, packer
        self._deliveries.clear()
        for place, worker in enumerate(self._workers):
            worker.version = None
            if spec != self._spec and self._cluster.on_gpu:
                worker.handle.kill()
                self._workers[place] = self._new_worker(place, spec)
            elif spec != self._spec:
                self._build(worker, spec)
        self._spec = spec

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Pack ``weights`` and make them the newest; workers take them when the schedule says so. The canary's model
        must hold these weights now."""
        delivery = self._pack(self._packer.pack(weights, version))
        with self._lock:
            for old in [known for known in self._deliveries if known <= version - self._kept]:
                del self._deliveries[old]
            self._deliveries[version] = delivery

    def ask(self, jobs: Sequence[Job]) -> None:
        """Have these groups drawn."""
        with self._lock:
            self._wanted.update(job.key for job in jobs)
            self._schedule.add(jobs)

    def turn(self, seconds: float = 1.0) -> list[Drawn]:
        """Give every idle worker its next op, wait up to ``seconds`` for one of them, and return the groups that are
        done. Raises DeliveryError where the canary finds a wrong delivery, RuntimeError where workers keep dying."""
        with self._lock:
            for place, worker in enumerate(self._workers):
                if worker.call is None:
                    self._start(place, worker)
        return self._collect(seconds)

    def _collect(self, seconds: float) -> list[Drawn]:
        """Wait for one of the calls under way, and settle those that are done."""
        busy = [worker.call for worker in self._workers if worker.call is not None]
        if not busy:
            if seconds:
                time.sleep(min(seconds, 0.01))
            return []
        done = self._cluster.wait(busy, seconds)
        drawn: list[Drawn] = []
        with self._lock:
            for place, worker in enumerate(self._workers):
                if worker.call is not None and any(worker.call is call for call in done):
                    drawn += self._settle(place, worker)
                elif worker.call is not None and time.monotonic() - worker.since > self._limit(worker):
                    self._replace(place, worker, f"did not answer for {self._limit(worker):g} s")
        return drawn

    def draw(self, jobs: Sequence[Job]) -> Iterator[Drawn]:
        """Ask for ``jobs`` and hand them out as they are done."""
        self.ask(jobs)
        left = len(jobs)
        while left:
            for drawn in self.turn():
                left -= 1
                yield drawn

    def settle_deliveries(self) -> None:
        """Turn until every worker holds the newest version: only where no group is under way."""
        while any(worker.version != self.newest or worker.call is not None for worker in self._workers):
            self.turn()

    def sleep(self) -> None:
        """Have the workers give their accelerators' memory back. No group may be under way."""
        assert not self._wanted, "groups are under way"
        self._everywhere("sleep")

    def wake(self) -> None:
        """Have them take it again; the next thing each is given is weights."""
        self._everywhere("wake")
        for worker in self._workers:
            worker.version = None

    def _everywhere(self, method: str) -> None:
        self._finish_calls()
        for call in [worker.handle.call(method) for worker in self._workers]:
            call.result()

    def close(self) -> None:
        """End the workers and what the cluster started."""
        for worker in self._workers:
            worker.handle.kill()
        self._workers.clear()
        self._cluster.close()

    @property
    def workers(self) -> int:
        """How many draw."""
        return len(self._workers)

    def _new_worker(self, place: int, spec: EngineSpec | None = None) -> _Worker:
        worker = _Worker(self._cluster.start(place))
        self._build(worker, spec or self._spec)
        return worker

    def _build(self, worker: _Worker, spec: EngineSpec) -> None:
        worker.up, worker.op, worker.since = False, Build(), time.monotonic()
        worker.call = worker.handle.call("build", spec)

    def _start(self, place: int, worker: _Worker) -> None:
        op = self._schedule.next(
            place, WorkerState(version=worker.version, outstanding=len(worker.outstanding)), self.newest
        )
        if op is None:
            return
        if isinstance(op, Restart):
            self._replace(place, worker, "was replaced here in the recorded run")
            return
        worker.op, worker.since = op, time.monotonic()
        if isinstance(op, Draw):
            if worker.version is None:
                raise RuntimeError(f"the schedule has rollout worker {place} draw before it was given any weights")
            worker.outstanding.update((job.key, job) for job in op.jobs)
            worker.call = worker.handle.call("advance", op.jobs, op.seconds, op.steps)
            return
        delivery = self._delivery(worker, op.version)
        canary = self._canary
        worker.call = worker.handle.call(
            "deliver",
            delivery.parcel.manifest,
            canary.prompts if canary else (),
            canary.count if canary else 0,
            self._packer.delta,
            *delivery.stored,
        )

    def _delivery(self, worker: _Worker, version: int) -> _Delivery:
        """The parcel of ``version``; a worker that can't take its changes gets all of it."""
        delivery = self._deliveries[version]
        base = delivery.parcel.manifest.base
        if base is None or base == worker.version:
            return delivery
        return self._pack(self._packer.whole())

    def _pack(self, parcel: Parcel) -> _Delivery:
        known = self._deliveries.get(parcel.manifest.version)
        expected = known.expected if known else (self._canary.expect(parcel.manifest) if self._canary else None)
        return _Delivery(parcel, self._cluster.store(parcel), expected)

    def _settle(self, place: int, worker: _Worker) -> list[Drawn]:
        assert worker.call is not None
        call, op = worker.call, worker.op
        try:
            value = call.result()
        except WorkerDied as error:
            self._replace(place, worker, str(error))
            return []
        worker.call, worker.up = None, True
        if isinstance(op, Build):
            return []
        if isinstance(op, Deliver):
            self._delivered(place, worker, op, value)
            return []
        assert isinstance(op, Draw)
        return self._drawn(place, worker, op, value)

    def _delivered(self, place: int, worker: _Worker, op: Deliver, receipt: Receipt) -> None:
        worker.version = op.version
        self.stats.deliveries += 1
        self.stats.delivery_seconds = max(self.stats.delivery_seconds, time.monotonic() - worker.since)
        self._note({"worker": place, "deliver": op.version})
        if receipt.unloaded:
            raise DeliveryError(
                f"delivery of version {op.version} to rollout worker {place}: no tensor was delivered for "
                f"{few(receipt.unloaded)}, and the engine kept what it had there"
            )
        expected = self._deliveries[op.version].expected if op.version in self._deliveries else None
        if self._canary is None or expected is None:
            return
        try:
            difference = self._canary.check(receipt, expected, place)
        except ProbeError as error:
            raise DeliveryError(f"{error}; {self._explain(worker, op.version)}") from None
        self.stats.canary = max(self.stats.canary, difference)

    def _explain(self, worker: _Worker, version: int) -> str:
        assert self._canary is not None
        parcel = self._deliveries[version].parcel
        if parcel.manifest.base is not None:
            parcel = self._packer.whole()
        weights = Receiver().open(parcel.manifest, parcel.buckets, keep=False)

        def outputs_of(prompt: tuple[int, ...]) -> Mapping[str, Tensor]:
            outputs: Mapping[str, Tensor] = worker.handle.call("module_outputs", prompt).result()
            return outputs

        return self._canary.explain(weights, outputs_of)

    def _drawn(self, place: int, worker: _Worker, op: Draw, progress: Progress) -> list[Drawn]:
        self._note({"worker": place, "jobs": [job.key for job in op.jobs], "steps": progress.steps})
        fresh = []
        for drawn in progress.drawn:
            worker.outstanding.pop(drawn.key, None)
            if drawn.key in self._wanted:
                self._wanted.discard(drawn.key)
                fresh.append(drawn)
            else:
                self.stats.duplicates += 1
        if fresh:
            self._deaths = 0
        return fresh

    def _replace(self, place: int, worker: _Worker, why: str) -> None:
        """Another worker in its place, which is given the newest weights; its groups are drawn elsewhere."""
        self._deaths += 1
        worker.handle.kill()
        if self._deaths > MAX_DEATHS:
            raise RuntimeError(
                f"{self._deaths} rollout workers died and none finished a group; the last, {place}, {why}"
            )
        self._note({"worker": place, "restart": why})
        self.stats.replaced += 1
        lost = [job for key, job in worker.outstanding.items() if key in self._wanted]
        self._workers[place] = self._new_worker(place)
        self._schedule.again(place, lost)

    def _limit(self, worker: _Worker) -> float:
        return self._patience.working if worker.up else self._patience.starting

    def _finish_calls(self) -> None:
        """Settle what is under way, and begin nothing."""
        while any(worker.call is not None for worker in self._workers):
            self._collect(1.0)

    def _note(self, line: Mapping[str, object]) -> None:
        if self._record is not None:
            self._record(line)

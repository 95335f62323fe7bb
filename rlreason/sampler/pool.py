"""Rollout workers as one: carries out a schedule, proves deliveries, replaces workers that die or hang, loses no job.

A completion is drawn from counters, so when its worker dies it is drawn again elsewhere; it counts once, whoever
finishes it first. The pool does one thing per worker at a time and is driven by whoever calls ``turn``; another thread
may publish and ask meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlreason.delivery.group import BrokenGroup
from rlreason.delivery.packing import DeliveryError, Packer, few
from rlreason.sampler.canary import Canary
from rlreason.sampler.gathering import Gathering
from rlreason.sampler.handles import Cluster, WorkerDied
from rlreason.sampler.jobs import Drawn, EngineSpec, Job, Progress
from rlreason.sampler.outbox import Outbox
from rlreason.sampler.pool_worker import Build, PoolWorker, Tell
from rlreason.sampler.schedule import Deliver, Draw, LiveSchedule, Restart, Schedule, WorkerState, record_of
from rlreason.sampler.stats import PoolStats
from rlreason.sampler.worker import Receipt

#: Workers that die one after the other, with no completion finished between them, end the run.
MAX_DEATHS = 3
#: A call that takes this many times the patience is stuck, although its process answers: in a kernel, in a lock.
STUCK = 20
#: Takes one recorded op: {"worker", "deliver" | "jobs", "steps" | "restart"}.
Record = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds without a sign of life after which a worker counts as hung, once it is up, and before its process answers
    for the first time. One that answers may take long, up to ``STUCK`` times that where the call has an end in time.
    ``homeless``: while there is no host that its process could start on."""

    working: float = 120.0
    starting: float = 600.0
    homeless: float = 30.0


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
        holding: int | None = None,
    ) -> None:
        """Starts the workers; they build their engines meanwhile. The schedule is a live one until ``reschedule``.
        ``holding``: the version that engines have from the start, where they need no delivery."""
        self._cluster = cluster
        self._spec = spec
        self._schedule: Schedule = LiveSchedule(workers)
        self._outbox = Outbox(cluster, canary, packer or Packer(), holding)
        self._patience = patience or Patience()
        self._record: Record | None = None
        self._gathering = Gathering()
        self._deaths = 0
        self._wanted: set[str] = set()
        self._lock = threading.RLock()
        self.stats = PoolStats()
        self.closed = False
        self._workers = [self._new_worker(place) for place in range(workers)]
        for worker in self._workers:
            worker.version = holding

    @property
    def newest(self) -> int | None:
        """The newest version that was published; None before the first."""
        return self._outbox.newest

    @property
    def unfinished(self) -> int:
        """Completions asked for and not handed out yet."""
        return len(self._wanted)

    @property
    def probes(self) -> tuple[tuple[int, ...], ...]:
        """Prompts whose next-token log-probabilities a publisher must give; none where deliveries are not proved."""
        return self._outbox.canary.prompts if self._outbox.canary is not None else ()

    @property
    def position(self) -> int:
        """Whose turn it is to be given the next group: a number that goes up by one a group."""
        return self._schedule.position

    @position.setter
    def position(self, position: int) -> None:
        with self._lock:
            self._schedule.position = position

    def reschedule(self, schedule: Schedule | None = None, record: Record | None = None, keep: int = 1) -> None:
        """Go on under another schedule (default: a live, synchronous one). What is under way is given up.

        ``keep``: how many versions to hold, for workers that are to take an older one (a replay).
        """
        self._give_up()
        self._schedule, self._record = schedule or LiveSchedule(len(self._workers)), record
        for place, worker in enumerate(self._workers):
            if worker.lost:
                self._schedule.lose(place)
        self._outbox.keep = keep

    def follow(self, spec: EngineSpec, canary: Canary | None, packer: Packer) -> None:
        """Draw with another model from here on: its versions start again, and all workers take them. Workers of a GPU
        are started anew where the architecture differs, as only the end of a process gives all of its memory back."""
        self.reschedule()
        if spec == self._spec:
            self.wake()
        self._outbox = Outbox(self._cluster, canary, packer)
        for place, worker in enumerate(self._workers):
            worker.version, worker.on_base = None, False
            if worker.lost:
                continue
            if spec != self._spec and self._cluster.on_gpu:
                worker.handle.kill()
                self._workers[place] = self._new_worker(place, spec)
            elif spec != self._spec:
                self._build(worker, spec)
        self._spec = spec

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int, expected: Sequence[Tensor] = ()) -> None:
        """Pack ``weights`` and make them the newest; workers take them when the schedule says so. ``expected``: what
        their model says after each of ``probes``, log-probabilities [V]. Raises ValueError for another number."""
        delivery = self._outbox.pack(weights, version, expected)
        self.wake()
        with self._lock:
            self._outbox.offer(delivery)

    def ask(self, jobs: Sequence[Job]) -> None:
        """Have these drawn."""
        self.wake()
        with self._lock:
            self._wanted.update(job.key for job in jobs)
            self._schedule.add(jobs)

    def turn(self, seconds: float = 1.0) -> list[Drawn]:
        """Give every idle worker its next op, wait up to ``seconds`` for one of them, and return what is drawn.

        Raises DeliveryError where the canary finds a wrong delivery, RuntimeError where workers keep dying.
        """
        with self._lock:
            for place, worker in enumerate(self._workers):
                if worker.call is None and not worker.lost:
                    self._start(place, worker)
            if self.newest is not None:
                self._gathering.begin(self._outbox, self._workers, self.newest)
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
                elif worker.call is not None and (why := self._hung(worker)) is not None:
                    if worker.handle.up:
                        self._replace(place, worker, why)
                    else:
                        self._lose(place, worker, why)
        return drawn

    @property
    def settled(self) -> bool:
        """Whether every worker holds the newest version, and nothing is under way."""
        return all(worker.lost or (worker.version == self.newest and worker.call is None) for worker in self._workers)

    def settle_deliveries(self) -> None:
        """Turn until every worker holds the newest version: only where nothing is being drawn."""
        while not self.settled:
            self.turn()

    def sleep(self) -> None:
        """Have the workers give their accelerators' memory back. Nothing may be under way."""
        assert not self._wanted, "completions are under way"
        self._finish_calls()
        while any(not worker.asleep for worker in self._present):  # one that was replaced meanwhile is awake
            self._tell("sleep", [worker for worker in self._present if not worker.asleep])

    def wake(self) -> None:
        """Have them take it again; the next thing each is given is weights. Nothing where none sleeps."""
        asleep = [worker for worker in self._present if worker.asleep]
        for worker in asleep:
            worker.version, worker.on_base = None, False
        if asleep:
            self._tell("wake", asleep)

    @property
    def _present(self) -> list[PoolWorker]:
        return [worker for worker in self._workers if not worker.lost]

    def _tell(self, method: str, workers: Sequence[PoolWorker]) -> None:
        """Have idle workers do it, all at once. One that dies or hangs is replaced, and its successor is not told."""
        for worker in workers:
            worker.op, worker.since = Tell(method), time.monotonic()
            worker.call = worker.handle.call(method)
        self._finish_calls()

    def interrupt(self) -> None:
        """Have a ``turn`` that runs in another thread return soon. What it was drawing is lost: after this the pool can
        only be given another schedule or model, or be closed."""
        for worker in self._workers:
            worker.handle.interrupt()

    def close(self) -> None:
        """End the workers and what the cluster started; what is under way is lost."""
        if self.closed:
            return
        self.closed = True
        for worker in self._workers:
            worker.handle.kill()
        self._gathering.end()
        self._workers.clear()
        self._cluster.close()

    @property
    def workers(self) -> int:
        """How many draw."""
        return len(self._workers)

    def _new_worker(self, place: int, spec: EngineSpec | None = None) -> PoolWorker:
        worker = PoolWorker(self._cluster.start(place))
        self._build(worker, spec or self._spec)
        return worker

    def _build(self, worker: PoolWorker, spec: EngineSpec) -> None:
        worker.up, worker.asleep, worker.op, worker.since = False, False, Build(), time.monotonic()
        worker.call = worker.handle.call("build", spec)

    def _start(self, place: int, worker: PoolWorker) -> None:
        op = self._schedule.next(
            place, WorkerState(version=worker.version, outstanding=len(worker.outstanding)), self.newest
        )
        if isinstance(op, Deliver) and self._outbox.collective:
            worker.ready = worker.ready or time.monotonic()
            return
        worker.ready = None
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
        worker.delivery = self._outbox.take(op.version, worker.version, on_base=worker.on_base)
        assert worker.delivery is not None, "what this process packed it holds"
        worker.call = worker.handle.call("deliver", *self._outbox.arguments(worker.delivery))

    def _settle(self, place: int, worker: PoolWorker) -> list[Drawn]:
        assert worker.call is not None
        call, op = worker.call, worker.op
        try:
            value = call.result()
        except WorkerDied as error:
            self._replace(place, worker, str(error))
            return []
        except BrokenGroup as error:  # what it holds is neither the old nor the new version
            worker.call = worker.version = worker.delivery = None
            worker.on_base = False
            self._gathering.broke(str(error))
            return []
        worker.call, worker.up = None, True
        if isinstance(op, Build):
            return []
        if isinstance(op, Tell):
            worker.asleep = op.method == "sleep"
            return []
        if isinstance(op, Deliver):
            self._delivered(place, worker, op, value)
            return []
        assert isinstance(op, Draw)
        return self._drawn(place, worker, op, value)

    def _delivered(self, place: int, worker: PoolWorker, op: Deliver, receipt: Receipt) -> None:
        worker.version = op.version
        self._gathering.arrived()
        self.stats.deliveries += 1
        self.stats.delivery_seconds = max(self.stats.delivery_seconds, time.monotonic() - worker.since)
        self._note({"worker": place, "deliver": op.version})
        if receipt.unloaded:
            raise DeliveryError(
                f"delivery of version {op.version} to rollout worker {place}: no tensor was delivered for "
                f"{few(receipt.unloaded)}, and the engine kept what it had there"
            )
        delivery, worker.delivery = worker.delivery, None
        assert delivery is not None
        worker.on_base = bool(delivery.parcel.manifest.factors)

        def outputs_of(prompt: tuple[int, ...]) -> Mapping[str, Tensor]:
            call = worker.handle.call("module_outputs", prompt)
            worker.since = time.monotonic()
            while not self._cluster.wait([call], 1.0):
                if (why := self._hung(worker)) is not None:
                    raise WorkerDied(f"rollout worker {place} {why}")
            outputs: Mapping[str, Tensor] = call.result()
            return outputs

        difference = self._outbox.prove(delivery, receipt, place, self._spec, outputs_of)
        self.stats.canary = max(self.stats.canary, difference or 0.0)

    def _drawn(self, place: int, worker: PoolWorker, op: Draw, progress: Progress) -> list[Drawn]:
        self._note({"worker": place, "jobs": record_of(op.jobs), "steps": progress.steps})
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

    def _replace(self, place: int, worker: PoolWorker, why: str) -> None:
        """Another worker in its place, which is given the newest weights; its jobs are drawn elsewhere."""
        self._deaths += 1
        self._leave(worker)
        if self._deaths > MAX_DEATHS:
            raise RuntimeError(
                f"{self._deaths} rollout workers died and none finished a completion; the last, {place}, {why}"
            )
        self._note({"worker": place, "restart": why})
        self.stats.replaced += 1
        lost = [job for key, job in worker.outstanding.items() if key in self._wanted]
        self._workers[place] = self._new_worker(place)
        self._schedule.again(place, lost)

    def _lose(self, place: int, worker: PoolWorker, why: str) -> None:
        """Go on without it: its host is gone and no other has room, or no process can start there."""
        self._leave(worker)
        if len(self._present) == 1:
            raise RuntimeError(f"no rollout worker is left: in place {place} {why}")
        self._note({"worker": place, "restart": f"{why}, and the place stays empty"})
        self.stats.lost += 1
        worker.lost, worker.call, worker.ready = True, None, None
        self._schedule.lose(place)

    def _leave(self, worker: PoolWorker) -> None:
        """End it, and the group that it was in."""
        worker.handle.kill()
        if worker.call is not None and isinstance(worker.op, Deliver):
            self._gathering.end()

    def _hung(self, worker: PoolWorker) -> str | None:
        """Why a worker with a call under way is given up; None: it lives."""
        limit = self._patience.working if worker.up else self._patience.starting
        if worker.handle.silence() > limit:
            return f"did not answer for {limit:g} s" if worker.handle.up else f"no process came up in {limit:g} s"
        if worker.handle.homeless() > self._patience.homeless:
            return f"its host is gone, and for {self._patience.homeless:g} s no other had room"
        bounded = self._spec.kind == "vllm" or not isinstance(worker.op, Draw)  # transformers draws all in one call
        if bounded and time.monotonic() - worker.since > STUCK * limit:
            return f"answered, but was not done after {STUCK * limit:g} s"
        return None

    def _give_up(self) -> None:
        """Forget what is asked for and not drawn."""
        under_way, duplicates = bool(self._wanted), self.stats.duplicates
        self._wanted.clear()
        self._finish_calls()
        if under_way:
            self._tell("abort", self._present)
        self.stats.duplicates = duplicates  # what nobody waits for any more came once
        for worker in self._workers:
            worker.outstanding.clear()

    def _finish_calls(self) -> None:
        """Settle what is under way, and begin nothing."""
        while any(worker.call is not None for worker in self._workers):
            self._collect(1.0)

    def _note(self, line: Mapping[str, object]) -> None:
        if self._record is not None:
            self._record(line)

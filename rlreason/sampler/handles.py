"""How the pool reaches a rollout worker: in this process, or as a Ray actor."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rlreason.cluster.actor import log_of, make_actor
from rlreason.cluster.failures import full, said, usable
from rlreason.cluster.needs import Need
from rlreason.cluster.places import Reservation, reserve
from rlreason.cluster.processes import end_process
from rlreason.cluster.session import own_gpus
from rlreason.delivery.group import BrokenGroup, GroupOptions
from rlreason.delivery.packing import Bytes, DeliveryError
from rlreason.errors import UsageError
from rlreason.sampler.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT, QUIET
from rlreason.sampler.worker import RolloutWorker

#: A thread of its own in each actor, which answers while the worker is at work, and seconds between two questions.
PULSE = "pulse"
PULSE_SECONDS = 1.0
#: Seconds between two looks at whether a worker that is not up has a host.
LOOK_SECONDS = 3.0
#: Has Ray leave CUDA_VISIBLE_DEVICES as it is given.
KEEP_GPUS = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"


class WorkerDied(RuntimeError):
    """The worker's process is gone."""


class WorkerFailed(RuntimeError):
    """A method raised on the worker: a bug, too little memory, or weights that don't fit. Trying again won't help."""


class Call(Protocol):
    """A method call under way on a worker."""

    def result(self) -> Any:
        """Its value. Raises WorkerDied, WorkerFailed, or DeliveryError and BrokenGroup as the worker raised them."""
        ...


class Handle(Protocol):
    """One worker."""

    def call(self, method: str, *arguments: object) -> Call:
        """Start a method; a worker runs its calls one after the other."""
        ...

    @property
    def up(self) -> bool:
        """Whether its process has answered once."""
        ...

    def silence(self) -> float:
        """Seconds for which its process has left a question unanswered; a worker that is at work answers."""
        ...

    def homeless(self) -> float:
        """Seconds for which there has been no host for its process, which never came up."""
        ...

    def interrupt(self) -> None:
        """From another thread: have a call that takes long return soon, its work undone."""
        ...

    def kill(self) -> None:
        """End the worker at once, whatever it does; never raises."""
        ...


class Cluster(Protocol):
    """Where workers come from."""

    @property
    def on_gpu(self) -> bool:
        """Whether the workers hold accelerators."""
        ...

    def start(self, worker: int) -> Handle:
        """A new worker for place ``worker``; a call to it waits until it is up."""
        ...

    def store(self, buckets: Sequence[Bytes]) -> Sequence[object]:
        """The buckets as what ``Handle.call`` may be given, one copy for all workers."""
        ...

    @property
    def group(self) -> GroupOptions | None:
        """How workers meet for weights that are broadcast to them; None: they are given what ``store`` keeps."""
        ...

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        """Those of ``calls`` that are done, waiting for the first up to ``seconds``."""
        ...

    def close(self) -> None:
        """End everything that this cluster started."""
        ...


@dataclass(slots=True)
class _Finished:
    value: Any = None
    error: BaseException | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(slots=True)
class InlineHandle:
    """A worker in this process: a call is done when it returns."""

    worker: RolloutWorker

    def call(self, method: str, *arguments: object) -> Call:
        """See ``Handle.call``."""
        try:
            return _Finished(value=getattr(self.worker, method)(*arguments))
        except Exception as error:
            return _Finished(error=error)

    @property
    def up(self) -> bool:
        """See ``Handle.up``: it is this process."""
        return True

    def silence(self) -> float:
        """See ``Handle.silence``."""
        return 0.0

    def homeless(self) -> float:
        """See ``Handle.homeless``: it is here."""
        return 0.0

    def interrupt(self) -> None:
        """See ``Handle.interrupt``."""
        self.worker.interrupt()

    def kill(self) -> None:
        """Nothing runs between calls; one in another thread returns soon."""
        self.worker.interrupt()


@dataclass(slots=True)
class InlineCluster:
    """Workers in this process; ``make`` builds one."""

    make: Callable[[], RolloutWorker]

    @property
    def on_gpu(self) -> bool:
        """One process: nothing to start anew."""
        return False

    def start(self, worker: int) -> Handle:
        """See ``Cluster.start``."""
        return InlineHandle(self.make())

    def store(self, buckets: Sequence[Bytes]) -> Sequence[object]:
        """See ``Cluster.store``."""
        return buckets

    @property
    def group(self) -> GroupOptions | None:
        """See ``Cluster.group``: this process has the weights."""
        return None

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        """See ``Cluster.wait``."""
        return list(calls)

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayOptions:
    """Which Ray, and what each worker may use of it, where no plan says so. ``gpus`` may be a fraction: two actors then
    share a GPU; with ``cpus`` 0 a worker shares the cores of others."""

    address: str | None = None
    #: 0: as many as the GPUs that are left have room for.
    workers: int = 1
    #: See ``RaySession``.
    own_gpu: bool = False
    cpus: float = 1.0
    gpus: float = 0.0
    spread: bool = False
    #: Broadcast weights to the workers; its ``host`` is filled in.
    group: GroupOptions | None = None

    @property
    def need(self) -> Need:
        """As a plan says it."""
        return Need(
            kind="rollout worker",
            setting="cluster.rollout_workers",
            count=self.workers,
            cpus=self.cpus,
            gpus=self.gpus,
            spread=self.spread,
        )


@dataclass(slots=True, eq=False)
class _RayCall:
    reference: Any
    ray: Any
    #: What the worker writes.
    log: Path | None = None

    def result(self) -> Any:
        """See ``Call.result``. Of Ray's errors only those that a new worker can't mend are the run's end."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(self.reference)
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, (DeliveryError, BrokenGroup, UsageError)):
                raise cause from None
            if isinstance(cause, errors.RayError):  # what it was to be given got lost on the way
                raise self._died(cause) from error
            raise WorkerFailed(f"{type(cause).__name__}: {cause}{self._where()}") from error
        except errors.RayError as error:  # killed for its memory, its node lost, its answer lost
            raise full(self.ray, error) or self._died(error) from error

    def _died(self, error: Exception) -> WorkerDied:
        return WorkerDied(f"{said(error)}{self._where()}")

    def _where(self) -> str:
        return "" if self.log is None else f"; what it wrote is in {self.log}"


@dataclass(slots=True)
class RayHandle:
    """A worker in a Ray actor. ``process``: its ``ProcessId`` once it is up. ``placed``: whether its place is on a
    host that is up."""

    actor: Any
    ray: Any
    placed: Callable[[], bool] = lambda: True
    log: Path | None = None
    process: Any = field(init=False)
    up: bool = field(default=False, init=False)
    #: The last question, and when it was asked.
    _pulse: Any = field(init=False)
    _asked: float = field(init=False)
    #: Since when its place is on no host, and when that was looked at.
    _homeless: float | None = field(default=None, init=False)
    _looked: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.process = self._ask()

    def _ask(self) -> Any:
        self._pulse = self.actor.process_id.options(concurrency_group=PULSE).remote()
        self._asked = time.monotonic()
        return self._pulse

    def silence(self) -> float:
        """See ``Handle.silence``. A process that has ended counts as one that answers: its call says so."""
        silent = time.monotonic() - self._asked
        if not self.ray.wait([self._pulse], timeout=0)[0]:
            return silent
        self.up = True
        if silent > PULSE_SECONDS:
            self._ask()
        return 0.0

    def homeless(self) -> float:
        """See ``Handle.homeless``. Ray is asked every few seconds."""
        now = time.monotonic()
        if not self.up and now - self._looked > LOOK_SECONDS:
            self._looked = now
            with contextlib.suppress(Exception):  # a Ray that is gone is found by the next call
                self._homeless = None if self.placed() else self._homeless or now
        return 0.0 if self.up or self._homeless is None else now - self._homeless

    def call(self, method: str, *arguments: object) -> Call:
        """See ``Handle.call``."""
        with usable(self.ray):
            return _RayCall(getattr(self.actor, method).remote(*arguments), self.ray, self.log)

    def interrupt(self) -> None:
        """Nothing to do: a call is waited for in short turns, and goes on in its own process meanwhile."""

    def kill(self) -> None:
        """See ``Handle.kill``. A stopped process (SIGSTOP) is ended as well, where it runs on this host."""
        with contextlib.suppress(Exception):
            self.ray.kill(self.actor, no_restart=True)
        with contextlib.suppress(Exception):
            end_process(self.ray.get(self.process, timeout=0))


class RayCluster:
    """Rollout workers as Ray actors, each in its place: of a running cluster, else of a Ray started here."""

    def __init__(
        self, options: RayOptions, worker: type[RolloutWorker] = RolloutWorker, places: Reservation | None = None
    ) -> None:
        """``places``: of a plan, which then says how many workers there are and what each may use. Raises UsageError
        where Ray is absent, unreachable, or has too little for the workers."""
        self._places = places or reserve(options.need, options.address, own_gpu=options.own_gpu)
        self._ray, self._need = self._places.ray, self._places.need
        #: How many workers there is a place for.
        self.workers = self._need.count
        self._options, self._class = options, worker

    @property
    def on_gpu(self) -> bool:
        """See ``Cluster.on_gpu``."""
        return self._need.gpus > 0

    def start(self, worker: int) -> RayHandle:
        """See ``Cluster.start``."""
        quiet = {name: os.environ[name] for name in QUIET if name in os.environ}
        environment = QUIET | quiet | ENVIRONMENT
        if not self._need.gpus:
            environment |= CPU_ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}
        elif self._need.here:  # on the trainer's GPUs, whichever Ray would have taken
            visible = own_gpus(max(1, round(self._need.gpus)))
            environment |= {KEEP_GPUS: "1", "CUDA_VISIBLE_DEVICES": visible}
        with usable(self._ray):
            actor = make_actor(self._places, self._class, worker, lane=PULSE, environment=environment)
            placed = partial(_placed, self._places, worker)
            return RayHandle(actor, self._ray, placed, log_of(self._places, worker))

    def store(self, buckets: Sequence[Bytes]) -> Sequence[object]:
        """See ``Cluster.store``: Ray's object store, which on one host is shared memory."""
        with usable(self._ray):
            return [self._ray.put(bucket) for bucket in buckets]

    @property
    def group(self) -> GroupOptions | None:
        """See ``Cluster.group``; ``host`` is this one's address."""
        group = self._options.group
        return None if group is None else replace(group, host=self._ray.util.get_node_ip_address())

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        """See ``Cluster.wait``."""
        by_reference: dict[Any, Call] = {call.reference: call for call in calls}  # type: ignore[attr-defined]
        with usable(self._ray):
            done, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=seconds)
            ready, _ = self._ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
        return [by_reference[reference] for reference in {*done, *ready}]

    def close(self) -> None:
        """Give the places back, and end Ray where it was started here and nobody else uses it."""
        self._places.close()


def _placed(places: Reservation, worker: int) -> bool:
    return places.host(worker) is not None

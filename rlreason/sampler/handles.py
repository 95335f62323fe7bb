"""How the pool reaches a rollout worker: in this process, or as a Ray actor."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from rlreason.cluster.session import RaySession
from rlreason.delivery.group import BrokenGroup, GroupOptions
from rlreason.delivery.packing import Bytes, DeliveryError
from rlreason.errors import UsageError
from rlreason.sampler.vllm_engine import CPU_ENVIRONMENT, ENVIRONMENT, QUIET
from rlreason.sampler.worker import RolloutWorker

#: A thread of its own in each actor, which answers while the worker is at work, and seconds between two questions.
PULSE = "pulse"
PULSE_SECONDS = 1.0


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
    """Which Ray, and what each worker may use of it. ``gpus`` may be a fraction: two actors then share a GPU; with
    ``cpus`` 0 a worker shares the cores of others."""

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


@dataclass(slots=True, eq=False)
class _RayCall:
    reference: Any
    ray: Any

    def result(self) -> Any:
        try:
            return self.ray.get(self.reference)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, (DeliveryError, BrokenGroup)):
                raise error.cause from None
            raise WorkerFailed(f"{type(error.cause).__name__}: {error.cause}") from error
        except self.ray.exceptions.RayError as error:  # killed for its memory, its node lost, its answer lost
            raise WorkerDied(" ".join(str(error).split())[:300]) from error


@dataclass(slots=True)
class RayHandle:
    """A worker in a Ray actor. ``process``: (host, process id) once it is up."""

    actor: Any
    ray: Any
    process: Any = field(init=False)
    up: bool = field(default=False, init=False)
    #: The last question, and when it was asked.
    _pulse: Any = field(init=False)
    _asked: float = field(init=False)

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

    def call(self, method: str, *arguments: object) -> Call:
        """See ``Handle.call``."""
        return _RayCall(getattr(self.actor, method).remote(*arguments), self.ray)

    def interrupt(self) -> None:
        """Nothing to do: a call is waited for in short turns, and goes on in its own process meanwhile."""

    def kill(self) -> None:
        """See ``Handle.kill``. A stopped process (SIGSTOP) is ended as well, where it runs on this host."""
        with contextlib.suppress(Exception):
            self.ray.kill(self.actor, no_restart=True)
        with contextlib.suppress(Exception):
            host, process_id = self.ray.get(self.process, timeout=0)
            if host == socket.gethostname():
                os.kill(process_id, signal.SIGKILL)


class RayCluster:
    """Rollout workers as Ray actors in one placement group: of a running cluster, else of a Ray started here."""

    def __init__(self, options: RayOptions, worker: type[RolloutWorker] = RolloutWorker) -> None:
        """Raises UsageError where Ray is absent, unreachable, or has too little for the workers."""
        self._session = RaySession(options.address, own_gpu=options.own_gpu)
        self._ray = self._session.ray
        if not options.workers:
            options = replace(options, workers=max(1, int(self._session.free_gpus() / options.gpus)))
        self._options = options
        #: How many workers there is a place for.
        self.workers = options.workers
        self._session.held_gpus = options.workers * options.gpus
        self._class = worker
        self._group: Any = None
        self._place()

    @property
    def on_gpu(self) -> bool:
        """See ``Cluster.on_gpu``."""
        return self._options.gpus > 0

    def start(self, worker: int) -> Handle:
        """See ``Cluster.start``."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(placement_group=self._group, placement_group_bundle_index=worker)
        said = {name: os.environ[name] for name in QUIET if name in os.environ}
        environment = QUIET | said | ENVIRONMENT
        if not self._options.gpus:
            environment |= CPU_ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}
        actor = self._ray.remote(concurrency_groups={PULSE: 1})(self._class).options(
            num_cpus=self._options.cpus,
            num_gpus=self._options.gpus,
            max_restarts=0,  # the pool restarts it, and delivers the weights
            scheduling_strategy=strategy,
            runtime_env={"env_vars": environment},
        )
        return RayHandle(actor.remote(), self._ray)

    def store(self, buckets: Sequence[Bytes]) -> Sequence[object]:
        """See ``Cluster.store``: Ray's object store, which on one host is shared memory."""
        return [self._ray.put(bucket) for bucket in buckets]

    @property
    def group(self) -> GroupOptions | None:
        """See ``Cluster.group``; ``host`` is this one's address."""
        group = self._options.group
        return None if group is None else replace(group, host=self._ray.util.get_node_ip_address())

    def wait(self, calls: Sequence[Call], seconds: float) -> list[Call]:
        """See ``Cluster.wait``."""
        by_reference: dict[Any, Call] = {call.reference: call for call in calls}  # type: ignore[attr-defined]
        done, _ = self._ray.wait(list(by_reference), num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(list(by_reference), num_returns=len(by_reference), timeout=0)
        return [by_reference[reference] for reference in {*done, *ready}]

    def close(self) -> None:
        """Give the placement group back, and end Ray where it was started here and no other cluster uses it."""
        with contextlib.suppress(Exception):
            self._ray.util.remove_placement_group(self._group)
        self._session.close()

    def _place(self) -> None:
        options = self._options
        bundle = {key: need for key, need in (("CPU", options.cpus), ("GPU", options.gpus)) if need}
        bundle = bundle or {"memory": 1.0}  # a place must ask for something: a byte
        group = self._group = self._ray.util.placement_group(
            [bundle] * options.workers, strategy="SPREAD" if options.spread else "PACK"
        )
        total = self._ray.cluster_resources()
        short = {
            key: need * options.workers for key, need in bundle.items() if total.get(key, 0) < need * options.workers
        }
        if short or not group.wait(timeout_seconds=60):
            self.close()
            needs = ", ".join(f"{need * options.workers:g} {key}" for key, need in bundle.items())
            has = ", ".join(f"{total.get(key, 0):g} {key}" for key in bundle)
            raise UsageError(
                f"cluster.rollout_workers = {options.workers} needs {needs}, and Ray has {has}"
                f"{'' if short else ' with too little of it free'}: use fewer workers or a larger cluster"
            )

"""N actors in one placement group that work as one: asked all at once, ended all at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlreason.cluster.session import RaySession
from rlreason.errors import UsageError

#: A thread of its own in each actor, which answers while the actor is at work.
BESIDE = "beside"
#: Seconds in which an autoscaling cluster must have made room.
PLACE_SECONDS = 600.0
#: Seconds in which Ray says that a process is gone, after others have lost it.
DEATH_SECONDS = 10.0


class ActorsDied(RuntimeError):
    """A process of the group is gone; the others are ended, as they would wait for it for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorOptions:
    """What each actor may use. ``name``: in Ray's lists and in messages. ``setting``: the recipe's key that says how
    many there are."""

    name: str
    setting: str
    address: str | None = None
    cpus: float = 0.0
    gpus: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)


class ActorGroup:
    """``count`` actors of a class; actor i is made with (i, count, *arguments)."""

    def __init__(self, kind: type, count: int, options: ActorOptions, *arguments: object) -> None:
        """Raises UsageError where Ray is absent, unreachable, or has too little."""
        self._session = RaySession(options.address)
        self._session.held_gpus = count * options.gpus
        self._ray, self._options = self._session.ray, options
        self._group: Any = None
        self._actors: list[Any] = []
        self._processes: list[tuple[str, int]] = []
        try:
            self._place(count)
            self._start(kind, count, arguments)
        except BaseException:
            self.close()
            raise

    def _place(self, count: int) -> None:
        options, ray = self._options, self._ray
        bundle = {key: need for key, need in (("CPU", options.cpus), ("GPU", options.gpus)) if need}
        bundle = bundle or {"memory": 1.0}  # a place must ask for something: a byte
        self._group = ray.util.placement_group([bundle] * count, strategy="PACK")
        total = ray.cluster_resources()
        short = {key for key, need in bundle.items() if total.get(key, 0) < need * count}
        if short or not self._group.wait(timeout_seconds=PLACE_SECONDS):
            needs = ", ".join(f"{need * count:g} {key}" for key, need in bundle.items())
            has = ", ".join(f"{total.get(key, 0):g} {key}" for key in bundle)
            raise UsageError(
                f"{options.setting} = {count} needs {needs}, and Ray has {has}"
                f"{'' if short else ' with too little of it free'}: use fewer or a larger cluster"
            )

    def _start(self, kind: type, count: int, arguments: Sequence[object]) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options = self._options
        for number in range(count):
            strategy = PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=number
            )
            actor = self._ray.remote(concurrency_groups={BESIDE: 1})(_with_process(kind)).options(
                num_cpus=options.cpus,
                num_gpus=options.gpus,
                max_restarts=0,
                scheduling_strategy=strategy,
                runtime_env={"env_vars": dict(options.environment)},
            )
            self._actors.append(actor.remote(number, count, *arguments))
        self._processes = self.ask("process_id")

    def ask(self, method: str, *arguments: object, each: Sequence[object] | None = None) -> list[Any]:
        """Call ``method`` on all actors at once and wait for all; with ``each``, every one has a first argument of its
        own. Raises what a method raised, and ActorsDied; either ends all actors, as some may wait for the others."""
        firsts = [()] * len(self._actors) if each is None else [(one,) for one in each]
        calls = [
            getattr(actor, method).remote(*first, *arguments) for actor, first in zip(self._actors, firsts, strict=True)
        ]
        return self._wait(calls)

    @property
    def count(self) -> int:
        """How many there are; 0 once they are ended."""
        return len(self._actors)

    @property
    def closed(self) -> bool:
        """Whether they are ended."""
        return not self._actors

    def ask_one(self, number: int, method: str, *arguments: object) -> Any:
        """Call ``method`` on one actor."""
        return self._wait([getattr(self._actors[number], method).remote(*arguments)])[0]

    def ask_beside(self, number: int, method: str, *arguments: object) -> Any:
        """Call ``method`` on one actor in a thread of its own, whatever else the actor does meanwhile."""
        call = getattr(self._actors[number], method).options(concurrency_group=BESIDE)
        return self._wait([call.remote(*arguments)])[0]

    def _wait(self, calls: Sequence[Any]) -> list[Any]:
        waiting = list(calls)
        try:
            while waiting:  # the first failure is seen while others still wait for that actor
                done, waiting = self._ray.wait(waiting, num_returns=1)
                self._ray.get(done)
            found: list[Any] = self._ray.get(list(calls))
        except self._ray.exceptions.RayTaskError as error:
            died = self._died(calls)
            self.close()
            raise error.cause if died is None else died from None
        except self._ray.exceptions.RayError as error:
            self.close()
            raise self._death(error) from error
        except BaseException:
            self.close()
            raise
        return found

    def _died(self, calls: Sequence[Any]) -> ActorsDied | None:
        """Where one actor died, the others say only that they lost it: the death, if there was one."""
        done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=DEATH_SECONDS)
        for call in done:
            try:
                self._ray.get(call)
            except self._ray.exceptions.RayTaskError:
                continue
            except self._ray.exceptions.RayError as error:
                return self._death(error)
        return None

    def _death(self, error: Exception) -> ActorsDied:
        return ActorsDied(f"a {self._options.name} process died: {' '.join(str(error).split())[:300]}")

    def close(self) -> None:
        """End the actors, give their place back, and leave Ray; a second time does nothing."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor, no_restart=True)
        for host, process in self._processes:  # a stopped one (SIGSTOP) hears nothing else
            if host == socket.gethostname():
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        self._actors, self._processes = [], []
        if self._group is not None:
            with contextlib.suppress(Exception):
                self._ray.util.remove_placement_group(self._group)
            self._group = None
        self._session.close()


def _with_process(kind: type) -> type:
    class Named(kind):  # type: ignore[misc]
        def process_id(self) -> tuple[str, int]:
            return socket.gethostname(), os.getpid()

    Named.__name__ = Named.__qualname__ = kind.__name__  # what Ray calls the process, also while a method runs
    return Named

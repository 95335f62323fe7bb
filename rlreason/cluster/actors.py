"""N actors that work as one: asked all at once, ended all at once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlreason.cluster.actor import Where, log_of, make_actor
from rlreason.cluster.failures import said, usable
from rlreason.cluster.needs import Need
from rlreason.cluster.places import Reservation, reserve
from rlreason.cluster.processes import end_process

#: A thread of its own in each actor, which answers while the actor is at work.
BESIDE = "beside"
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

    def __init__(
        self, kind: type, count: int, options: ActorOptions, *arguments: object, places: Reservation | None = None
    ) -> None:
        """``places``: of a plan, which then says how many there are and what each may use. Raises UsageError where Ray
        is absent, unreachable, or has too little."""
        need = Need(kind=options.name, setting=options.setting, count=count, cpus=options.cpus, gpus=options.gpus)
        self._places = reserve(need, options.address) if places is None else places
        self._ray, self._name = self._places.ray, options.name
        self._actors: list[Any] = []
        #: Calls under way, by the actors' numbers.
        self._begun: dict[int, Any] = {}
        #: Where each is.
        self.homes: list[Where] = []
        try:
            count = self._places.need.count
            for number in range(count):
                self._actors.append(
                    make_actor(
                        self._places,
                        kind,
                        number,
                        *(number, count, *arguments),
                        lane=BESIDE,
                        environment=options.environment,
                    )
                )
            self.homes = self.ask("where")
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: object, each: Sequence[object] | None = None) -> list[Any]:
        """Call ``method`` on all actors at once and wait for all; with ``each``, every one has a first argument of its
        own. Raises what a method raised, and ActorsDied; either ends all actors, as some may wait for the others."""
        self.settle()
        firsts = [()] * len(self._actors) if each is None else [(one,) for one in each]
        return self._wait(
            {
                number: lambda actor=actor, first=first: getattr(actor, method).remote(*first, *arguments)
                for number, (actor, first) in enumerate(zip(self._actors, firsts, strict=True))
            }
        )

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
        self.settle()
        return self._wait({number: lambda: getattr(self._actors[number], method).remote(*arguments)})[0]

    def begin(self, method: str, *arguments: object) -> None:
        """Call ``method`` on all actors and don't wait: the next question does, and raises what this one raised."""
        self.settle()
        with usable(self._ray):
            self._begun = {
                number: getattr(actor, method).remote(*arguments) for number, actor in enumerate(self._actors)
            }

    def settle(self) -> None:
        """Until what was begun is done."""
        self._still_there()
        begun, self._begun = self._begun, {}
        if begun:
            self._wait({number: lambda call=call: call for number, call in begun.items()})

    def ask_beside(self, number: int, method: str, *arguments: object) -> Any:
        """Call ``method`` on one actor in a thread of its own, whatever else the actor does meanwhile."""
        self._still_there()
        call = getattr(self._actors[number], method).options(concurrency_group=BESIDE)
        return self._wait({number: lambda: call.remote(*arguments)})[0]

    def _still_there(self) -> None:
        """Ended actors must not be taken for actors that have done what they were asked: a state without weights."""
        if self.closed:
            raise ActorsDied(f"the {self._name} processes have ended")

    def _wait(self, asking: Mapping[int, Any]) -> list[Any]:
        """What the calls of some actors give, by their numbers; ``asking`` begins them."""
        calls: dict[int, Any] = {}
        number = next(iter(asking), 0)
        try:
            with usable(self._ray):
                calls = {number: ask() for number, ask in asking.items()}
            of = {call: number for number, call in calls.items()}
            waiting = list(calls.values())
            while waiting:  # the first failure is seen while others still wait for that actor
                done, waiting = self._ray.wait(waiting, num_returns=1)
                number = of[done[0]]
                self._ray.get(done)
            found: list[Any] = self._ray.get(list(calls.values()))
        except self._ray.exceptions.RayTaskError as error:
            died = self._died(calls)
            self.close()
            raise _cause(error) if died is None else died from None
        except self._ray.exceptions.RayError as error:
            self.close()
            raise self._death(number, error) from error
        except BaseException:
            self.close()
            raise
        return found

    def _died(self, calls: Mapping[int, Any]) -> ActorsDied | None:
        """Where one actor died, the others say only that they lost it: the death, if there was one."""
        done, _ = self._ray.wait(list(calls.values()), num_returns=len(calls), timeout=DEATH_SECONDS)
        for number, call in calls.items():
            try:
                if call in done:
                    self._ray.get(call)
            except self._ray.exceptions.RayTaskError:
                continue
            except self._ray.exceptions.RayError as error:
                return self._death(number, error)
        return None

    def _death(self, number: int, error: Exception) -> ActorsDied:
        log = log_of(self._places, number)
        named = "" if log is None else f"; what it wrote is in {log}"
        return ActorsDied(f"{self._name} {number}: its process died: {said(error)}{named}")

    def close(self) -> None:
        """End the actors, give their place back, and leave Ray; a second time does nothing."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor, no_restart=True)
        for one in self.homes:
            end_process(one.process)
        self._actors, self.homes, self._begun = [], [], {}
        self._places.close()


def _cause(error: Any) -> BaseException:
    """What the method raised; Ray's own error where that can't be rebuilt here."""
    cause = error.cause
    return cause if isinstance(cause, BaseException) else RuntimeError(said(error))

"""Groups for the trainer, step by step: asked for, drawn and scored, in turn with training or ahead of it.

The life of a group::

    trainer's thread    _place ────────────────────────────────────────────────► take (_collect)
                          │ requests, group expected                                 ▲ all groups of the step
                          ▼                                                          │
    workers             draw completions, any order ─┐                               │
                                                     ▼                               │
    "rollouts" thread   _turn: poll ─► GroupBuilder ─► last one: scorer.submit ─► future of the scored group

With staleness 1, and v the version of the weights that draw::

    trainer    take(0)  learn 0  publish v1  take(1)  learn 1  publish v2  take(2) …
    asked for  0, 1              2                             3
    workers    0 by v0 | 1 by v0, and v1 once it is there    | 2 by v1, and v2 …

Without staleness there is no second thread: ``take`` asks, polls and waits, and the newest weights draw each step.

Step s learns from the groups of the problems s·P … (s+1)·P − 1, whenever they come: what a step learns from is a pure
function of the recipe, and only the weights that drew it depend on the schedule, which is recorded. With staleness K
groups of step s begin under version s − K or newer; a thread keeps the workers busy while the policy learns, so the
buffer holds K steps at most. Without staleness a step is asked for when it is taken: what was drawn before it, or in
another run, changes nothing of it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import Tensor

from rlreason.errors import UsageError
from rlreason.sampler.groups import WAIT, GroupBuilder, requests_of
from rlreason.sampler.pool import Record
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.schedule import LiveSchedule, ReplayedSchedule
from rlreason.types import Group, Problem, SamplingParams, Scorer

if TYPE_CHECKING:
    from rlreason.config import GrpoStage

#: What the workers did, one op a line; a run with staleness is replayed from it.
SCHEDULE = "schedule.jsonl"
#: (problems of a step, how they are drawn).
Ask = Callable[[int], tuple[list[Problem], SamplingParams]]
#: The groups of a step so far -> (other problems, how they are drawn); None: they are enough.
More = Callable[[Sequence[Group]], tuple[list[Problem], SamplingParams] | None]


class RolloutStream:
    """``take(step)`` gives the scored groups of a step, in order; ``publish`` the weights that come after it."""

    def __init__(
        self,
        sampler: PoolSampler,
        scorer: Scorer,
        ask: Ask,
        steps: Iterable[int],
        staleness: int,
        *,
        colocated: bool = False,
        verifier: Scorer | None = None,
    ) -> None:
        """``steps``: those to come, in order. The sampler holds the version that equals the first of them.
        ``verifier``: scores what ``begin`` asks for, instead of ``scorer``.
        ``colocated``: the workers sleep from ``take`` to ``publish``; needs staleness 0."""
        assert not (colocated and staleness)
        self._colocated = colocated
        self.sampler = sampler
        self._scorer, self._verifier = scorer, verifier or scorer
        self._ask = ask
        self._ahead = iter(steps)
        self._staleness = staleness
        self._orders: dict[str, _Order] = {}
        #: By group.
        self._order_of: dict[str, _Order] = {}
        self._builder = GroupBuilder()
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._closing = False
        self._pump: threading.Thread | None = None
        #: Seconds of the last ``take``: until the groups were drawn, and from then on until they were scored.
        self.seconds = (0.0, 0.0)

    def __enter__(self) -> Self:
        if self._staleness:
            self._more(self._staleness + 1)
            self._pump = threading.Thread(target=self._run, name="rollouts", daemon=True)
            self._pump.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is still being drawn is given up."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        while self._pump is not None and self._pump.is_alive():
            self.sampler.interrupt()
            self._pump.join(WAIT)

    def take(self, step: int, more: More | None = None) -> list[Group]:
        """The groups of ``step``, scored, in the order of its problems. Raises what drawing or scoring raised.

        ``more``: given what has been drawn, what to draw beside it, until it says None; needs staleness 0.
        """
        if not self._staleness:
            self._more(1)
        groups = self._collect(f"step {step}")
        while more is not None and not self._staleness and (asked := more(groups)) is not None:
            seconds = self.seconds
            self._place("other", *asked, self.sampler.version, 0, self._scorer)
            groups += self._collect("other")
            self.seconds = (seconds[0] + self.seconds[0], seconds[1] + self.seconds[1])
        if self._colocated:
            self.sampler.sleep()
        return groups

    @property
    def under_way(self) -> dict[str, list[str]]:
        """Ids of the groups that were asked for and not taken yet, by step: "step 7" -> its groups, in order."""
        with self._changed:
            return {name: list(order.keys) for name, order in self._orders.items() if name.startswith("step ")}

    def begin(self, problems: Sequence[Problem], params: SamplingParams) -> Callable[[], list[Group]]:
        """Ask for verified groups of other problems, drawn with the newest weights; what is returned waits for them.

        With staleness they are drawn among the groups of the steps to come, which may be taken meanwhile; newer
        weights may not be published before they are there.
        """
        self._place("other", problems, params, self.sampler.version, 0, self._verifier)

        def wait() -> list[Group]:
            seconds = self.seconds
            groups = self._collect("other")
            self.seconds = seconds
            return groups

        return wait

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int, expected: Sequence[Tensor] = ()) -> None:
        """Offer the weights that follow the step just taken, and ask for one more step where drawing runs ahead.

        ``expected``: the trainer's answers to ``sampler.probes``.
        """
        self.sampler.publish(weights, version, expected)
        if self._staleness:
            self._more(1)

    def _more(self, count: int) -> None:
        """Ask for the next ``count`` steps."""
        for step in islice(self._ahead, count):
            problems, params = self._ask(step)
            oldest = max(0, step - self._staleness)
            self._place(f"step {step}", problems, params, oldest, step * len(problems), self._scorer)

    def _place(
        self,
        name: str,
        problems: Sequence[Problem],
        params: SamplingParams,
        min_version: int,
        position: int,
        scorer: Scorer,
    ) -> None:
        """Ask for groups. ``position``: whose turn the first of them is, a function of what is asked for alone, so that
        a run that goes on gives its workers what the uninterrupted one would have given them."""
        if not self._staleness:  # first of all: a worker without work here would take the weights some time
            self.sampler.pool.settle_deliveries()
        groups = requests_of(problems, params, min_version)
        order = _Order(keys=[requests[0].group_id for requests in groups], scorer=scorer)
        with self._changed:
            self._orders[name] = order
            self._order_of.update((key, order) for key in order.keys)
            for requests in groups:
                self._builder.expect(requests)
            self.sampler.position = position
            self.sampler.ask([request for requests in groups for request in requests])
            self._changed.notify_all()

    def _collect(self, name: str) -> list[Group]:
        began = time.perf_counter()
        order = self._orders.pop(name)
        while self._pump is None and not order.drawn:
            self._turn(WAIT)
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or order.drawn)
        if self._failure is not None:
            raise self._failure
        drawn = time.perf_counter()
        groups = [order.scored[key].result() for key in order.keys]
        self.seconds = (drawn - began, time.perf_counter() - drawn)
        return groups

    def _turn(self, seconds: float) -> None:
        for request, completion in self.sampler.poll(seconds):
            with self._changed:
                group = self._builder.add(request, completion)
            if group is None:
                continue
            with self._changed:
                order = self._order_of.pop(group.group_id)
            future = order.scorer.submit(group, order.keys)
            with self._changed:
                order.scored[group.group_id] = future
                self._changed.notify_all()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or self.sampler.unfinished)
                    if self._closing:
                        return
                self._turn(0.1)
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()


@dataclass(slots=True)
class _Order:
    """Groups that are waited for together."""

    keys: list[str]
    scorer: Scorer
    scored: dict[str, Future[Group]] = field(default_factory=dict)

    @property
    def drawn(self) -> bool:
        """Whether all are drawn and their scores on the way."""
        return len(self.scored) == len(self.keys)


def scheduled(sampler: PoolSampler, stage: GrpoStage, record: Record, replay: Path | None) -> PoolSampler:
    """``sampler`` with its workers under the stage's schedule: recorded where it is asynchronous, or replayed.

    ``record`` takes the lines of the stage's schedule.jsonl. ``replay``: the run directory whose schedule is followed.
    Raises UsageError where that run has none of this stage.
    """
    pool = sampler.pool
    if not stage.staleness:
        return sampler  # it was opened under a live, synchronous schedule
    if replay is None:
        pool.reschedule(LiveSchedule(pool.workers, in_flight=stage.in_flight_updates), record)
        return sampler
    found = sorted((replay / "stages").glob(f"*-{stage.name}/{SCHEDULE}"))
    if not found:
        raise UsageError(f"{replay} has no recorded schedule of stage {stage.name!r} (stages/*/{SCHEDULE})")
    lines = [json.loads(line) for line in found[0].read_text(encoding="utf-8").splitlines()]
    try:
        pool.reschedule(ReplayedSchedule(lines, pool.workers), record, keep=stage.staleness + 2)
    except ValueError as error:
        raise UsageError(f"{found[0]}: {error}") from error
    return sampler

"""Runs a reward mix over groups in killable worker processes: what a run does, and ``rlreason score`` and ``audit``
too.

The life of a group: its completions are scored one by one by the *near* parts (no limits of their own, one completion a
call, not asynchronous), together in one worker; then every other part is asked in a lane of its own limits:
asynchronous ones many at a time (``concurrent_pool``), group rewards once with all completions, step rewards once with
the completions of all groups that were drawn together. Where the main part is no near one, it is asked first.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol, Self

from rlreason.rewards.calling import Scored
from rlreason.rewards.concurrent_pool import ConcurrentPool
from rlreason.rewards.concurrent_thread import ConcurrentThread
from rlreason.rewards.concurrent_worker import OUT_OF_MEMORY
from rlreason.rewards.jobs import Call, Lane, Mixes, run_call, run_call_async, seconds_of
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.pool import Outcome, Pool
from rlreason.rewards.registry import resolve_verifier, verifier_names
from rlreason.types import Completion, Problem, RewardResult, Verdict


class AnyPool(Protocol):
    """Runs calls, somewhere."""

    def submit_all(self, items: Iterable[object]) -> list[Future[Outcome]]:
        """The outcome of each, some time."""
        ...

    def close(self) -> None:
        """End what runs."""
        ...


#: A call that sees many completions has the seconds of each, and of no more than so many.
MOST_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of a run. Example: ``Limits(workers=2, timeout=5.0)``."""

    workers: int = 1
    #: Wall seconds for one completion, without the time it waits.
    timeout: float = 10.0
    #: Address space of a worker.
    memory_mb: int | None = 4096
    #: Asynchronous calls under way at a time.
    concurrency: int = 32
    #: Score of a completion that runs past its limit; None leaves it out.
    timeout_score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Completions of one problem to score. Example: ``Request(key="grpo/3/p17", problem=p, completions=(c0, c1))``."""

    key: str
    problem: Problem
    completions: tuple[Completion, ...]
    #: Keys of all requests that a reward of a whole step sees in one call, this one among them; empty: this one alone.
    together: tuple[str, ...] = ()
    step: int = 0
    #: Ask the verifier alone.
    verify: bool = False


class RewardRunner:
    """``RewardRunner(mix, Limits(workers=2)).submit(request)`` gives a future of one result a completion.

    Never an exception for what a completion contains; the future raises only where workers do not start.
    """

    def __init__(
        self, mix: RewardMix, limits: Limits = Limits(), *, local: Callable[..., AnyPool] | None = None
    ) -> None:
        """``local``: makes pools of this process, ``local(job, timeout=…)``, for rewards that no other one can load."""
        self.mixes: Mixes = (mix, mix.verification)
        self.limits = limits
        self._local = local
        self._pools: dict[Lane, AnyPool] = {}
        self._batches: dict[tuple[int, bool, tuple[str, ...]], _Batch] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; what is under way is cancelled. A later request starts new ones."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
            self._batches.clear()
        for pool in pools:
            pool.close()

    def submit(self, request: Request) -> Future[tuple[RewardResult, ...]]:
        """One result a completion, in order, as soon as its own completions are scored."""
        scoring = _Scoring(self, request)
        scoring.begin()
        return scoring.answer

    def run(self, lane: Lane, calls: Sequence[Call]) -> list[Future[Outcome]]:
        """The outcomes of calls in a lane."""
        with self._lock:
            if lane not in self._pools:
                self._pools[lane] = self._opened(lane)
            pool = self._pools[lane]
        return pool.submit_all(calls)

    def _opened(self, lane: Lane) -> AnyPool:
        if self._local is not None and lane.concurrent:
            job = functools.partial(run_call_async, self.mixes)
            return ConcurrentThread(job, seconds=seconds_of, concurrency=self.limits.concurrency)
        if self._local is not None:
            return self._local(functools.partial(run_call, self.mixes, False), timeout=seconds_of)
        memory = self.memory_of(lane)
        if lane.concurrent:
            job = functools.partial(run_call_async, self.mixes)
            return ConcurrentPool(job, seconds=seconds_of, concurrency=self.limits.concurrency, memory_mb=memory)
        return Pool(
            functools.partial(run_call, self.mixes, True),
            workers=self.limits.workers,
            timeout=seconds_of,
            memory_mb=memory,
        )

    def memory_of(self, lane: Lane) -> int | None:
        """Address space of a lane's workers in MB; None: not limited."""
        return self.limits.memory_mb if lane.memory_mb is None else lane.memory_mb or None

    def batch(self, index: int, request: Request) -> _Batch:
        """Where the request's completions meet those that a step reward sees with them."""
        together = request.together or (request.key,)
        name = (index, request.verify, together)
        with self._lock:
            found = self._batches.setdefault(name, _Batch(waiting=set(together)))
            found.waiting.discard(request.key)
            if not found.waiting:
                del self._batches[name]
        return found


@dataclass(slots=True)
class _Batch:
    """Completions for one call of a step reward; ``waiting``: keys of the requests that are not there yet."""

    waiting: set[str]
    asked: list[tuple[_Scoring, int]] = field(default_factory=list)
    futures: list[Future[None]] = field(default_factory=list)


class _Scoring:
    """One request on its way: what its parts have said so far."""

    def __init__(self, runner: RewardRunner, request: Request) -> None:
        self.runner, self.request = runner, request
        self.mix = runner.mixes[request.verify]
        self.scored: list[dict[int, Scored]] = [{} for _ in request.completions]
        self.answer: Future[tuple[RewardResult, ...]] = Future()
        self.answer.set_running_or_notify_cancel()
        self._lanes = [self._lane_of(index) for index in range(len(self.mix.parts))]
        self._near = tuple(
            index for index, (lane, per) in enumerate(self._lanes) if lane == Lane() and per == "completion"
        )

    def _lane_of(self, index: int) -> tuple[Lane, str]:
        part = self.mix.parts[index]
        try:
            entry = part.entry(self.request.problem)
        except ValueError:  # no such verifier: a worker says so
            return Lane(), "completion"
        seconds = entry.seconds if part.seconds is None else part.seconds
        memory = entry.memory_mb if part.memory_mb is None else part.memory_mb
        return Lane(entry.concurrent, seconds, memory), entry.per

    def begin(self) -> None:
        """Ask the main part, with the near ones where it is one of them."""
        if len(self._near) == len(self.mix.parts):
            self._all_near()
            return
        self._ask(self._near if 0 in self._near else (), () if 0 in self._near else (0,), self._rest)

    def _all_near(self) -> None:
        """The usual case: workers give whole rewards."""
        request, seconds = self.request, self.runner.limits.timeout
        calls = [
            Call(
                parts=self._near,
                problems=(request.problem,),
                completions=(completion,),
                main=(None,),
                whole=True,
                step=request.step,
                verify=request.verify,
                seconds=seconds,
            )
            for completion in request.completions
        ]
        outcomes = self.runner.run(Lane(), calls)
        pairs = zip(outcomes, calls, strict=True)
        _when_all(outcomes, self.answer, lambda: self.answer.set_result(tuple(self._whole(*one) for one in pairs)))

    def _whole(self, outcome: Future[Outcome], call: Call) -> RewardResult:
        found = outcome.result()
        if isinstance(found.value, RewardResult):
            return found.value
        return self.mix.combined(self.request.problem, self._found(found, call, Lane())[0], self.request.step)

    def _rest(self) -> None:
        far = tuple(index for index in range(1, len(self.mix.parts)) if index not in self._near)
        self._ask(() if 0 in self._near else self._near, far, self._done)

    def _done(self) -> None:
        problem, step = self.request.problem, self.request.step
        self.answer.set_result(tuple(self.mix.combined(problem, one, step) for one in self.scored))

    def _ask(self, near: tuple[int, ...], far: Iterable[int], then: Callable[[], None]) -> None:
        """Ask parts, and go on when all have answered."""
        waits: list[Future[None]] = []
        if near:
            waits += [
                self.call(Lane(), near, [(self, place)]) for place in range(len(self.scored)) if self._open(place)
            ]
        for index in far:
            lane, per = self._lanes[index]
            places = [place for place in range(len(self.scored)) if self._open(place)]
            places = [one for one in places if self.mix.asks(index, self.request.problem, self.scored[one])]
            if per == "step":
                waits.append(self._with_others(index, lane, places))
            elif per == "group":
                places = [one for one in range(len(self.scored)) if self.mix.parts[index].applies(self.request.problem)]
                waits += [self.call(lane, (index,), [(self, one) for one in places])] if places else []
            else:
                waits += [self.call(lane, (index,), [(self, place)]) for place in places]
        _when_all(waits, self.answer, then)

    def _open(self, place: int) -> bool:
        return not any(one.failed for one in self.scored[place].values())

    def call(self, lane: Lane, parts: tuple[int, ...], places: list[tuple[_Scoring, int]]) -> Future[None]:
        """Ask about completions, of this request or of several, in one call."""
        limits = self.runner.limits
        call = Call(
            parts=parts,
            problems=tuple(one.request.problem for one, _ in places),
            completions=tuple(one.request.completions[place] for one, place in places),
            main=tuple(one.scored[place].get(0) for one, place in places),
            step=self.request.step,
            verify=self.request.verify,
            seconds=(limits.timeout if lane.seconds is None else lane.seconds) * min(len(places), MOST_SECONDS),
        )
        done: Future[None] = Future()

        def heard(outcome: Future[Outcome]) -> None:
            try:
                found = self._found(outcome.result(), call, lane)
                for (one, place), scored in zip(places, found, strict=True):
                    one.scored[place].update(scored)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self.runner.run(lane, [call])[0].add_done_callback(heard)
        return done

    def _with_others(self, index: int, lane: Lane, places: list[int]) -> Future[None]:
        """Ask a step reward, once all that belongs to the step is there."""
        done: Future[None] = Future()
        batch = self.runner.batch(index, self.request)
        with self.runner._lock:
            batch.asked += [(self, place) for place in places]
            batch.futures.append(done)
            complete = not batch.waiting and len(batch.futures) == max(1, len(self.request.together))
        if complete:
            order = {key: number for number, key in enumerate(self.request.together)}
            batch.asked.sort(key=lambda one: (order.get(one[0].request.key, 0), one[1]))
            called = [self.call(lane, (index,), batch.asked)] if batch.asked else []
            _when_all(called, None, functools.partial(_release, batch.futures), batch.futures)
        return done

    def _found(self, outcome: Outcome, call: Call, lane: Lane) -> list[dict[int, Scored]]:
        if not outcome.failure:
            return outcome.value  # type: ignore[return-value]
        name = "" if len(self.mix.parts) == 1 or len(call.parts) > 1 else f"{self.mix.parts[call.parts[0]].name}: "
        detail = outcome.detail
        if outcome.failure == "crashed" and f"(exit status {OUT_OF_MEMORY})" in detail:
            detail = f"ran out of memory, also in a fresh process (limit {self.runner.memory_of(lane)} MB)"
        late, score = outcome.failure == "timed_out", self.runner.limits.timeout_score
        result = RewardResult(
            score=score if late else None,
            verdict=Verdict.TIMED_OUT if late else Verdict.BROKEN,
            verified=Verdict.TIMED_OUT if late and score is not None and call.parts[0] == 0 else None,
            detail=name + detail,
            seconds=outcome.seconds / len(call.completions),
        )
        return [{call.parts[0]: Scored(result=result, failed=True)} for _ in call.completions]


def _release(futures: Sequence[Future[None]]) -> None:
    for one in futures:
        one.set_result(None)


def _when_all(
    waits: Sequence[Future[Any]],
    answer: Future[tuple[RewardResult, ...]] | None,
    then: Callable[[], None],
    failed: Sequence[Future[None]] = (),
) -> None:
    """Call ``then`` once all ``waits`` are done. What one of them raised, or ``then``, is ``answer``'s exception, and
    that of ``failed``."""
    left, lock = len(waits), threading.Lock()

    def go_on() -> None:
        try:
            for one in waits:
                one.result()
            then()
        except BaseException as error:
            for future in (*failed, *((answer,) if answer is not None else ())):
                if not future.done():
                    future.set_exception(error)

    def one_more(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            go_on()

    if not waits:
        go_on()
    for one in waits:
        one.add_done_callback(one_more)


def score_rows(
    reward: str | Mapping[str, object] | RewardMix,
    rows: Sequence[tuple[Problem, Completion]],
    limits: Limits = Limits(),
) -> list[RewardResult]:
    """Score completions with any reward exactly as a run does: in worker processes, with their limits.

    ``reward``: a name, a ``[reward]`` table or a mix; of a verifier's name, every problem is verified with it.
    Neighbours with the same problem are a group; all rows are one step. Raises ValueError for a wrong name or option.
    """
    mix, verifier = mix_of(reward)
    groups: list[tuple[Problem, tuple[Completion, ...]]] = []
    for _, pairs in groupby(rows, key=lambda row: row[0].id):
        same = list(pairs)
        problem = same[0][0] if verifier is None else replace(same[0][0], verifier=verifier)
        groups.append((problem, tuple(completion for _, completion in same)))
    keys = tuple(f"{number}" for number in range(len(groups)))
    with RewardRunner(mix, limits) as runner:
        asked = [
            runner.submit(Request(key=key, problem=problem, completions=completions, together=keys))
            for key, (problem, completions) in zip(keys, groups, strict=True)
        ]
        return [result for future in asked for result in future.result()]


def mix_of(reward: str | Mapping[str, object] | RewardMix) -> tuple[RewardMix, str | None]:
    """(the mix, the verifier that problems are checked with in place of their own). Raises ValueError."""
    if isinstance(reward, RewardMix):
        return reward, None
    if isinstance(reward, str):
        if reward in verifier_names() or (":" in reward and resolve_verifier(reward).verifier):
            return RewardMix.from_table({"accuracy": 1.0}), reward
        return RewardMix.from_table({reward: 1.0}), None
    return RewardMix.from_table(reward), None

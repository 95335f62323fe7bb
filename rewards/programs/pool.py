"""Many programs at once: ``check_program`` in N worker processes, from asyncio, with back-pressure.

Each worker has a jail of its own. A program goes to the first free worker; its tests go to a worker once, however
many completions of the same problem follow.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import pickle
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Self

from rlreason.cores import usable_cores
from rlreason.rewards.jail.jail import Limits, Require
from rlreason.rewards.pool import Outcome, Pool
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import RewardResult, Verdict

#: A program and its tests, as ``check_program`` takes them.
Job = tuple[str, Mapping[str, object]]
#: Tests that a worker keeps: a batch has few problems at a time.
_KEPT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    limits: Limits | None
    partial: bool
    require: Require


@dataclass(frozen=True, slots=True)
class _Item:
    """What travels to a worker; ``tests`` (pickled) only where the worker may not have them."""

    source: str
    digest: bytes
    tests: bytes | None


def pack_tests(tests: Mapping[str, object]) -> tuple[bytes, bytes]:
    """(digest, pickle) of tests: the digest names them where they were sent before."""
    packed = pickle.dumps(dict(tests), protocol=pickle.HIGHEST_PROTOCOL)
    return hashlib.blake2b(packed, digest_size=16).digest(), packed


class _Unknown:
    """A worker's answer: these tests are not here, send them along."""


_kept: OrderedDict[bytes, Mapping[str, object]] = OrderedDict()


def _check(settings: _Settings, item: _Item) -> RewardResult | _Unknown:
    """In a worker: check one program."""
    if item.tests is not None:
        _kept[item.digest] = pickle.loads(item.tests)
        if len(_kept) > _KEPT:
            _kept.popitem(last=False)
    if item.digest not in _kept:
        return _Unknown()
    _kept.move_to_end(item.digest)
    return check_program(
        item.source,
        _kept[item.digest],
        limits=settings.limits,
        partial=settings.partial,
        require=settings.require,
    )


@dataclass(slots=True)
class _Lane:
    """One worker process and the tests that it keeps, oldest use first, as far as this side knows."""

    pool: Pool
    sent: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    def check(self, source: str, digest: bytes, tests: bytes) -> RewardResult:
        (outcome,) = self.pool.map([_Item(source, digest, None if digest in self.sent else tests)])
        if isinstance(outcome.value, _Unknown):  # a fresh worker, or one that has seen many others since
            self.sent.clear()
            (outcome,) = self.pool.map([_Item(source, digest, tests)])
        self.sent[digest] = None
        self.sent.move_to_end(digest)
        if len(self.sent) > _KEPT:
            self.sent.popitem(last=False)
        return _as_result(outcome)


def _as_result(outcome: Outcome) -> RewardResult:
    if isinstance(outcome.value, RewardResult):
        return outcome.value
    # check_program keeps its own limits: a worker that runs past the pool's, or dies, says nothing of the program.
    return RewardResult(score=None, verdict=Verdict.BROKEN, detail=outcome.detail, seconds=outcome.seconds)


class ProgramPool:
    """``async with ProgramPool(workers=2) as pool: result = await pool.check(source, tests)``.

    ``timeout``: wall seconds after which a worker that has not answered is killed and its program BROKEN; a guard
    only, well above what ``limits`` allow. Usable from any event loop, one after the other or several at once.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        limits: Limits | None = None,
        partial: bool = False,
        require: Require = "best",
        timeout: float = 600.0,
    ) -> None:
        self.workers = workers if workers is not None else usable_cores()
        if self.workers < 1:
            raise ValueError(f"need workers >= 1, not {workers}")
        job = functools.partial(_check, _Settings(limits=limits, partial=partial, require=require))
        self._lanes = [_Lane(Pool(job, workers=1, timeout=timeout)) for _ in range(self.workers)]
        self._free: SimpleQueue[_Lane] = SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="programs")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """End the workers, after the programs that run now; waiting ones are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for lane in self._lanes:
            lane.pool.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are up."""
        return tuple(pid for lane in self._lanes for pid in lane.pool.pids)

    async def check(self, source: str, tests: Mapping[str, object]) -> RewardResult:
        """Check one program as soon as a worker is free. Never raises for what the program does."""
        return (await self.check_group([source], tests))[0]

    async def check_group(self, sources: Sequence[str], tests: Mapping[str, object]) -> list[RewardResult]:
        """One result per program, in order; the tests are serialized once for all."""
        digest, packed = pack_tests(tests)
        loop = asyncio.get_running_loop()
        running = [loop.run_in_executor(self._threads, self._run, source, digest, packed) for source in sources]
        return list(await asyncio.gather(*running))

    def _run(self, source: str, digest: bytes, packed: bytes) -> RewardResult:
        lane = self._free.get()
        try:
            return lane.check(source, digest, packed)
        finally:
            self._free.put(lane)

    async def stream(
        self, jobs: Iterable[Job] | AsyncIterable[Job], *, in_flight: int | None = None
    ) -> AsyncGenerator[RewardResult, None]:
        """One result per job, in order. At most ``in_flight`` (four per worker) jobs are taken ahead of the results
        that were read, so a slow reader slows the source. A plain iterable is read on the event loop."""
        window = in_flight if in_flight is not None else 4 * self.workers
        if window < 1:
            raise ValueError(f"in_flight must be 1 or more, not {window}")
        running: deque[asyncio.Task[RewardResult]] = deque()
        try:
            async with aclosing(_source(jobs)) as source:
                async for program, tests in source:
                    running.append(asyncio.ensure_future(self.check(program, tests)))
                    if len(running) >= window:
                        yield await running.popleft()
            while running:
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()


async def _source(jobs: Iterable[Job] | AsyncIterable[Job]) -> AsyncGenerator[Job, None]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job


async def check_programs(
    jobs: Iterable[Job] | AsyncIterable[Job],
    *,
    workers: int | None = None,
    limits: Limits | None = None,
    partial: bool = False,
    require: Require = "best",
    in_flight: int | None = None,
) -> AsyncGenerator[RewardResult, None]:
    """``async for result in check_programs(jobs, workers=2)``: one result per (program, tests), in order.

    Example::

        tests = {"type": "asserts", "setup": "", "asserts": ["assert add(1, 2) == 3"]}
        jobs = [("def add(a, b): return a + b", tests), ("def add(a, b): return a", tests)]
        [result.verdict async for result in check_programs(jobs)]  # [Verdict.CORRECT, Verdict.WRONG]
    """
    async with (
        ProgramPool(workers=workers, limits=limits, partial=partial, require=require) as pool,
        aclosing(pool.stream(jobs, in_flight=in_flight)) as results,
    ):
        async for result in results:
            yield result

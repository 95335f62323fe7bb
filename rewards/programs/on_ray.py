"""``check_program`` in the processes of a Ray cluster: ``RayProgramPool``. Ray is imported when one is made."""

from __future__ import annotations

import importlib
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from rlreason.rewards.jail.jail import Limits, Require
from rlreason.rewards.programs.pool import pack_tests
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import RewardResult, Verdict

_KEPT = 64


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise RuntimeError("RayProgramPool needs Ray: pip install 'ray==2.60.0'") from None


def _check(source: str, tests: Mapping[str, object], settings: Mapping[str, Any]) -> RewardResult:
    """On a node of the cluster: the worker process keeps its jail for the programs that follow."""
    return check_program(source, tests, **settings)


class RayProgramPool:
    """``with RayProgramPool() as pool: results = pool.map(jobs)``, jobs as ``(source, tests)``.

    ``address``: of a running cluster, else Ray starts one here unless one is up. ``in_flight``: programs under way at
    most, two per CPU of the cluster by default. The nodes need rlreason installed. What a host can't enforce is
    reported by its own capabilities: ``require="full"`` refuses there, as it does here.
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        limits: Limits | None = None,
        partial: bool = False,
        require: Require = "best",
        in_flight: int | None = None,
    ) -> None:
        self._ray = _ray()
        self._started = not self._ray.is_initialized()
        if self._started:
            self._ray.init(address=address, log_to_driver=False, include_dashboard=False)
        cpus = int(self._ray.cluster_resources()["CPU"])
        self.in_flight = in_flight if in_flight is not None else 2 * cpus
        if self.in_flight < 1:
            raise ValueError(f"in_flight must be 1 or more, not {self.in_flight}")
        self._settings = {"limits": limits, "partial": partial, "require": require}
        self._task = self._ray.remote(num_cpus=1, max_retries=1)(_check)
        self._tests: OrderedDict[bytes, Any] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Shut down the cluster if this pool started it."""
        self._tests.clear()
        if self._started:
            self._ray.shutdown()

    def map(self, jobs: Iterable[tuple[str, Mapping[str, object]]]) -> list[RewardResult]:
        """One result per job, in order."""
        return list(self.imap(jobs))

    def imap(self, jobs: Iterable[tuple[str, Mapping[str, object]]]) -> Iterator[RewardResult]:
        """Like ``map``, streaming: a job is taken from ``jobs`` only when fewer than ``in_flight`` are under way."""
        running: deque[Any] = deque()
        try:
            for source, tests in jobs:
                running.append(self._task.remote(source, self._put(tests), self._settings))
                if len(running) >= self.in_flight:
                    yield self._get(running.popleft())
            while running:
                yield self._get(running.popleft())
        finally:
            for reference in running:
                self._ray.cancel(reference)

    def _put(self, tests: Mapping[str, object]) -> Any:
        """The tests in Ray's object store, once however many programs they are for."""
        digest, _ = pack_tests(tests)
        if digest not in self._tests:
            self._tests[digest] = self._ray.put(dict(tests))
            if len(self._tests) > _KEPT:
                self._tests.popitem(last=False)
        self._tests.move_to_end(digest)
        return self._tests[digest]

    def _get(self, reference: Any) -> RewardResult:
        try:
            result: RewardResult = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:  # a node or worker that died, or what check_program raised
            detail = f"Ray: {type(error).__name__}: {error}"[-500:]
            return RewardResult(score=None, verdict=Verdict.BROKEN, detail=detail)
        return result

"""Runs a reward mix over groups in killable worker processes. Never an exception for what a completion contains."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Self

from rlreason.rewards.mix import RewardMix
from rlreason.rewards.pool import Outcome, Pool
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict


def _score_one(mix: RewardMix, item: tuple[Problem, Completion]) -> RewardResult:
    return mix(*item)


def as_reward(outcome: Outcome, timeout_score: float | None = None) -> RewardResult:
    """A pool outcome as a result: a limit passed is TIMED_OUT, a dead worker BROKEN."""
    if isinstance(outcome.value, RewardResult):
        return outcome.value
    if outcome.failure == "timed_out":
        return RewardResult(
            score=timeout_score, verdict=Verdict.TIMED_OUT, detail=outcome.detail, seconds=outcome.seconds
        )
    return RewardResult(score=None, verdict=Verdict.BROKEN, detail=outcome.detail, seconds=outcome.seconds)


class PoolScorer:
    """``Scorer`` over worker processes: ``PoolScorer(mix, workers=2, timeout=5.0).score(groups)``.

    ``timeout`` is wall seconds for one completion, without the time it waits for a worker. A completion that runs
    past it is TIMED_OUT with ``timeout_score`` (None: left out of baseline and loss); one whose worker dies twice
    is BROKEN. Workers do not get log-probabilities and routing, which are large and say nothing of the answer.
    """

    def __init__(
        self,
        mix: RewardMix,
        *,
        workers: int = 1,
        timeout: float = 10.0,
        timeout_score: float | None = None,
        memory_mb: int | None = 4096,
    ) -> None:
        self._timeout_score = timeout_score
        self._pool = Pool(functools.partial(_score_one, mix), workers=workers, timeout=timeout, memory_mb=memory_mb)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    def submit(self, group: Group) -> Future[Group]:
        """The group with ``rewards_G`` filled, as soon as its own completions are scored."""
        answers = self._pool.submit_all(
            (group.problem, replace(completion, sampler_logprobs=None, routed_experts=None, teacher_logprobs=None))
            for completion in group.completions_G
        )
        scored: Future[Group] = Future()
        left = len(answers)
        lock = threading.Lock()

        def one_more(_: Future[Outcome]) -> None:
            nonlocal left
            with lock:
                left -= 1
                if left:
                    return
            try:
                rewards = [as_reward(answer.result(), self._timeout_score) for answer in answers]
            except BaseException as error:
                scored.set_exception(error)
            else:
                scored.set_result(replace(group, rewards_G=tuple(rewards)))

        for answer in answers:
            answer.add_done_callback(one_more)
        if not answers:
            scored.set_result(replace(group, rewards_G=()))
        return scored

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups, in order, with ``rewards_G`` filled."""
        return [scored.result() for scored in [self.submit(group) for group in groups]]

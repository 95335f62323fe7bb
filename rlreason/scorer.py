"""Runs a reward mix over groups in killable worker processes. Never an exception for what a completion contains."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Self

from rlreason.local_pool import LocalPool
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.pool import Outcome, Pool
from rlreason.types import Completion, Group, Problem, RewardResult, Scorer, Verdict


def _score_one(mixes: tuple[RewardMix, RewardMix], item: tuple[Problem, Completion, bool]) -> RewardResult:
    """``mixes``: the recipe's, and its verifier alone; the item's last entry says which. Completions of one group share
    arrays, so none may be written to."""
    problem, completion, verify_only = item
    return mixes[verify_only](problem, _read_only(completion))


def _read_only(completion: Completion) -> Completion:
    """The same with views of its arrays that can't be written to: where they came from, they stay as they are."""
    prompt_ids, token_ids = completion.prompt_ids.view(), completion.token_ids.view()
    loss_mask, versions = completion.loss_mask.view(), completion.policy_versions.view()
    for array in (prompt_ids, token_ids, loss_mask, versions):
        array.flags.writeable = False
    return replace(
        completion, prompt_ids=prompt_ids, token_ids=token_ids, loss_mask=loss_mask, policy_versions=versions
    )


def as_reward(outcome: Outcome, timeout_score: float | None = None) -> RewardResult:
    """A pool outcome as a result: a limit passed is TIMED_OUT, a dead worker BROKEN."""
    if isinstance(outcome.value, RewardResult):
        return outcome.value
    if outcome.failure == "timed_out":
        return RewardResult(
            score=timeout_score,
            verdict=Verdict.TIMED_OUT,
            verified=None if timeout_score is None else Verdict.TIMED_OUT,
            detail=outcome.detail,
            seconds=outcome.seconds,
        )
    return RewardResult(score=None, verdict=Verdict.BROKEN, detail=outcome.detail, seconds=outcome.seconds)


class PoolScorer:
    """``Scorer`` over worker processes: ``PoolScorer(mix, workers=2, timeout=5.0).score(groups)``.

    ``timeout`` is wall seconds for one completion, without the time it waits for a worker. A completion that runs
    past it is TIMED_OUT with ``timeout_score`` (None: left out of baseline and loss); one whose worker dies twice
    is BROKEN. Workers do not get log-probabilities and routing, which are large and say nothing of the answer.

    ``verifier`` is a ``Scorer`` of the same workers that asks each problem's verifier alone: what evaluations measure.
    A problem and a completion can't be changed by a reward for the others.
    """

    def __init__(
        self,
        mix: RewardMix,
        *,
        workers: int = 1,
        timeout: float = 10.0,
        timeout_score: float | None = None,
        memory_mb: int | None = 4096,
        local: bool = False,
    ) -> None:
        """``local``: in a thread of this process, for rewards that no other one can load (``LocalPool``)."""
        self._timeout_score = timeout_score
        job = functools.partial(_score_one, (mix, mix.verification))
        self._pool: Pool | LocalPool
        if local:
            self._pool = LocalPool(job, timeout=timeout)
        else:
            self._pool = Pool(job, workers=workers, timeout=timeout, memory_mb=memory_mb)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    @property
    def verifier(self) -> Scorer:
        """Asks the verifiers alone."""
        return _Verifier(self)

    def submit(self, group: Group, *, verify_only: bool = False) -> Future[Group]:
        """The group with ``rewards_G`` filled, as soon as its own completions are scored."""
        answers = self._pool.submit_all(
            (
                group.problem,
                replace(completion, sampler_logprobs=None, routed_experts=None, teacher_logprobs=None),
                verify_only,
            )
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


@dataclass(frozen=True, slots=True)
class _Verifier:
    """See ``PoolScorer.verifier``."""

    scorer: PoolScorer

    def submit(self, group: Group) -> Future[Group]:
        """See ``Scorer``."""
        return self.scorer.submit(group, verify_only=True)

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """See ``Scorer``."""
        return [scored.result() for scored in [self.submit(group) for group in groups]]

"""Runs a reward mix over groups in killable worker processes. Never an exception for what a completion contains."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Self

from rlreason.local_pool import LocalPool
from rlreason.rewards.mix import RewardMix
from rlreason.rewards.pool import Outcome
from rlreason.rewards.running import Limits, Request, RewardRunner
from rlreason.types import Completion, Group, RewardResult, Scorer, Verdict


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

    ``timeout`` is wall seconds for one completion, without the time it waits for a worker; a reward that declares other
    seconds has those. A completion that runs past it is TIMED_OUT with ``timeout_score`` (None: left out of baseline
    and loss); one whose worker dies twice is BROKEN. ``concurrency`` calls of asynchronous rewards are under way at a
    time. Workers do not get log-probabilities and routing, which are large and say nothing of the answer.

    ``verifier`` is a ``Scorer`` of the same workers that asks each problem's verifier alone: what evaluations measure.
    A problem and a completion can't be changed by a reward for the others. ``rewards/running.py`` has the rest.
    """

    def __init__(
        self,
        mix: RewardMix,
        *,
        workers: int = 1,
        timeout: float = 10.0,
        timeout_score: float | None = None,
        memory_mb: int | None = 4096,
        concurrency: int = 32,
        local: bool = False,
    ) -> None:
        """``local``: in a thread of this process, for rewards that no other one can load (``LocalPool``)."""
        limits = Limits(
            workers=workers,
            timeout=timeout,
            timeout_score=timeout_score,
            memory_mb=memory_mb,
            concurrency=concurrency,
        )
        self._runner = RewardRunner(mix, limits, local=LocalPool if local else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        self._runner.close()

    @property
    def verifier(self) -> Scorer:
        """Asks the verifiers alone."""
        return _Verifier(self)

    def submit(self, group: Group, together: Sequence[str] = (), *, verify_only: bool = False) -> Future[Group]:
        """The group with ``rewards_G`` filled, as soon as its own completions are scored.

        ``together``: ids of the groups that are drawn for one step, this one among them. A reward that sees a whole
        step waits for all of them; without, the group is all that it sees.
        """
        return self._submit(group, group.group_id, tuple(together), verify_only)

    def _submit(self, group: Group, key: str, together: tuple[str, ...], verify_only: bool) -> Future[Group]:
        request = Request(
            key=key,
            problem=group.problem,
            completions=tuple(map(_without_numbers, group.completions_G)),
            together=together,
            step=step_of(group.group_id),
            verify=verify_only,
        )
        scored: Future[Group] = Future()
        scored.set_running_or_notify_cancel()

        def done(answer: Future[tuple[RewardResult, ...]]) -> None:
            error = answer.exception()
            if error is not None:
                scored.set_exception(error)
            else:
                scored.set_result(replace(group, rewards_G=answer.result()))

        self._runner.submit(request).add_done_callback(done)
        return scored

    def score(self, groups: Sequence[Group], *, verify_only: bool = False) -> list[Group]:
        """The same groups, in order, with ``rewards_G`` filled; to a reward that sees a whole step they are one."""
        keys = tuple(f"{number}/{group.group_id}" for number, group in enumerate(groups))
        asked = [self._submit(group, key, keys, verify_only) for key, group in zip(keys, groups, strict=True)]
        return [scored.result() for scored in asked]


def step_of(group_id: str) -> int:
    """The step of a group of a training stage, ``grpo/3/p17``; 0 elsewhere."""
    step = group_id.split("/", 2)[1:2]
    return int(step[0]) if step and step[0].isdecimal() and group_id.count("/") > 1 else 0


def _without_numbers(completion: Completion) -> Completion:
    return replace(
        completion,
        sampler_logprobs=None,
        routed_experts=None,
        prompt_experts=None,
        teacher_logprobs=None,
        sampled_from=None,
    )


@dataclass(frozen=True, slots=True)
class _Verifier:
    """See ``PoolScorer.verifier``."""

    scorer: PoolScorer

    def submit(self, group: Group, together: Sequence[str] = ()) -> Future[Group]:
        """See ``Scorer``."""
        return self.scorer.submit(group, together, verify_only=True)

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """See ``Scorer``."""
        return self.scorer.score(groups, verify_only=True)

"""Majority voting: maj@k, also called cons@k."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlreason.rewards.math.answer import gold_answer, same_answer
from rlreason.rewards.math.values import Options
from rlreason.types import Group, RewardResult, Verdict


def majority_at_k(groups: Sequence[Group], k: int) -> float | None:
    """Mean over problems of the chance that the answer most given among k samples is right (arXiv 2203.11171).

    Each problem's samples are cut into runs of k, so the estimate has no bias; answers that tie share the chance. All
    right answers are one answer; others are one where they are written alike or, for the verifier "math", are equal.
    An answer that can't be read casts no vote, and a completion whose check broke is no sample. None where no problem
    has k samples.
    """
    found = [value for group in groups if (value := _of_problem(group, k)) is not None]
    return fmean(found) if found else None


def _of_problem(group: Group, k: int) -> float | None:
    rewards = [one for one in group.rewards_G if one.verified is not None]
    runs = [rewards[start : start + k] for start in range(0, len(rewards) - k + 1, k)]
    return fmean(_vote(run, group.problem.verifier) for run in runs) if runs else None


def _vote(rewards: Sequence[RewardResult], verifier: str) -> float:
    """Chance that a right answer wins."""
    right = sum(one.verified is Verdict.CORRECT for one in rewards)
    others: list[tuple[str, int]] = []
    for one in rewards:
        if one.verified is not Verdict.WRONG or not one.extracted:
            continue
        place = next((i for i, (text, _) in enumerate(others) if _alike(text, one.extracted, verifier)), None)
        if place is None:
            others.append((one.extracted, 1))
        else:
            others[place] = (others[place][0], others[place][1] + 1)
    most = max((count for _, count in others), default=0)
    if not right or right < most:
        return 0.0
    return 1.0 / (1 + sum(count == right for _, count in others))


def _alike(first: str, second: str, verifier: str) -> bool:
    if first.split() == second.split():
        return True
    if verifier != "math":
        return False
    return bool(same_answer(gold_answer(first), gold_answer(second), Options()))

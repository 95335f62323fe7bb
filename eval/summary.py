"""Scored groups -> an EvalReport with intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

from rlreason.eval.intervals import pass_at_k, wilson
from rlreason.types import EvalReport, Group, Interval, Verdict


def summarize(groups: Sequence[Group], model: str, suite: str) -> EvalReport:
    """Accuracy over problems, with 95 % intervals, overall and by tag.

    A completion counts as correct only with verdict CORRECT: a check that timed out or broke is not a success, and
    its count stands in ``verdicts``. With several samples a problem contributes its share of correct ones, and the
    interval treats problems, not samples, as the independent observations.
    """
    if not groups:
        raise ValueError("nothing to summarize: no groups")
    shares = [_correct(group) / len(group.rewards_G) for group in groups]
    by_tag: dict[str, list[float]] = defaultdict(list)
    for group, share in zip(groups, shares, strict=True):
        for tag in group.problem.tags:
            by_tag[tag].append(share)
    samples = min(len(group.rewards_G) for group in groups)
    return EvalReport(
        model=model,
        suite=suite,
        accuracy=_interval(shares),
        pass_at_k={
            k: fmean(pass_at_k(len(group.rewards_G), _correct(group), k) for group in groups) for k in _ks(samples)
        },
        verdicts=dict(Counter(str(reward.verdict) for group in groups for reward in group.rewards_G)),
        by_tag={tag: _interval(values) for tag, values in sorted(by_tag.items())},
        mean_tokens=fmean(len(completion.token_ids) for group in groups for completion in group.completions_G),
    )


def _correct(group: Group) -> int:
    return sum(reward.verdict is Verdict.CORRECT for reward in group.rewards_G)


def _interval(shares: Sequence[float]) -> Interval:
    return wilson(sum(shares), len(shares))


def _ks(samples: int) -> list[int]:
    """1, 2, 4, … up to ``samples``."""
    return [2**power for power in range(samples.bit_length()) if 2**power <= samples]

"""Scored groups -> an EvalReport with intervals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean

from rlreason.eval.intervals import mean_share, pass_at_k, sampling_deviation
from rlreason.eval.voting import majority_at_k
from rlreason.types import EvalReport, Group, Interval, RewardResult, Verdict


def summarize(groups: Sequence[Group], model: str, suite: str) -> EvalReport:
    """Accuracy of verified answers over problems, with 95 % intervals, overall and by tag.

    An answer is verified where the verifier gave it a verdict (``RewardResult.verified``): a check that broke, or ran
    past its limit without a score, says nothing of the answer, is in no denominator, and its share is in ``broken`` and
    ``timed_out``. With several samples a problem contributes its share of correct ones among the verified ones (the
    mean is avg@k), and the interval treats problems, not samples, as the independent observations. A problem without a
    verified answer is left out; where none is left, ``accuracy.count`` is 0 and its interval [0, 1].
    """
    if not groups:
        raise ValueError("nothing to summarize: no groups")
    rewards = [reward for group in groups for reward in group.rewards_G]
    counted = [group for group in groups if _verified(group)]
    shares = [_correct(group) / _verified(group) for group in counted]
    samples = [_verified(group) for group in counted]
    by_tag: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for group, share, of in zip(counted, shares, samples, strict=True):
        for tag in group.problem.tags:
            by_tag[tag].append((share, of))
    completions = [completion for group in groups for completion in group.completions_G]
    return EvalReport(
        model=model,
        suite=suite,
        accuracy=_interval(list(zip(shares, samples, strict=True))),
        pass_at_k=_pass_at_ks(counted),
        majority_at_k=_majorities(counted),
        rerun_deviation=sampling_deviation([_correct(group) for group in counted], samples),
        verdicts=dict(Counter(str(reward.verdict) for reward in rewards)),
        broken=_share(rewards, Verdict.BROKEN),
        timed_out=_share(rewards, Verdict.TIMED_OUT),
        unparsed=sum(one.verdict is Verdict.UNPARSED for one in rewards) / max(1, len(rewards)),
        truncated=sum(one.finish_reason == "length" for one in completions) / max(1, len(completions)),
        by_tag={tag: _interval(values) for tag, values in sorted(by_tag.items())},
        mean_tokens=fmean(len(completion.token_ids) for completion in completions),
    )


def counts(groups: Sequence[Group]) -> dict[str, tuple[int, int]]:
    """Problem id -> (correct answers, verified answers): what ``eval.paired`` compares."""
    return {group.problem.id: (_correct(group), _verified(group)) for group in groups}


def _correct(group: Group) -> int:
    return sum(reward.verified is Verdict.CORRECT for reward in group.rewards_G)


def _verified(group: Group) -> int:
    return sum(reward.verified is not None for reward in group.rewards_G)


def _share(rewards: Sequence[RewardResult], verdict: Verdict) -> float:
    """Completions that have no verdict for the reason ``verdict``."""
    return sum(one.verified is None and one.verdict is verdict for one in rewards) / max(1, len(rewards))


def _pass_at_ks(groups: Sequence[Group]) -> dict[int, float]:
    """For k = 1, 2, 4, …: the mean over problems with at least k verified answers."""
    found = {}
    for k in _ks(max((_verified(group) for group in groups), default=0)):
        enough = [group for group in groups if _verified(group) >= k]
        found[k] = fmean(pass_at_k(_verified(group), _correct(group), k) for group in enough)
    return found


def _majorities(groups: Sequence[Group]) -> dict[int, float]:
    """For k = 2, 4, …, and for all samples: the majority of one sample is that sample."""
    most = max((_verified(group) for group in groups), default=0)
    found = {k: majority_at_k(groups, k) for k in sorted({*_ks(most), most}) if k > 1}
    return {k: value for k, value in found.items() if value is not None}


def _interval(found: Sequence[tuple[float, int]]) -> Interval:
    """Of (share of correct answers, verified answers) by problem."""
    if not found:
        return Interval(value=0.0, low=0.0, high=1.0, count=0)
    return mean_share([share for share, _ in found], [of for _, of in found])


def _ks(samples: int) -> list[int]:
    """1, 2, 4, … up to ``samples``."""
    return [2**power for power in range(samples.bit_length()) if 2**power <= samples]

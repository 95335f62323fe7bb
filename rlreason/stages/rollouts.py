"""What a step's rollouts look like: numbers for metrics.jsonl, rows for rollouts.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from statistics import fmean, pstdev

import numpy as np

from rlreason.config import GrpoStage
from rlreason.objective.advantage import is_informative
from rlreason.run.directory import RunDirectory
from rlreason.stages.credit import advantages_of
from rlreason.types import Group, Verdict


def summarize(groups: Sequence[Group], useful: Sequence[Group]) -> dict[str, float]:
    """Rewards, verdicts, lengths and group counts of one step's scored groups.

    Verdicts are shares of all completions; ``accuracy/train`` counts only completions with a verdict.
    """
    completions = [completion for group in groups for completion in group.completions_G]
    rewards = [reward for group in groups for reward in group.rewards_G]
    scores = [reward.score for reward in rewards if reward.score is not None]
    verdicts = Counter(reward.verdict for reward in rewards)
    judged = sum(verdicts[verdict] for verdict in (Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED))
    lengths = [len(completion.token_ids) for completion in completions]
    return {
        "reward/mean": fmean(scores) if scores else 0.0,
        "reward/std": pstdev(scores) if scores else 0.0,
        **_part_means(groups),
        "accuracy/train": verdicts[Verdict.CORRECT] / judged if judged else 0.0,
        **{f"verdict/{verdict}": verdicts[verdict] / len(rewards) for verdict in Verdict},
        "length/mean": fmean(lengths),
        "length/max": float(max(lengths)),
        "truncated": fmean(completion.finish_reason == "length" for completion in completions),
        "groups/kept": float(len(useful)),
        "groups/zero_variance": float(sum(not is_informative(group.scores_G) for group in groups)),
        "groups/no_verdict": float(sum(all(score is None for score in group.scores_G) for group in groups)),
        "tokens": float(sum(lengths)),
    }


def staleness(groups: Sequence[Group], version: int) -> dict[str, float]:
    """How many versions older than ``version`` the weights were that drew each token."""
    lags_N = version - np.concatenate([one.policy_versions for group in groups for one in group.completions_G])
    return {"staleness/mean": float(lags_N.mean()), "staleness/max": float(lags_N.max())}


def nonfinite_logprobs(groups: Sequence[Group]) -> dict[str, float]:
    """Tokens whose sampler log-probability is not finite: they carry no loss. Nothing where there are none."""
    found = [one.sampler_logprobs for group in groups for one in group.completions_G]
    count = sum(int((~np.isfinite(one)).sum()) for one in found if one is not None)
    return {"mismatch/nonfinite": float(count)} if count else {}


def _part_means(groups: Sequence[Group]) -> dict[str, float]:
    parts: dict[str, list[float]] = {}
    for group in groups:
        for reward in group.rewards_G:
            for name, value in reward.parts.items():
                parts.setdefault(name, []).append(value)
    return {f"reward/{name}": fmean(values) for name, values in sorted(parts.items())}


def log_groups(run: RunDirectory, stage: str, step: int, groups: Sequence[Group], learner: GrpoStage | None) -> None:
    """Append every completion of ``groups`` to the stage's rollouts.jsonl; without a ``learner`` no advantages.

    The advantages are those within ``groups``, before a KL penalty.
    """
    earned: Iterator[float | None] = repeat(None)
    if learner is not None:
        found = advantages_of(groups, learner)
        earned = (
            a if kept else None for a, kept in zip(found.advantages_N.tolist(), found.kept_N.tolist(), strict=True)
        )
    for group in groups:
        for sample, (completion, reward) in enumerate(zip(group.completions_G, group.rewards_G, strict=True)):
            run.append(
                stage,
                "rollouts.jsonl",
                {
                    "step": step,
                    "group_id": group.group_id,
                    "problem_id": group.problem.id,
                    "prompt": group.problem.prompt,
                    "reference": group.problem.reference,
                    "sample": sample,
                    "response": completion.response,
                    "verdict": reward.verdict,
                    "score": reward.score,
                    "extracted": reward.extracted,
                    "parts": dict(reward.parts),
                    "detail": reward.detail,
                    "advantage": next(earned),
                    "tokens": len(completion.token_ids),
                    "finish_reason": completion.finish_reason,
                    "policy_version": completion.policy_version_max,
                    "policy_version_min": completion.policy_version_min,
                },
            )

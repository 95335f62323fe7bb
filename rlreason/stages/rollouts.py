"""How a grpo stage's rollouts are drawn, and what they look like in numbers, for metrics.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal

import numpy as np

from rlreason.config import GrpoStage
from rlreason.objective.advantage import is_informative
from rlreason.stages.context import Context
from rlreason.types import Group, SamplingParams, Verdict


def summarize(groups: Sequence[Group], computed: Sequence[Group]) -> dict[str, float]:
    """Rewards, verdicts, lengths and group counts of one step's scored groups. ``computed``: those of which the trainer
    computes any completion, counted as ``groups/kept``.

    Verdicts are shares of all completions. ``accuracy/train`` is the verifier's, over the completions that it gave a
    verdict. What nothing was measured of (no score, no verdict) is left out.
    """
    completions = [completion for group in groups for completion in group.completions_G]
    rewards = [reward for group in groups for reward in group.rewards_G]
    scores = [reward.score for reward in rewards if reward.score is not None]
    verified = [reward.verified for reward in rewards if reward.verified is not None]
    lengths = [len(completion.token_ids) for completion in completions]
    return {
        **({"reward/mean": fmean(scores), "reward/std": pstdev(scores)} if scores else {}),
        **_part_means(groups),
        **({"accuracy/train": verified.count(Verdict.CORRECT) / len(verified)} if verified else {}),
        **verdict_shares(groups),
        "length/mean": fmean(lengths),
        "length/max": float(max(lengths)),
        "truncated": fmean(completion.finish_reason == "length" for completion in completions),
        "groups/total": float(len(groups)),
        "groups/kept": float(len(computed)),
        "groups/zero_variance": float(sum(not is_informative(group.scores_G) for group in groups)),
        "groups/no_verdict": float(sum(all(score is None for score in group.scores_G) for group in groups)),
        "tokens": float(sum(lengths)),
    }


def verdict_shares(groups: Sequence[Group]) -> dict[str, float]:
    """What the rewards concluded, as shares of all completions; together they are 1.

    A program that the policy wrote and that ran past its limit of time is an answer that failed
    (``verdict/program_timed_out``); a check that did says nothing of the answer (``verdict/timed_out``).
    """
    rewards = [reward for group in groups for reward in group.rewards_G]
    late = sum(reward.verdict is Verdict.TIMED_OUT and reward.verified is Verdict.TIMED_OUT for reward in rewards)
    verdicts = Counter(reward.verdict for reward in rewards)
    verdicts[Verdict.TIMED_OUT] -= late
    shares = {f"verdict/{verdict}": verdicts[verdict] / len(rewards) for verdict in Verdict}
    return shares | {"verdict/program_timed_out": late / len(rewards)}


def broken_detail(groups: Sequence[Group]) -> str:
    """Why the first broken completion broke, and on which problem; "" where none did."""
    broken = ((group, reward) for group in groups for reward in group.rewards_G if reward.verdict is Verdict.BROKEN)
    return next((f"{reward.detail} [problem {group.problem.id}]" for group, reward in broken), "")


def all_broken(groups: Sequence[Group]) -> bool:
    """Whether no completion has a verdict, as every check failed."""
    verdicts = {reward.verdict for group in groups for reward in group.rewards_G}
    return verdicts == {Verdict.BROKEN}


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


def sampling_params(stage: GrpoStage, context: Context, stream: str) -> SamplingParams:
    """How completions of the stage are drawn."""
    return SamplingParams(
        samples_per_problem=stage.samples_per_problem,
        temperature=stage.temperature,
        top_p=stage.top_p,
        top_k=stage.top_k,
        min_p=stage.min_p,
        max_tokens=stage.max_tokens,
        seed=context.recipe.seed,
        stream=stream,
        record=recorded(stage),
        record_top=stage.objective.centering_top_k if stage.objective.centering == "top_k" else 0,
    )


def recorded(stage: GrpoStage) -> Literal["", "ids", "logprobs"]:
    """What each token must bring of what it was drawn from (``SamplingParams.record``)."""
    if stage.objective.centering != "off":
        return "logprobs"
    return "ids" if stage.top_p < 1.0 or stage.top_k or stage.min_p else ""


def with_workers(scalars: dict[str, float], stats: dict[str, float]) -> dict[str, float]:
    """``scalars`` with what happened to the workers: counts add up; of seconds and differences the largest stands."""
    found = dict(scalars)
    for key, value in stats.items():
        if key in found:
            found[key] = max(found[key], value) if key.startswith("delivery/") else found[key] + value
        else:
            found[key] = value
    return found

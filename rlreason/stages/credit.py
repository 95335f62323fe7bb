"""Scored groups -> training rows: advantages and loss weights of one update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlreason.config import GrpoStage
from rlreason.objective.advantage import Credit, dense_groups, group_advantage, is_informative
from rlreason.policy.batch import rollout_row
from rlreason.types import Completion, Group, Row


def useful_groups(groups: Sequence[Group], stage: GrpoStage) -> list[Group]:
    """The groups to learn from: all, or those whose rewards differ where others have advantage 0 anyway."""
    if stage.drop_zero_variance and stage.objective.has_group_baseline:
        return [group for group in groups if is_informative(group.scores_G)]
    return list(groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A completion with its score and group. Example: ``Sample(completion=c, score=1.0, group_id="grpo/3/p17")``."""

    completion: Completion
    score: float | None
    group_id: str


def samples_of(groups: Sequence[Group]) -> list[Sample]:
    """All completions of ``groups``, in order."""
    return [
        Sample(completion=completion, score=score, group_id=group.group_id)
        for group in groups
        for completion, score in zip(group.completions_G, group.scores_G, strict=True)
    ]


def credit_of(samples: Sequence[Sample], stage: GrpoStage, penalties_N: Sequence[float] | None = None) -> Credit:
    """Advantages and weights of one update. ``penalties_N`` are taken off the scores first (KL in the reward)."""
    scores_N = torch.tensor([float("nan") if one.score is None else one.score for one in samples], dtype=torch.float64)
    if penalties_N is not None:
        scores_N = scores_N - torch.tensor(penalties_N, dtype=torch.float64)
    return group_advantage(
        scores_N,
        torch.tensor(dense_groups([one.group_id for one in samples])),
        torch.tensor([len(one.completion.token_ids) for one in samples]),
        stage.objective,
        max_tokens=stage.max_tokens,
        truncated_N=torch.tensor([one.completion.finish_reason == "length" for one in samples]),
    )


def rows_of(samples: Sequence[Sample], credit: Credit) -> list[Row]:
    """Training rows of the completions that carry loss."""
    return [
        rollout_row(one.completion, advantage, weight, one.group_id)
        for one, kept, advantage, weight in zip(
            samples, credit.kept_N.tolist(), credit.advantages_N.tolist(), credit.weights_N.tolist(), strict=True
        )
        if kept
    ]

"""Scored groups -> training samples: advantages and loss weights of one update."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlreason.config import GrpoStage
from rlreason.objective.advantage import Advantages, dense_groups, group_advantage, is_informative
from rlreason.policy.batch import rollout_sample, trained_tokens
from rlreason.types import Completion, Group, TrainingSample


def useful_groups(groups: Sequence[Group], stage: GrpoStage) -> list[Group]:
    """The groups to learn from: all, or those whose rewards differ where others have advantage 0 anyway."""
    if stage.drop_zero_variance and stage.objective.has_group_baseline:
        return [group for group in groups if is_informative(group.scores_G)]
    return list(groups)


def completions_of(groups: Sequence[Group]) -> list[Completion]:
    """All completions of ``groups``, in order: the N of ``advantages_of``."""
    return [completion for group in groups for completion in group.completions_G]


def advantages_of(groups: Sequence[Group], stage: GrpoStage, penalties_N: Sequence[float] | None = None) -> Advantages:
    """Advantages and weights of one update. ``penalties_N`` are taken off the scores first (KL in the reward)."""
    completions = completions_of(groups)
    scores = [float("nan") if score is None else score for group in groups for score in group.scores_G]
    scores_N = torch.tensor(scores, dtype=torch.float64)
    if penalties_N is not None:
        scores_N = scores_N - torch.tensor(penalties_N, dtype=torch.float64)
    ids = dense_groups([group.group_id for group in groups for _ in group.completions_G])
    return group_advantage(
        scores_N,
        torch.tensor(ids, dtype=torch.long),
        torch.tensor([int(trained_tokens(one).sum()) for one in completions], dtype=torch.long),
        stage.objective,
        max_tokens=stage.max_tokens,
        truncated_N=torch.tensor([one.finish_reason == "length" for one in completions], dtype=torch.bool),
    )


def samples_of(groups: Sequence[Group], earned: Advantages) -> list[TrainingSample]:
    """Training samples of the completions that carry loss."""
    ids = [group.group_id for group in groups for _ in group.completions_G]
    return [
        rollout_sample(completion, advantage, weight, group_id)
        for completion, group_id, kept, advantage, weight in zip(
            completions_of(groups),
            ids,
            earned.kept_N.tolist(),
            earned.advantages_N.tolist(),
            earned.weights_N.tolist(),
            strict=True,
        )
        if kept
    ]

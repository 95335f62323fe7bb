"""The scores of a step, from which the trainer makes its advantages on its own device.

N = rollouts, G = groups, B = rows, T = positions; in ``Rollouts`` N = completions, R = rollouts. Scores come from
verifiers on the host. What a rollout weighs, and whether its advantage can differ from 0 at all, is known there without
an advantage; the advantages themselves are made where the loss is: on a GPU by K1 in one launch
(``kernels.advantage``), on a CPU by ``objective.advantage``, for all rollouts of the step before its first micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlreason.objective.advantage import dense_numbers, group_advantage, usable_rewards
from rlreason.objective.batch import Batch
from rlreason.objective.spec import ObjectiveSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepScores:
    """What the advantages of a step are made of: plain data on the host, which travels with the loss to every rank.

    Example, a group of two and one of one: ``StepScores(spec=ObjectiveSpec(), max_tokens=64, scores_N=tensor([1., 0.,
    1.]), sizes_G=(2, 1), lengths_N=tensor([3, 5, 4]), truncated_N=tensor([False, False, True]))``. Groups lie one after
    the other.
    """

    spec: ObjectiveSpec
    max_tokens: int
    #: float64 [N]; NaN where the check gave none. A KL that the objective takes off the reward is off already; where
    #: it keeps rewards apart (GDPO), this is the weighted sum of what each part earns in its group.
    scores_N: Tensor
    #: Rollouts of each group.
    sizes_G: tuple[int, ...]
    #: int64 [N]: loss tokens.
    lengths_N: Tensor
    #: bool [N]: cut off at ``max_tokens``.
    truncated_N: Tensor

    @property
    def group_N(self) -> Tensor:
        """The group of each rollout, 0..G−1, int64 [N]."""
        return torch.repeat_interleave(torch.arange(len(self.sizes_G)), torch.tensor(self.sizes_G, dtype=torch.long))

    @property
    def kept_N(self) -> Tensor:
        """Whether it carries loss, bool [N]."""
        return self._usable()[2]

    @property
    def silent_N(self) -> Tensor:
        """Whether its advantage is exactly 0, as the scores say, bool [N]: nothing tells it from those that its
        baseline is made of. (A rollout that merely meets its baseline among others that differ is not looked for.)"""
        spec, (rewards_N, usable_N, kept_N) = self.spec, self._usable()
        silent_N = torch.zeros_like(usable_N)
        if spec.scale == "batch_whiten":  # by token, of what the group's baseline leaves
            if spec.has_group_baseline:
                return silent_N | self._equal(rewards_N, usable_N).all()
            return silent_N | _all_equal(rewards_N[kept_N])
        if spec.has_group_baseline or spec.scale == "group_std":
            silent_N = silent_N | self._equal(rewards_N, usable_N)
        if spec.baseline == "batch" or spec.scale == "batch_std":
            silent_N = silent_N | _all_equal(rewards_N[usable_N])
        return silent_N | (rewards_N == 0.0) if spec.baseline == "none" else silent_N

    def _usable(self) -> tuple[Tensor, Tensor, Tensor]:
        return usable_rewards((self.scores_N, self.lengths_N, self.truncated_N), self.spec, self.max_tokens)

    def _equal(self, rewards_N: Tensor, usable_N: Tensor) -> Tensor:
        """Whether all usable rewards of a rollout's group are one, or there are none, bool [N]."""
        parts = zip(torch.split(rewards_N, list(self.sizes_G)), torch.split(usable_N, list(self.sizes_G)), strict=True)
        equal_G = torch.tensor([_all_equal(rewards_M[usable_M]) for rewards_M, usable_M in parts], dtype=torch.bool)
        return equal_G[self.group_N]


def _all_equal(values: Tensor) -> bool:
    return not values.numel() or bool(values.min() == values.max())


def step_advantages(scores: StepScores, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A_i of every rollout, [N] on ``device``, rounded once from float64 to ``dtype``; 0 where it carries no loss."""
    earned = group_advantage(
        scores.scores_N,
        scores.group_N,
        scores.lengths_N,
        scores.spec,
        max_tokens=scores.max_tokens,
        truncated_N=scores.truncated_N,
    )
    return earned.advantages_N.to(dtype).to(device)


def with_advantages(batch: Batch, advantages_N: Tensor) -> Batch:
    """``batch`` with the advantage of its rollout on each loss token; every row says whose it is (``score_at_B``)."""
    assert batch.score_at_B is not None, "the loss has scores, and a sample says of none that it is its own"
    advantages_B1 = advantages_N.index_select(0, batch.score_at_B).unsqueeze(1)
    return replace(batch, advantages_BT=torch.where(batch.loss_mask_BT > 0, advantages_B1, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """Which completions are one rollout: those that it was split into, such as where a context was rewritten.

    A rollout counts once in every statistic and denominator, with the mean of its siblings' scores and the sum of their
    tokens, so that how it was split changes nothing: each token has the advantage and the weight that it would have in
    the whole. (Else a rollout that was split in three pulls its group's mean three times.) ``overlong`` looks at the
    whole: its length, and whether any sibling was truncated.

    Example: two completions of one rollout, and one of another: ``Rollouts(at_N=tensor([0, 0, 1]), sizes_G=(2,))``.
    """

    #: The rollout of each completion, 0..R−1, group by group: int64 [N].
    at_N: Tensor
    #: Rollouts of each group.
    sizes_G: tuple[int, ...]

    @staticmethod
    def of(group_N: Tensor, rollout_N: Tensor) -> Rollouts:
        """``group_N``, ``rollout_N``: of each completion, int [N], any numbers."""
        at_N, rollouts = dense_numbers(rollout_N)
        dense_N, groups = dense_numbers(group_N)
        group_R = torch.zeros(rollouts, dtype=torch.long).scatter(0, at_N, dense_N)
        place_R = torch.empty_like(group_R)
        place_R[group_R.argsort(stable=True)] = torch.arange(rollouts)
        return Rollouts(at_N=place_R[at_N], sizes_G=tuple(torch.bincount(group_R, minlength=groups).tolist()))

    def total(self, values_N: Tensor) -> Tensor:
        """The sum over each rollout, float64 [R]."""
        return torch.zeros(sum(self.sizes_G), dtype=torch.float64).index_add_(0, self.at_N, values_N.double())

    def mean(self, values_N: Tensor) -> Tensor:
        """The mean over each rollout of what is not NaN, float64 [R]; NaN where nothing is. Of equal values exactly
        that one: 3 · 0.1 / 3 is another."""
        known_N = ~values_N.isnan()
        count_R = self.total(known_N)
        mean_R = self.total(values_N.masked_fill(~known_N, 0.0)) / count_R.clamp(min=1.0)
        low_R = torch.full_like(mean_R, torch.inf).scatter_reduce(
            0, self.at_N, values_N.double().masked_fill(~known_N, torch.inf), "amin"
        )
        high_R = torch.full_like(mean_R, -torch.inf).scatter_reduce(
            0, self.at_N, values_N.double().masked_fill(~known_N, -torch.inf), "amax"
        )
        return torch.where(low_R == high_R, low_R, mean_R).masked_fill(count_R == 0, torch.nan)

"""Advantages and loss weights of a whole step, vectorised over all groups.

N = completions, G = groups, both of the whole step. Group identity is data: ``group_N[i]`` says whose completion i is,
in any order and number. This is the path of CPUs, and what K1 (``kernels.advantage``) is held against;
``objective.scores`` has what both are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlreason.objective.spec import ObjectiveSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What the steps of the computation share. Rewards are 0 where not usable."""

    rewards_N: Tensor
    usable_N: Tensor
    kept_N: Tensor
    group_N: Tensor
    lengths_N: Tensor
    statistics_G6: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """What every completion of a step earns. Example for rewards (1, 0), one group, 3 and 5 tokens, no scale, one
    token mean: ``advantages_N = (0.5, -0.5)``, ``weights_N = (1/8, 1/8)``.

    A completion that carries no loss (no score, masked, without a loss token) has advantage and weight 0.
    """

    #: A_i, [N], in the rewards' dtype. Exactly 0 in a group of one usable score, or of equal ones.
    advantages_N: Tensor
    #: w_i, [N]: the weight of each of the sequence's loss tokens. Σ_i w_i · length_i = 1 (``sequence_sum`` excepted).
    weights_N: Tensor
    #: Whether it carries loss, [N], bool.
    kept_N: Tensor
    #: Per group: mean, std, min, max, count of usable scores, share of positive ones. [G, 6]
    statistics_G6: Tensor
    #: Whether a group's usable scores differ, [G], bool.
    informative_G: Tensor


def group_advantage(
    rewards_N: Tensor,
    group_N: Tensor,
    lengths_N: Tensor,
    spec: ObjectiveSpec,
    *,
    max_tokens: int,
    truncated_N: Tensor | None = None,
    baseline_N: Tensor | None = None,
) -> Advantages:
    """Advantages and loss weights of one optimizer step.

    ``rewards_N``: float [N], NaN where the check gave none: in no statistic, no loss. ``group_N``: int [N], any
    numbers. ``lengths_N``: int [N], loss tokens. ``truncated_N``: bool [N], cut off at ``max_tokens`` (what
    ``overlong`` is about). ``baseline_N``: float [N], where ``spec.baseline`` is "given".

    GRPO arXiv 2402.03300; RLOO 2402.14740; OPO 2505.23585; Dr. GRPO 2503.20783; DAPO 2503.14476; REINFORCE++
    2501.03262. Zero variance is max == min, exactly, not a small deviation: then ``group_std`` gives 0 with every
    baseline. ``group_mean`` (MaxRL) is defined for rewards of 0 and more: a group with a reward below 0 gets 0, as one
    of mean 0 does (by its formula the worse completion would be reinforced). Raises ValueError for a baseline that is
    asked for and not given.
    """
    dtype = rewards_N.dtype  # a penalty on length is float64
    group_N, groups = dense_numbers(group_N)
    rewards_N, usable_N, kept_N = usable_rewards((rewards_N, lengths_N, truncated_N), spec, max_tokens)
    statistics_G6 = _statistics(rewards_N, usable_N, group_N, groups, spec.std_ddof)
    informative_G = (statistics_G6[:, 4] > 1) & (statistics_G6[:, 2] != statistics_G6[:, 3])
    step = _Step(
        rewards_N=rewards_N,
        usable_N=usable_N,
        kept_N=kept_N,
        group_N=group_N,
        lengths_N=lengths_N,
        statistics_G6=statistics_G6,
    )
    centred_N = rewards_N - _baseline(step, spec, baseline_N)
    if spec.has_group_baseline:
        centred_N = centred_N.masked_fill(~informative_G[group_N], 0.0)
    advantages_N = _scale(centred_N, step, spec)
    return Advantages(
        advantages_N=advantages_N.masked_fill(~kept_N, 0.0).to(dtype),
        weights_N=loss_weights(lengths_N, kept_N, group_N, groups, spec, max_tokens, dtype),
        kept_N=kept_N,
        statistics_G6=statistics_G6,
        informative_G=informative_G,
    )


def usable_rewards(
    step: tuple[Tensor, Tensor, Tensor | None], spec: ObjectiveSpec, max_tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(rewards with what ``overlong`` takes off, 0 where not usable; which are usable in statistics; which carry loss),
    [N] each. ``step``: rewards, lengths, and which were truncated (None: none was)."""
    rewards_N, lengths_N, truncated_N = step
    if truncated_N is None:
        truncated_N = torch.zeros_like(rewards_N, dtype=torch.bool)
    if spec.overlong == "soft_penalty":
        rewards_N = rewards_N + overlong_penalty(lengths_N, max_tokens, spec.overlong_share)
    usable_N = ~rewards_N.isnan()
    if spec.overlong == "mask_from_baseline":
        usable_N = usable_N & ~truncated_N
    kept_N = usable_N & (lengths_N > 0)
    if spec.overlong == "mask":
        kept_N = kept_N & ~truncated_N
    return rewards_N.masked_fill(~usable_N, 0.0), usable_N, kept_N


def overlong_penalty(lengths_N: Tensor, max_tokens: int, share: float) -> Tensor:
    """DAPO's soft overlong punishment (arXiv 2503.14476 eq. 13), [N]: 0 up to (1 − share)·max_tokens, then linearly
    down to −1 at max_tokens."""
    cache = share * max_tokens
    return ((max_tokens - cache - lengths_N.double()) / cache).clamp(-1.0, 0.0)


def loss_weights(
    lengths_N: Tensor,
    kept_N: Tensor,
    group_N: Tensor,
    groups: int,
    spec: ObjectiveSpec,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """w_i, [N], such that the loss over any split into micro-batches and ranks is a plain sum."""
    lengths_N = lengths_N.to(torch.float64)
    kept = kept_N.to(torch.float64)
    if spec.aggregation == "token":
        weights_N = kept / (lengths_N * kept).sum().clamp(min=1.0)
    elif spec.aggregation == "sequence":
        weights_N = kept / (lengths_N.clamp(min=1.0) * kept.sum().clamp(min=1.0))
    elif spec.aggregation == "sequence_sum":
        weights_N = kept / (max_tokens * kept.sum().clamp(min=1.0))
    else:
        tokens_G = _sum(lengths_N * kept, group_N, groups)
        weights_N = kept / (tokens_G.clamp(min=1.0) * (tokens_G > 0).sum().clamp(min=1))[group_N]
    return weights_N.to(dtype)


def rollout_weights(
    step: tuple[Tensor, Tensor, Tensor, Tensor], spec: ObjectiveSpec, max_tokens: int, dtype: torch.dtype
) -> Tensor:
    """``loss_weights``, [N], with siblings of a rollout as one. ``step``: lengths, kept, group, rollout, each [N]."""
    lengths_N, kept_N, group_N, rollout_N = step
    (rollout_N, rollouts), (group_N, groups) = dense_numbers(rollout_N), dense_numbers(group_N)
    lengths_R = _sum(lengths_N * kept_N, rollout_N, rollouts)
    group_R = torch.zeros(rollouts, dtype=group_N.dtype, device=group_N.device).scatter(0, rollout_N, group_N)
    weights_R = loss_weights(lengths_R, lengths_R > 0, group_R, groups, spec, max_tokens, dtype)
    return weights_R[rollout_N].masked_fill(~kept_N, 0.0)


def dense_numbers(group_N: Tensor) -> tuple[Tensor, int]:
    """Numbers of groups as 0..groups−1, in their order, and how many there are."""
    numbers, dense_N = torch.unique(group_N, return_inverse=True)
    return dense_N, len(numbers)


def _sum(values_N: Tensor, group_N: Tensor, groups: int) -> Tensor:
    return torch.zeros(groups, dtype=torch.float64, device=values_N.device).index_add_(0, group_N, values_N.double())


def _statistics(rewards_N: Tensor, usable_N: Tensor, group_N: Tensor, groups: int, ddof: int) -> Tensor:
    """[G, 6], float64. Two passes: a large common offset leaves no residue in the deviation."""
    usable = usable_N.double()
    count_G = _sum(usable, group_N, groups)
    some_G = count_G.clamp(min=1.0)
    mean_G = _sum(rewards_N.double() * usable, group_N, groups) / some_G
    squares_G = _sum((rewards_N.double() - mean_G[group_N]).square() * usable, group_N, groups)
    extreme = rewards_N.new_full((groups,), torch.inf, dtype=torch.float64)
    low_G = extreme.scatter_reduce(0, group_N, rewards_N.double().masked_fill(~usable_N, torch.inf), "amin")
    high_G = (-extreme).scatter_reduce(0, group_N, rewards_N.double().masked_fill(~usable_N, -torch.inf), "amax")
    std_G = (squares_G / (count_G - ddof).clamp(min=1.0)).sqrt()
    std_G = std_G.masked_fill(low_G == high_G, 0.0)
    positive_G = _sum((rewards_N > 0).double() * usable, group_N, groups) / some_G
    empty_G = count_G == 0
    columns = [mean_G, std_G, low_G.masked_fill(empty_G, 0.0), high_G.masked_fill(empty_G, 0.0), count_G, positive_G]
    return torch.stack(columns, dim=1)


def _baseline(step: _Step, spec: ObjectiveSpec, baseline_N: Tensor | None) -> Tensor:
    """b_i, [N], float64."""
    mean_G, count_G = step.statistics_G6[:, 0], step.statistics_G6[:, 4]
    rewards_N, group_N = step.rewards_N.double(), step.group_N
    if spec.baseline == "none":
        return torch.zeros_like(rewards_N)
    if spec.baseline == "given":
        if baseline_N is None:
            raise ValueError('baseline = "given", but no baseline came with the rewards: pass baseline_N')
        return baseline_N.double()
    if spec.baseline == "batch":
        mean = (rewards_N * step.usable_N).sum() / step.usable_N.sum().clamp(min=1)
        return mean.expand_as(rewards_N)  # a number would be rounded to float32 before it met float32 rewards
    if spec.baseline == "length_weighted":
        lengths = step.lengths_N.double() * step.usable_N
        total_G = _sum(lengths, group_N, len(mean_G))
        return (_sum(lengths * rewards_N, group_N, len(mean_G)) / total_G.clamp(min=1.0))[group_N]
    mean_N, count_N = mean_G[group_N], count_G[group_N]
    if spec.baseline == "leave_one_out":
        return mean_N - (rewards_N - mean_N) / (count_N - 1.0).clamp(min=1.0)
    return mean_N


def _scale(centred_N: Tensor, step: _Step, spec: ObjectiveSpec) -> Tensor:
    """A_i, [N], in the rewards' dtype."""
    dtype = step.rewards_N.dtype
    if spec.scale == "group_std":
        scaled = _over(centred_N, step.statistics_G6[:, 1][step.group_N], spec.std_epsilon)
    elif spec.scale == "group_mean":
        mean_N, low_N = step.statistics_G6[:, 0][step.group_N], step.statistics_G6[:, 2][step.group_N]
        scaled = torch.where((low_N >= 0.0) & (mean_N > 0.0), centred_N / mean_N, 0.0)
    elif spec.scale == "batch_std":
        _, std = weighted_std(step.rewards_N.double(), step.usable_N.double(), spec.std_ddof)
        scaled = _over(centred_N, std, spec.std_epsilon)
    elif spec.scale == "batch_whiten":
        mean, std = weighted_std(centred_N, step.lengths_N.double() * step.kept_N, spec.std_ddof)
        scaled = _over(centred_N - mean, std, spec.std_epsilon)
    else:
        scaled = centred_N
    return scaled.to(dtype)


def _over(values_N: Tensor, std: Tensor, epsilon: float) -> Tensor:
    """values / (std + ε), and 0 where there is no deviation, without a host-device sync."""
    return torch.where(std > 0, values_N / (std + epsilon), 0.0)


def weighted_std(values_N: Tensor, weights_N: Tensor, ddof: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation where entry i occurs ``weights_N[i]`` times; exactly 0 where all are equal."""
    if not values_N.numel():
        return values_N.sum(), values_N.sum()
    total = weights_N.sum()
    mean = (values_N * weights_N).sum() / total.clamp(min=1.0)
    variance = ((values_N - mean).square() * weights_N).sum() / (total - ddof).clamp(min=1.0)
    unseen = weights_N <= 0
    low, high = values_N.masked_fill(unseen, torch.inf).min(), values_N.masked_fill(unseen, -torch.inf).max()
    return mean, torch.where(low < high, variance.sqrt(), 0.0)


def is_informative(scores_G: Sequence[float | None]) -> bool:
    """Whether a group carries any gradient with its own baseline: at least two usable scores that differ. What
    ``Advantages.informative_G`` says, for one group that is not a tensor."""
    usable = [score for score in scores_G if score is not None]
    return len(usable) >= 2 and max(usable) != min(usable)


def dense_groups(ids: Sequence[str]) -> list[int]:
    """Numbers for names of groups, in order of appearance: ``dense_groups(["a", "b", "a"]) == [0, 1, 0]``."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in ids]

"""K1 on the GPU: advantages, loss weights, flags and the packing index of a whole step in one launch.

N = completions, G = groups. Same formulas as ``objective.advantage``, in float64 like there: a step has so few
rewards that the launch costs more. Token and completion counts are int64, so exact. A group's mean and deviation are
taken from its smallest reward in two passes, so that a common offset leaves no residue; groups are merged by Chan's
formula, in index order.

Up to ``ONE_LAUNCH`` completions one program measures all groups and then writes all results. Beyond, two launches over
tiles of the same shape do the same additions in the same order: the results are bitwise the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from rlreason.objective.advantage import Advantages
from rlreason.objective.kernels.credit import finish_kernel, measure_kernel, one_launch_kernel
from rlreason.objective.kernels.groups import Groups
from rlreason.objective.kernels.measure import FLOATS, INTEGERS
from rlreason.objective.spec import ObjectiveSpec

#: Completions that one program handles.
ONE_LAUNCH = 16_384
#: Completions of a tile: groups × members.
_TILE = 1024
_MOST_MEMBERS = 1024

#: Entries of ``DeviceAdvantages.metrics``.
METRICS = ("reward/mean", "reward/std", "scored", "unscored", "kept", "kept_tokens", "groups/informative",
           "groups/all_positive", "groups/none_positive")  # fmt: skip
#: Bits of ``DeviceAdvantages.flags_G``.
EQUAL_SCORES, ALL_POSITIVE, NONE_POSITIVE, HAS_UNSCORED = 1, 2, 4, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAdvantages(Advantages):
    """A credit, with what the next steps on the device read instead of asking the host."""

    #: Bits of each group, uint8 [G]: EQUAL_SCORES (fewer than two, or max == min), ALL_POSITIVE, NONE_POSITIVE,
    #: HAS_UNSCORED. An empty group has the first.
    flags_G: Tensor
    #: The completions that carry loss, in their order, then −1: int64 [N].
    keep_index_N: Tensor
    #: How many they are, int64 [].
    keep_count: Tensor
    #: METRICS, float64.
    metrics: Tensor


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What the kernels are compiled for."""

    spec: ObjectiveSpec
    has_truncated: bool
    has_baseline: bool
    has_order: bool
    #: Groups of a tile, members of a tile, and completions of a flat tile: powers of two.
    groups: int
    members: int
    flat: int
    #: Power of two, at least the number of tiles.
    tiles: int


class Inputs(NamedTuple):
    rewards: Tensor
    lengths: Tensor
    truncated: Tensor | None
    baseline: Tensor | None
    starts: Tensor
    order: Tensor | None


class Outputs(NamedTuple):
    advantages: Tensor
    weights: Tensor
    kept: Tensor
    statistics: Tensor
    informative: Tensor
    flags: Tensor
    keep_index: Tensor
    keep_count: Tensor
    metrics: Tensor


class Scratch(NamedTuple):
    #: Anchor and offset of each group's baseline, [G, 2].
    baselines: Tensor
    #: Loss tokens of each group, int64 [G].
    tokens: Tensor
    #: Moments and counts of each tile: [FLOATS, tiles], int64 [INTEGERS, tiles].
    floats: Tensor
    integers: Tensor


def group_advantage(
    rewards_N: Tensor,
    group_N: Tensor | Groups,
    lengths_N: Tensor,
    spec: ObjectiveSpec,
    *,
    max_tokens: int,
    truncated_N: Tensor | None = None,
    baseline_N: Tensor | None = None,
) -> DeviceAdvantages:
    """As ``objective.advantage.group_advantage``, on the device of ``rewards_N``.

    With ``Groups`` no host synchronisation, and one launch where they lie contiguously (a sort goes before it where
    they don't). Plain ids are sorted, and counted by the host: one synchronisation.
    """
    if spec.baseline == "given" and baseline_N is None:
        raise ValueError('baseline = "given", but no baseline came with the rewards: pass baseline_N')
    groups = group_N if isinstance(group_N, Groups) else Groups.of_ids(group_N)
    rewards_N = (rewards_N if rewards_N.dtype == torch.float64 else rewards_N.float()).contiguous()
    total, count = len(rewards_N), groups.count
    inputs = Inputs(
        rewards=rewards_N,
        lengths=lengths_N.contiguous(),
        truncated=None if truncated_N is None else truncated_N.contiguous(),
        baseline=baseline_N.contiguous() if baseline_N is not None else None,
        starts=groups.starts_G1,
        order=groups.order_N,
    )
    plan, tiles = _plan(inputs, spec, total, count)
    outputs, scratch = _allocate(rewards_N, count, tiles)
    sizes = (total, count, max_tokens, tiles)
    if total <= ONE_LAUNCH:
        one_launch_kernel[(1,)](inputs, outputs, scratch, sizes, plan, num_warps=16)
    else:
        measure_kernel[(tiles,)](inputs, outputs, scratch, sizes, plan, num_warps=16)
        finish_kernel[(tiles,)](inputs, outputs, scratch, sizes, plan, num_warps=16)
    return DeviceAdvantages(
        advantages_N=outputs.advantages,
        weights_N=outputs.weights,
        kept_N=outputs.kept,
        statistics_G6=outputs.statistics,
        informative_G=outputs.informative,
        flags_G=outputs.flags,
        keep_index_N=outputs.keep_index,
        keep_count=outputs.keep_count,
        metrics=outputs.metrics,
    )


def _plan(inputs: Inputs, spec: ObjectiveSpec, total: int, count: int) -> tuple[GroupPlan, int]:
    """The plan, and how many tiles cover all groups and all completions."""
    members = min(_MOST_MEMBERS, triton.next_power_of_2(triton.cdiv(max(total, 1), max(count, 1))))
    per_tile = _TILE // members
    tiles = max(1, triton.cdiv(count, per_tile), triton.cdiv(total, _TILE))
    return GroupPlan(
        spec=spec,
        has_truncated=inputs.truncated is not None,
        has_baseline=spec.baseline == "given",
        has_order=inputs.order is not None,
        groups=per_tile,
        members=members,
        flat=_TILE,
        tiles=triton.next_power_of_2(tiles),
    ), tiles


def _allocate(rewards_N: Tensor, count: int, tiles: int) -> tuple[Outputs, Scratch]:
    total, device = len(rewards_N), rewards_N.device

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    outputs = Outputs(
        advantages=empty(total, dtype=rewards_N.dtype),
        weights=empty(total, dtype=rewards_N.dtype),
        kept=empty(total, dtype=torch.bool),
        statistics=empty(count, 6),
        informative=empty(count, dtype=torch.bool),
        flags=empty(count, dtype=torch.uint8),
        keep_index=empty(total, dtype=torch.int64),
        keep_count=empty(dtype=torch.int64),
        metrics=empty(len(METRICS)),
    )
    scratch = Scratch(
        baselines=empty(count, 2),
        tokens=empty(count, dtype=torch.int64),
        floats=empty(FLOATS, tiles),
        integers=empty(INTEGERS, tiles, dtype=torch.int64),
    )
    return outputs, scratch

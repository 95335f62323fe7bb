"""K1 on the GPU: the advantages of a whole step in one launch, from its scores.

N = rollouts, G = groups. Same formulas as ``objective.advantage``, in float64 like there: a step has so few scores that
the launch costs more. A group's mean and deviation are taken from its smallest score in two passes, so that a common
offset leaves no residue; groups are merged by Chan's formula, in index order.

Up to ``ONE_LAUNCH`` rollouts one program measures all groups and then writes all results. Beyond, two launches over
tiles of the same shape do the same additions in the same order: the results are bitwise the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from rlreason.objective.kernels.credit import finish_kernel, measure_kernel, one_launch_kernel
from rlreason.objective.kernels.measure import MOMENTS, STATISTICS
from rlreason.objective.scores import StepScores
from rlreason.objective.spec import ObjectiveSpec

#: Rollouts that one program handles.
ONE_LAUNCH = 16_384
#: Rollouts of a tile: groups × members.
_TILE = 1024


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What the kernels are compiled for."""

    spec: ObjectiveSpec
    #: Groups of a tile, and members of a tile: powers of two.
    groups: int
    members: int
    #: Power of two, at least the number of tiles.
    tiles: int


class Inputs(NamedTuple):
    """On the device, [N] each, and where each group begins, and N: int64 [G + 1]."""

    scores: Tensor
    lengths: Tensor
    truncated: Tensor
    starts: Tensor


class Scratch(NamedTuple):
    #: [G, STATISTICS].
    statistics: Tensor
    #: Of each tile: [MOMENTS, tiles].
    moments: Tensor


def step_advantages(scores: StepScores, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """As ``objective.scores.step_advantages``, [N], made on ``device``: nothing waits for it."""
    total, count = len(scores.scores_N), len(scores.sizes_G)
    advantages_N = torch.empty(total, dtype=dtype, device=device)
    if not total:
        return advantages_N
    inputs = Inputs(
        scores=_sent(scores.scores_N, device),
        lengths=_sent(scores.lengths_N, device),
        truncated=_sent(scores.truncated_N, device),
        starts=_sent(torch.tensor([0, *accumulate(scores.sizes_G)], dtype=torch.int64), device),
    )
    plan, tiles = _plan(scores.spec, total, count)
    scratch = Scratch(
        statistics=torch.empty(count, STATISTICS, dtype=torch.float64, device=device),
        moments=torch.empty(MOMENTS, tiles, dtype=torch.float64, device=device),
    )
    sizes = (count, scores.max_tokens, tiles)
    if total <= ONE_LAUNCH:
        one_launch_kernel[(1,)](inputs, advantages_N, scratch, sizes, plan, num_warps=16)
    else:
        measure_kernel[(tiles,)](inputs, scratch, sizes, plan, num_warps=16)
        finish_kernel[(tiles,)](inputs, advantages_N, scratch, sizes, plan, num_warps=16)
    return advantages_N


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """``values`` of the host, on their way to ``device``: from pinned memory nothing waits until they are there."""
    if device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def _plan(spec: ObjectiveSpec, total: int, count: int) -> tuple[GroupPlan, int]:
    """The plan, and how many tiles cover all groups."""
    members = min(_TILE, triton.next_power_of_2(triton.cdiv(total, count)))
    groups = _TILE // members
    tiles = triton.cdiv(count, groups)
    return GroupPlan(spec=spec, groups=groups, members=members, tiles=triton.next_power_of_2(tiles)), tiles

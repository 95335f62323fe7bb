"""Device code of K1 (advantages), second half: measured tiles are finished, now that the whole step is known.

G = groups of a tile, M = members of a tile, as in ``measure``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rlreason.objective.kernels.measure import bounds_of, centre, load_moments, measure, members, rollout, stretch


@triton.jit
def _step(scratch, tiles, PLAN: tl.constexpr):
    """What every rollout needs of the step: mean and deviation of the scores, and of centred scores by token."""
    mean, std = load_moments(scratch.moments, tiles, 0, PLAN)
    token_mean = mean
    token_std = std
    if PLAN.spec.scale == "batch_whiten":
        token_mean, token_std = load_moments(scratch.moments, tiles, 5, PLAN)
    return mean, std, token_mean, token_std


@triton.jit
def _scaled(centred_GM, statistics_G, step, PLAN: tl.constexpr):
    """Advantage before it is masked. ``statistics_G``: mean, deviation and smallest score of each group."""
    mean, std, token_mean, token_std = step
    if PLAN.spec.baseline == "batch" and PLAN.spec.scale != "batch_whiten":
        centred_GM = centred_GM - mean  # whitening takes off the tokens' mean, whatever was taken off before
    group_mean_G, group_std_G, low_G = statistics_G
    if PLAN.spec.scale == "group_std":
        differs_G = group_std_G > 0.0
        divisor_G = tl.where(differs_G, group_std_G + PLAN.spec.std_epsilon, 1.0)
        return tl.where(differs_G[:, None], centred_GM, 0.0) / divisor_G[:, None]
    elif PLAN.spec.scale == "group_mean":
        defined_G = (low_G >= 0.0) & (group_mean_G > 0.0)
        safe_G = tl.where(defined_G, group_mean_G, 1.0)
        return tl.where(defined_G[:, None], centred_GM / safe_G[:, None], 0.0)
    elif PLAN.spec.scale == "batch_std":
        return tl.where(std > 0.0, centred_GM, 0.0) / tl.where(std > 0.0, std + PLAN.spec.std_epsilon, 1.0)
    elif PLAN.spec.scale == "batch_whiten":
        away_GM = tl.where(token_std > 0.0, centred_GM - token_mean, 0.0)
        return away_GM / tl.where(token_std > 0.0, token_std + PLAN.spec.std_epsilon, 1.0)
    else:
        return centred_GM


@triton.jit
def _finish(inputs, advantages, scratch, tile, sizes, step, PLAN: tl.constexpr):
    """Advantages of the tile's groups."""
    groups, max_tokens, tiles = sizes
    group_G, live_G, bounds, longest = bounds_of(inputs, tile, groups, PLAN)
    statistics = scratch.statistics + group_G * 6
    mean_G = tl.load(statistics, mask=live_G, other=0.0)
    std_G = tl.load(statistics + 1, mask=live_G, other=0.0)
    low_G = tl.load(statistics + 2, mask=live_G, other=0.0)
    high_G = tl.load(statistics + 3, mask=live_G, other=0.0)
    count_G = tl.load(statistics + 4, mask=live_G, other=0.0)
    offset_G = tl.load(statistics + 5, mask=live_G, other=0.0)
    baseline_G3 = (low_G, offset_G, stretch(count_G, (count_G > 1.0) & (low_G < high_G), PLAN))
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(bounds, first, PLAN)
        score_GM, usable_GM, kept_GM, length_GM = rollout(inputs, at_GM, live_GM, max_tokens, PLAN)
        scaled_GM = _scaled(centre(score_GM, baseline_G3, PLAN), (mean_G, std_G, low_G), step, PLAN)
        found_GM = tl.where(kept_GM, scaled_GM, 0.0).to(advantages.dtype.element_ty)
        tl.store(advantages + at_GM, found_GM, mask=live_GM)


@triton.jit
def measure_kernel(inputs, scratch, sizes, PLAN: tl.constexpr):
    """One program a tile."""
    measure(inputs, scratch, tl.program_id(0), sizes, PLAN)


@triton.jit
def finish_kernel(inputs, advantages, scratch, sizes, PLAN: tl.constexpr):
    """One program a tile, after all of ``measure_kernel``."""
    _finish(inputs, advantages, scratch, tl.program_id(0), sizes, _step(scratch, sizes[2], PLAN), PLAN)


@triton.jit
def one_launch_kernel(inputs, advantages, scratch, sizes, PLAN: tl.constexpr):
    """Both, by one program for all tiles."""
    for tile in range(sizes[2]):
        measure(inputs, scratch, tl.program_id(0) + tile, sizes, PLAN)
    tl.debug_barrier()  # what other threads of this program wrote is read from here on
    step = _step(scratch, sizes[2], PLAN)
    for tile in range(sizes[2]):
        _finish(inputs, advantages, scratch, tl.program_id(0) + tile, sizes, step, PLAN)

"""Device code of K1 (advantages), second half: measured tiles are finished, now that the whole batch is known.

G = groups of a tile, M = members of a tile, as in ``measure``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rlreason.objective.kernels.measure import (
    ALL_POSITIVE,
    GROUPS_WITH_TOKENS,
    INFORMATIVE,
    KEPT,
    KEPT_FLAT,
    NONE_POSITIVE,
    SCORED,
    TOKENS,
    bounds_of,
    centre,
    completion,
    given,
    load_moments,
    measure,
    members,
    stretch,
    total_of,
)


@triton.jit
def _batch(scratch, tiles, PLAN: tl.constexpr):
    """What every completion needs of the batch: (kept, loss tokens, groups with any; mean, deviation of the rewards;
    of centred rewards by token)."""
    kept = total_of(scratch.integers, tiles, KEPT, PLAN)
    tokens = total_of(scratch.integers, tiles, TOKENS, PLAN)
    with_tokens = total_of(scratch.integers, tiles, GROUPS_WITH_TOKENS, PLAN)
    count, mean, std = load_moments(scratch.floats, tiles, 0, PLAN)
    token_mean = mean
    token_std = std
    if PLAN.spec.scale == "batch_whiten":
        tokens_seen, token_mean, token_std = load_moments(scratch.floats, tiles, 5, PLAN)
    return kept, tokens, with_tokens, mean, std, token_mean, token_std


@triton.jit
def _scaled(centred_GM, statistics_G, batch, PLAN: tl.constexpr):
    """Advantage before it is masked. ``statistics_G``: where each group's begin."""
    kept, tokens, with_tokens, mean, std, token_mean, token_std = batch
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
def _divisor(length_GM, group_tokens_G, batch, max_tokens, PLAN: tl.constexpr):
    """1/w of each completion, int64 and exact: [G, M], or one row or number that broadcasts to it."""
    kept, tokens, with_tokens, mean, std, token_mean, token_std = batch
    if PLAN.spec.aggregation == "token":
        return tl.maximum(tokens, 1) + length_GM * 0
    elif PLAN.spec.aggregation == "sequence":
        return tl.maximum(length_GM, 1) * tl.maximum(kept, 1)
    elif PLAN.spec.aggregation == "sequence_sum":
        return max_tokens * tl.maximum(kept, 1) + length_GM * 0
    else:
        return (tl.maximum(group_tokens_G, 1) * tl.maximum(with_tokens, 1))[:, None] + length_GM * 0


@triton.jit
def _finish(inputs, outputs, scratch, tile, sizes, batch, PLAN: tl.constexpr):
    """Advantages, weights and kept flags of the tile's groups, and the tile's part of the packing index."""
    total, groups, max_tokens, tiles = sizes
    dtype: tl.constexpr = outputs.advantages.dtype.element_ty
    group_G, live_G, bounds, longest = bounds_of(inputs, tile, groups, PLAN)
    statistics = outputs.statistics + group_G * 6
    mean_G = tl.load(statistics, mask=live_G, other=0.0)
    std_G = tl.load(statistics + 1, mask=live_G, other=0.0)
    count_G = tl.load(statistics + 4, mask=live_G, other=0.0)
    low_G = tl.load(statistics + 2, mask=live_G, other=0.0)
    high_G = tl.load(statistics + 3, mask=live_G, other=0.0)
    informative_G = (count_G > 1.0) & (low_G < high_G)
    anchor_G = tl.load(scratch.baselines + group_G * 2, mask=live_G, other=0.0)
    offset_G = tl.load(scratch.baselines + group_G * 2 + 1, mask=live_G, other=0.0)
    tokens_G = tl.load(scratch.tokens + group_G, mask=live_G, other=0)
    baseline_G3 = (anchor_G, offset_G, stretch(count_G, informative_G, PLAN))
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(inputs, bounds, first, PLAN)
        reward_GM, usable_GM, kept_GM, length_GM = completion(inputs, at_GM, live_GM, max_tokens, PLAN)
        centred_GM = centre(reward_GM, baseline_G3, given(inputs, at_GM, live_GM, reward_GM, PLAN), PLAN)
        scaled_GM = _scaled(centred_GM, (mean_G, std_G, low_G), batch, PLAN)
        divisor_GM = _divisor(length_GM, tokens_G, batch, max_tokens, PLAN)
        tl.store(outputs.advantages + at_GM, tl.where(kept_GM, scaled_GM, 0.0).to(dtype), mask=live_GM)
        tl.store(
            outputs.weights + at_GM, tl.where(kept_GM, 1.0 / divisor_GM.to(tl.float64), 0.0).to(dtype), mask=live_GM
        )
        tl.store(outputs.kept + at_GM, kept_GM, mask=live_GM)
    _pack(inputs, outputs, scratch, tile, sizes, batch, PLAN)


@triton.jit
def _pack(inputs, outputs, scratch, tile, sizes, batch, PLAN: tl.constexpr):
    """The completions that carry loss, moved to the front in their order; −1 after them."""
    total, groups, max_tokens, tiles = sizes
    kept = batch[0]
    other = tl.arange(0, PLAN.tiles)
    before = tl.sum(tl.load(scratch.integers + KEPT_FLAT * tiles + other, mask=other < tile, other=0))
    at_F = tile.to(tl.int64) * PLAN.flat + tl.arange(0, PLAN.flat)
    live_F = at_F < total
    reward_F, usable_F, kept_F, length_F = completion(inputs, at_F, live_F, max_tokens, PLAN)
    one_F = kept_F.to(tl.int64)
    rank_F = before + tl.cumsum(one_F, 0) - one_F
    tl.store(outputs.keep_index + tl.where(kept_F, rank_F, kept + at_F - rank_F), tl.where(kept_F, at_F, -1), live_F)


@triton.jit
def _report(outputs, scratch, sizes, batch, PLAN: tl.constexpr):
    """The step's metrics, and the number of completions that carry loss."""
    total, groups, max_tokens, tiles = sizes
    kept, tokens, with_tokens, mean, std, token_mean, token_std = batch
    scored = total_of(scratch.integers, tiles, SCORED, PLAN)
    tl.store(outputs.keep_count, kept)
    tl.store(outputs.metrics, mean)
    tl.store(outputs.metrics + 1, std)
    tl.store(outputs.metrics + 2, scored.to(mean.dtype))
    tl.store(outputs.metrics + 3, (total - scored).to(mean.dtype))
    tl.store(outputs.metrics + 4, kept.to(mean.dtype))
    tl.store(outputs.metrics + 5, tokens.to(mean.dtype))
    tl.store(outputs.metrics + 6, total_of(scratch.integers, tiles, INFORMATIVE, PLAN).to(mean.dtype))
    tl.store(outputs.metrics + 7, total_of(scratch.integers, tiles, ALL_POSITIVE, PLAN).to(mean.dtype))
    tl.store(outputs.metrics + 8, total_of(scratch.integers, tiles, NONE_POSITIVE, PLAN).to(mean.dtype))


@triton.jit
def measure_kernel(inputs, outputs, scratch, sizes, PLAN: tl.constexpr):
    """One program a tile."""
    measure(inputs, outputs, scratch, tl.program_id(0), sizes, PLAN)


@triton.jit
def finish_kernel(inputs, outputs, scratch, sizes, PLAN: tl.constexpr):
    """One program a tile, after all of ``measure_kernel``."""
    batch = _batch(scratch, sizes[3], PLAN)
    _finish(inputs, outputs, scratch, tl.program_id(0), sizes, batch, PLAN)
    if tl.program_id(0) == 0:
        _report(outputs, scratch, sizes, batch, PLAN)


@triton.jit
def one_launch_kernel(inputs, outputs, scratch, sizes, PLAN: tl.constexpr):
    """Both, by one program for all tiles."""
    for tile in range(sizes[3]):
        measure(inputs, outputs, scratch, tl.program_id(0) + tile, sizes, PLAN)
    tl.debug_barrier()  # what other threads of this program wrote is read from here on
    batch = _batch(scratch, sizes[3], PLAN)
    for tile in range(sizes[3]):
        _finish(inputs, outputs, scratch, tl.program_id(0) + tile, sizes, batch, PLAN)
    _report(outputs, scratch, sizes, batch, PLAN)

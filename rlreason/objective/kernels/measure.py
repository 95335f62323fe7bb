"""Device code of K1 (advantages), first half: tiles of [groups, members] are measured. ``credit`` finishes them.

G = groups of a tile, M = members of a tile. A group longer than M is walked in steps of M. ``sizes`` is (groups,
max_tokens, tiles); PLAN is an ``advantage.GroupPlan``. All of it in float64, like the torch path.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Columns of ``Scratch.statistics``: mean, deviation, smallest, largest, count, baseline above the smallest.
STATISTICS = 6
#: Rows of ``Scratch.moments``: count, mean, squares, smallest, largest of the scores; the same of centred scores by
#: loss tokens (whitening).
MOMENTS = 10


@triton.jit
def rollout(inputs, at, live, max_tokens, PLAN: tl.constexpr):
    """(score, 0 where unusable; usable; kept; length) of the rollouts ``at``."""
    score = tl.load(inputs.scores + at, mask=live, other=0.0)
    length = tl.load(inputs.lengths + at, mask=live, other=0)
    if PLAN.spec.overlong == "soft_penalty":
        cache = tl.full((), PLAN.spec.overlong_share, tl.float64) * max_tokens
        late = (max_tokens - cache - length) / cache
        score += tl.minimum(tl.maximum(late, -1.0), 0.0)
    usable = live & (score == score)  # noqa: PLR0124 (not nan)
    kept = usable & (length > 0)
    if PLAN.spec.overlong == "mask_from_baseline" or PLAN.spec.overlong == "mask":
        whole = tl.load(inputs.truncated + at, mask=live, other=0) == 0
        kept = kept & whole
        if PLAN.spec.overlong == "mask_from_baseline":
            usable = usable & whole
    return tl.where(usable, score, 0.0), usable, kept, length


@triton.jit
def members(bounds, first, PLAN: tl.constexpr):
    """(places, whether they exist) of the members ``first`` and on of a tile's groups, [G, M]."""
    start_G, end_G = bounds
    member_GM = start_G[:, None] + first + tl.arange(0, PLAN.members)[None, :]
    return member_GM, member_GM < end_G[:, None]


@triton.jit
def bounds_of(inputs, tile, groups, PLAN: tl.constexpr):
    """(groups of the tile, whether they exist, (starts, ends), size of the longest)."""
    group_G = tile.to(tl.int64) * PLAN.groups + tl.arange(0, PLAN.groups)
    live_G = group_G < groups
    start_G = tl.load(inputs.starts + group_G, mask=live_G, other=0)
    end_G = tl.load(inputs.starts + group_G + 1, mask=live_G, other=0)
    return group_G, live_G, (start_G, end_G), tl.max(end_G - start_G).to(tl.int32)


@triton.jit
def std(squares, count, low, high, PLAN: tl.constexpr):
    """Deviation; exactly 0 where the smallest is the largest, or there is none."""
    std = tl.sqrt(squares / tl.maximum(count - PLAN.spec.std_ddof, 1.0))
    return tl.where(low < high, std, 0.0)


@triton.jit
def centre(score_GM, baseline_G3, PLAN: tl.constexpr):
    """Score minus baseline, [G, M]. ``baseline_G3``: anchor, offset and stretch of each group. The batch's mean is
    taken off by the caller, who knows it."""
    anchor_G, offset_G, stretch_G = baseline_G3
    centred_GM = score_GM
    if PLAN.spec.baseline != "none" and PLAN.spec.baseline != "batch":
        centred_GM = ((score_GM - anchor_G[:, None]) - offset_G[:, None]) * stretch_G[:, None]
    return centred_GM


@triton.jit
def stretch(count_G, informative_G, PLAN: tl.constexpr):
    """What a centred score is multiplied by: 0 without information, n/(n − 1) where the baseline leaves it out."""
    stretch_G = tl.where(informative_G, 1.0, 0.0).to(tl.float64)
    if PLAN.spec.baseline == "leave_one_out":
        stretch_G = stretch_G * (count_G / tl.maximum(count_G - 1.0, 1.0))
    return stretch_G


@triton.jit
def _extent(inputs, bounds, longest, max_tokens, PLAN: tl.constexpr):
    """First sweep: (smallest, largest, count, tokens) of each group's usable scores."""
    low_G = tl.full([PLAN.groups], float("inf"), tl.float64)
    high_G = tl.full([PLAN.groups], float("-inf"), tl.float64)
    count_G = tl.full([PLAN.groups], 0, tl.int64)
    tokens_G = count_G
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(bounds, first, PLAN)
        score_GM, usable_GM, kept_GM, length_GM = rollout(inputs, at_GM, live_GM, max_tokens, PLAN)
        low_G = tl.minimum(low_G, tl.min(tl.where(usable_GM, score_GM, float("inf")), 1))
        high_G = tl.maximum(high_G, tl.max(tl.where(usable_GM, score_GM, float("-inf")), 1))
        count_G += tl.sum(usable_GM.to(tl.int64), 1)
        tokens_G += tl.sum(tl.where(usable_GM, length_GM, 0), 1)
    return low_G, high_G, count_G, tokens_G


@triton.jit
def _offsets(inputs, bounds, longest, extent, max_tokens, PLAN: tl.constexpr):
    """Second sweep, from the smallest score up: (mean, mean weighted by length)."""
    low_G, count_G, tokens_G = extent
    sum_G = low_G * 0.0
    weighted_G = sum_G
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(bounds, first, PLAN)
        score_GM, usable_GM, kept_GM, length_GM = rollout(inputs, at_GM, live_GM, max_tokens, PLAN)
        above_GM = tl.where(usable_GM, score_GM - low_G[:, None], 0.0)
        sum_G += tl.sum(above_GM, 1)
        if PLAN.spec.baseline == "length_weighted":
            weighted_G += tl.sum(above_GM * length_GM.to(tl.float64), 1)
    mean_G = sum_G / tl.maximum(count_G, 1).to(tl.float64)
    return mean_G, weighted_G / tl.maximum(tokens_G, 1).to(tl.float64)


@triton.jit
def _squares(inputs, bounds, longest, middle, max_tokens, PLAN: tl.constexpr):
    """Third sweep: sum of squares about the mean."""
    low_G, mean_G = middle
    squares_G = low_G * 0.0
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(bounds, first, PLAN)
        score_GM, usable_GM, kept_GM, length_GM = rollout(inputs, at_GM, live_GM, max_tokens, PLAN)
        away_GM = tl.where(usable_GM, (score_GM - low_G[:, None]) - mean_G[:, None], 0.0)
        squares_G += tl.sum(away_GM * away_GM, 1)
    return squares_G


@triton.jit
def _token_moments(inputs, bounds, longest, baseline_G3, max_tokens, PLAN: tl.constexpr):
    """Two more sweeps, for whitening: count, mean, squares, smallest, largest of centred scores, each once per loss
    token."""
    anchor_G, offset_G, stretch_G = baseline_G3
    total_G = anchor_G * 0.0
    weight_G = total_G
    low_G = total_G + float("inf")
    high_G = total_G - float("inf")
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(bounds, first, PLAN)
        score_GM, usable_GM, kept_GM, length_GM = rollout(inputs, at_GM, live_GM, max_tokens, PLAN)
        centred_GM = centre(score_GM, baseline_G3, PLAN)
        tokens_GM = tl.where(kept_GM, length_GM, 0).to(tl.float64)
        total_G += tl.sum(centred_GM * tokens_GM, 1)
        weight_G += tl.sum(tokens_GM, 1)
        low_G = tl.minimum(low_G, tl.min(tl.where(kept_GM, centred_GM, float("inf")), 1))
        high_G = tl.maximum(high_G, tl.max(tl.where(kept_GM, centred_GM, float("-inf")), 1))
    mean_G = total_G / tl.maximum(weight_G, 1.0)
    squares_G = anchor_G * 0.0
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(bounds, first, PLAN)
        score_GM, usable_GM, kept_GM, length_GM = rollout(inputs, at_GM, live_GM, max_tokens, PLAN)
        away_GM = tl.where(kept_GM, centre(score_GM, baseline_G3, PLAN) - mean_G[:, None], 0.0)
        squares_G += tl.sum(away_GM * away_GM * length_GM.to(tl.float64), 1)
    return weight_G, mean_G, squares_G, low_G, high_G


@triton.jit
def _store_moments(moments_ptr, tile, tiles, moments, ROW: tl.constexpr):
    """Merge the groups' moments into the tile's (Chan et al. 1979) and store them, from ``ROW`` on."""
    count_G, mean_G, squares_G, low_G, high_G = moments
    count = tl.sum(count_G)
    mean = tl.sum(count_G * mean_G) / tl.maximum(count, 1.0)
    away_G = tl.where(count_G > 0.0, mean_G - mean, 0.0)
    tl.store(moments_ptr + ROW * tiles + tile, count)
    tl.store(moments_ptr + (ROW + 1) * tiles + tile, mean)
    tl.store(moments_ptr + (ROW + 2) * tiles + tile, tl.sum(squares_G + count_G * away_G * away_G))
    tl.store(moments_ptr + (ROW + 3) * tiles + tile, tl.min(low_G))
    tl.store(moments_ptr + (ROW + 4) * tiles + tile, tl.max(high_G))


@triton.jit
def load_moments(moments_ptr, tiles, ROW: tl.constexpr, PLAN: tl.constexpr):
    """(mean, deviation) of the step: the tiles' moments merged by the same formula."""
    tile = tl.arange(0, PLAN.tiles)
    live = tile < tiles
    counts = tl.load(moments_ptr + ROW * tiles + tile, mask=live, other=0.0)
    means = tl.load(moments_ptr + (ROW + 1) * tiles + tile, mask=live, other=0.0)
    squares = tl.load(moments_ptr + (ROW + 2) * tiles + tile, mask=live, other=0.0)
    low = tl.min(tl.load(moments_ptr + (ROW + 3) * tiles + tile, mask=live, other=float("inf")))
    high = tl.max(tl.load(moments_ptr + (ROW + 4) * tiles + tile, mask=live, other=float("-inf")))
    count = tl.sum(counts)
    mean = tl.sum(counts * means) / tl.maximum(count, 1.0)
    away = tl.where(counts > 0.0, means - mean, 0.0)
    return mean, std(tl.sum(squares + counts * away * away), count, low, high, PLAN)


@triton.jit
def measure(inputs, scratch, tile, sizes, PLAN: tl.constexpr):
    """Statistics of the tile's groups, their baselines, and the tile's share of the step's moments."""
    groups, max_tokens, tiles = sizes
    group_G, live_G, bounds, longest = bounds_of(inputs, tile, groups, PLAN)
    low_G, high_G, count_G, tokens_G = _extent(inputs, bounds, longest, max_tokens, PLAN)
    some_G = count_G > 0
    anchor_G = tl.where(some_G, low_G, 0.0)
    number_G = count_G.to(tl.float64)
    mean_G, weighted_G = _offsets(inputs, bounds, longest, (anchor_G, count_G, tokens_G), max_tokens, PLAN)
    squares_G = _squares(inputs, bounds, longest, (anchor_G, mean_G), max_tokens, PLAN)
    offset_G = mean_G
    if PLAN.spec.baseline == "length_weighted":
        offset_G = weighted_G
    statistics = scratch.statistics + group_G * 6
    tl.store(statistics, anchor_G + mean_G, mask=live_G)
    tl.store(statistics + 1, std(squares_G, number_G, low_G, high_G, PLAN), mask=live_G)
    tl.store(statistics + 2, anchor_G, mask=live_G)
    tl.store(statistics + 3, tl.where(some_G, high_G, 0.0), mask=live_G)
    tl.store(statistics + 4, number_G, mask=live_G)
    tl.store(statistics + 5, offset_G, mask=live_G)
    _store_moments(scratch.moments, tile, tiles, (number_G, anchor_G + mean_G, squares_G, low_G, high_G), 0)
    if PLAN.spec.scale == "batch_whiten":
        baseline_G3 = (anchor_G, offset_G, stretch(number_G, (count_G > 1) & (low_G < high_G), PLAN))
        moments = _token_moments(inputs, bounds, longest, baseline_G3, max_tokens, PLAN)
        _store_moments(scratch.moments, tile, tiles, moments, 5)

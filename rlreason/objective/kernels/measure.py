"""Device code of K1 (advantages), first half: tiles of [groups, members] are measured. ``credit`` finishes them.

G = groups of a tile, M = members of a tile. A group longer than M is walked in steps of M. ``sizes`` is (completions,
groups, max_tokens, tiles); PLAN is an ``advantage.GroupPlan``. All of it in float64, like the torch path.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: Rows of ``Scratch.floats``: count, mean, squares, smallest, largest of the rewards; the same of centred rewards by
#: loss tokens (whitening).
FLOATS = 10
#: Rows of ``Scratch.integers``.
INTEGERS = 8
KEPT, TOKENS, GROUPS_WITH_TOKENS, SCORED, INFORMATIVE, ALL_POSITIVE, NONE_POSITIVE, KEPT_FLAT = (
    tl.constexpr(row) for row in range(8)
)


@triton.jit
def completion(inputs, at, live, max_tokens, PLAN: tl.constexpr):
    """(reward, 0 where unusable; usable; kept; length) of the completions ``at``."""
    reward = tl.load(inputs.rewards + at, mask=live, other=0.0).to(tl.float64)
    length = tl.load(inputs.lengths + at, mask=live, other=0).to(tl.int64)
    if PLAN.spec.overlong == "soft_penalty":
        cache = tl.full((), PLAN.spec.overlong_share, tl.float64) * max_tokens
        late = (max_tokens - cache - length) / cache
        reward += tl.minimum(tl.maximum(late, -1.0), 0.0)
    usable = live & (reward == reward)  # noqa: PLR0124 (not nan)
    kept = usable & (length > 0)
    if PLAN.has_truncated:
        cut = tl.load(inputs.truncated + at, mask=live, other=0) != 0
        if PLAN.spec.overlong == "mask_from_baseline":
            usable = usable & (cut == 0)
            kept = kept & (cut == 0)
        elif PLAN.spec.overlong == "mask":
            kept = kept & (cut == 0)
    return tl.where(usable, reward, 0.0), usable, kept, length


@triton.jit
def members(inputs, bounds, first, PLAN: tl.constexpr):
    """(places, whether they exist) of the members ``first`` and on of a tile's groups, [G, M]."""
    start_G, end_G = bounds
    member_GM = start_G[:, None] + first + tl.arange(0, PLAN.members)[None, :]
    live_GM = member_GM < end_G[:, None]
    if PLAN.has_order:
        member_GM = tl.load(inputs.order + member_GM, mask=live_GM, other=0)
    return member_GM, live_GM


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
def centre(reward_GM, baseline_G3, given_GM, PLAN: tl.constexpr):
    """Reward minus baseline, [G, M]. ``baseline_G3``: anchor, offset and stretch of each group. The batch's mean is
    taken off by the caller, who knows it."""
    anchor_G, offset_G, stretch_G = baseline_G3
    centred_GM = reward_GM
    if PLAN.spec.baseline == "given":
        centred_GM = reward_GM - given_GM
    elif PLAN.spec.baseline != "none" and PLAN.spec.baseline != "batch":
        centred_GM = ((reward_GM - anchor_G[:, None]) - offset_G[:, None]) * stretch_G[:, None]
    return centred_GM


@triton.jit
def given(inputs, at_GM, live_GM, reward_GM, PLAN: tl.constexpr):
    given_GM = reward_GM
    if PLAN.has_baseline:
        given_GM = tl.load(inputs.baseline + at_GM, mask=live_GM, other=0.0).to(tl.float64)
    return given_GM


@triton.jit
def stretch(count_G, informative_G, PLAN: tl.constexpr):
    """What a centred reward is multiplied by: 0 without information, n/(n − 1) where the baseline leaves it out."""
    stretch_G = tl.where(informative_G, 1.0, 0.0).to(tl.float64)
    if PLAN.spec.baseline == "leave_one_out":
        stretch_G = stretch_G * (count_G / tl.maximum(count_G - 1.0, 1.0))
    return stretch_G


@triton.jit
def _extent(inputs, bounds, longest, max_tokens, PLAN: tl.constexpr):
    """First sweep: (smallest, largest, count, positive, kept, loss tokens, tokens) of each group's usable rewards."""
    start_G, end_G = bounds
    low_G = tl.full([PLAN.groups], float("inf"), tl.float64)
    high_G = tl.full([PLAN.groups], float("-inf"), tl.float64)
    count_G = tl.full([PLAN.groups], 0, tl.int64)
    positive_G = count_G
    kept_G = count_G
    loss_tokens_G = count_G
    tokens_G = count_G
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(inputs, bounds, first, PLAN)
        reward_GM, usable_GM, kept_GM, length_GM = completion(inputs, at_GM, live_GM, max_tokens, PLAN)
        low_G = tl.minimum(low_G, tl.min(tl.where(usable_GM, reward_GM, float("inf")), 1))
        high_G = tl.maximum(high_G, tl.max(tl.where(usable_GM, reward_GM, float("-inf")), 1))
        count_G += tl.sum(usable_GM.to(tl.int64), 1)
        positive_G += tl.sum((usable_GM & (reward_GM > 0.0)).to(tl.int64), 1)
        kept_G += tl.sum(kept_GM.to(tl.int64), 1)
        loss_tokens_G += tl.sum(tl.where(kept_GM, length_GM, 0), 1)
        tokens_G += tl.sum(tl.where(usable_GM, length_GM, 0), 1)
    return low_G, high_G, count_G, positive_G, kept_G, loss_tokens_G, tokens_G


@triton.jit
def _offsets(inputs, bounds, longest, extent, max_tokens, PLAN: tl.constexpr):
    """Second sweep, from the smallest reward up: (mean, mean weighted by length)."""
    low_G, count_G, tokens_G = extent
    sum_G = low_G * 0.0
    weighted_G = sum_G
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(inputs, bounds, first, PLAN)
        reward_GM, usable_GM, kept_GM, length_GM = completion(inputs, at_GM, live_GM, max_tokens, PLAN)
        above_GM = tl.where(usable_GM, reward_GM - low_G[:, None], 0.0)
        sum_G += tl.sum(above_GM, 1)
        if PLAN.spec.baseline == "length_weighted":
            weighted_G += tl.sum(above_GM * length_GM.to(above_GM.dtype), 1)
    mean_G = sum_G / tl.maximum(count_G, 1).to(tl.float64)
    return mean_G, weighted_G / tl.maximum(tokens_G, 1).to(tl.float64)


@triton.jit
def _squares(inputs, bounds, longest, middle, max_tokens, PLAN: tl.constexpr):
    """Third sweep: sum of squares about the mean."""
    low_G, mean_G = middle
    squares_G = low_G * 0.0
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(inputs, bounds, first, PLAN)
        reward_GM, usable_GM, kept_GM, length_GM = completion(inputs, at_GM, live_GM, max_tokens, PLAN)
        away_GM = tl.where(usable_GM, (reward_GM - low_G[:, None]) - mean_G[:, None], 0.0)
        squares_G += tl.sum(away_GM * away_GM, 1)
    return squares_G


@triton.jit
def _token_moments(inputs, bounds, longest, baseline_G3, max_tokens, PLAN: tl.constexpr):
    """Two more sweeps, for whitening: mean, squares, smallest, largest of centred rewards, each once per loss token."""
    anchor_G, offset_G, stretch_G = baseline_G3
    total_G = anchor_G * 0.0
    weight_G = total_G
    low_G = total_G + float("inf")
    high_G = total_G - float("inf")
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(inputs, bounds, first, PLAN)
        reward_GM, usable_GM, kept_GM, length_GM = completion(inputs, at_GM, live_GM, max_tokens, PLAN)
        centred_GM = centre(reward_GM, baseline_G3, given(inputs, at_GM, live_GM, reward_GM, PLAN), PLAN)
        tokens_GM = tl.where(kept_GM, length_GM, 0).to(centred_GM.dtype)
        total_G += tl.sum(centred_GM * tokens_GM, 1)
        weight_G += tl.sum(tokens_GM, 1)
        low_G = tl.minimum(low_G, tl.min(tl.where(kept_GM, centred_GM, float("inf")), 1))
        high_G = tl.maximum(high_G, tl.max(tl.where(kept_GM, centred_GM, float("-inf")), 1))
    mean_G = total_G / tl.maximum(weight_G, 1.0)
    squares_G = anchor_G * 0.0
    for first in range(0, longest, PLAN.members):
        at_GM, live_GM = members(inputs, bounds, first, PLAN)
        reward_GM, usable_GM, kept_GM, length_GM = completion(inputs, at_GM, live_GM, max_tokens, PLAN)
        centred_GM = centre(reward_GM, baseline_G3, given(inputs, at_GM, live_GM, reward_GM, PLAN), PLAN)
        away_GM = tl.where(kept_GM, centred_GM - mean_G[:, None], 0.0)
        squares_G += tl.sum(away_GM * away_GM * length_GM.to(away_GM.dtype), 1)
    return weight_G, mean_G, squares_G, low_G, high_G


@triton.jit
def _store_moments(floats_ptr, tile, tiles, moments, ROW: tl.constexpr):
    """Merge the groups' moments into the tile's (Chan et al. 1979) and store them, from ``ROW`` on."""
    count_G, mean_G, squares_G, low_G, high_G = moments
    count = tl.sum(count_G)
    mean = tl.sum(count_G * mean_G) / tl.maximum(count, 1.0)
    away_G = tl.where(count_G > 0.0, mean_G - mean, 0.0)
    tl.store(floats_ptr + ROW * tiles + tile, count)
    tl.store(floats_ptr + (ROW + 1) * tiles + tile, mean)
    tl.store(floats_ptr + (ROW + 2) * tiles + tile, tl.sum(squares_G + count_G * away_G * away_G))
    tl.store(floats_ptr + (ROW + 3) * tiles + tile, tl.min(low_G))
    tl.store(floats_ptr + (ROW + 4) * tiles + tile, tl.max(high_G))


@triton.jit
def load_moments(floats_ptr, tiles, ROW: tl.constexpr, PLAN: tl.constexpr):
    """(count, mean, deviation) of the batch: the tiles' moments merged by the same formula."""
    tile = tl.arange(0, PLAN.tiles)
    live = tile < tiles
    counts = tl.load(floats_ptr + ROW * tiles + tile, mask=live, other=0.0)
    means = tl.load(floats_ptr + (ROW + 1) * tiles + tile, mask=live, other=0.0)
    squares = tl.load(floats_ptr + (ROW + 2) * tiles + tile, mask=live, other=0.0)
    low = tl.min(tl.load(floats_ptr + (ROW + 3) * tiles + tile, mask=live, other=float("inf")))
    high = tl.max(tl.load(floats_ptr + (ROW + 4) * tiles + tile, mask=live, other=float("-inf")))
    count = tl.sum(counts)
    mean = tl.sum(counts * means) / tl.maximum(count, 1.0)
    away = tl.where(counts > 0.0, means - mean, 0.0)
    return count, mean, std(tl.sum(squares + counts * away * away), count, low, high, PLAN)


@triton.jit
def total_of(integers_ptr, tiles, ROW: tl.constexpr, PLAN: tl.constexpr):
    tile = tl.arange(0, PLAN.tiles)
    return tl.sum(tl.load(integers_ptr + ROW * tiles + tile, mask=tile < tiles, other=0))


@triton.jit
def measure(inputs, outputs, scratch, tile, sizes, PLAN: tl.constexpr):
    """Statistics of the tile's groups, their baselines, and the tile's share of the batch's moments and counts."""
    total, groups, max_tokens, tiles = sizes
    group_G, live_G, bounds, longest = bounds_of(inputs, tile, groups, PLAN)
    start_G, end_G = bounds
    low_G, high_G, count_G, positive_G, kept_G, loss_tokens_G, tokens_G = _extent(
        inputs, bounds, longest, max_tokens, PLAN
    )
    some_G = count_G > 0
    informative_G = (count_G > 1) & (low_G < high_G)
    anchor_G = tl.where(some_G, low_G, 0.0)
    number_G = count_G.to(tl.float64)
    mean_G, weighted_G = _offsets(inputs, bounds, longest, (anchor_G, count_G, tokens_G), max_tokens, PLAN)
    squares_G = _squares(inputs, bounds, longest, (anchor_G, mean_G), max_tokens, PLAN)
    offset_G = mean_G
    if PLAN.spec.baseline == "length_weighted":
        offset_G = weighted_G
    share_G = positive_G.to(tl.float64) / tl.maximum(number_G, 1.0)
    statistics = outputs.statistics + group_G * 6
    tl.store(statistics, anchor_G + mean_G, mask=live_G)
    tl.store(statistics + 1, std(squares_G, number_G, low_G, high_G, PLAN), mask=live_G)
    tl.store(statistics + 2, anchor_G, mask=live_G)
    tl.store(statistics + 3, tl.where(some_G, high_G, 0.0), mask=live_G)
    tl.store(statistics + 4, number_G, mask=live_G)
    tl.store(statistics + 5, share_G, mask=live_G)
    tl.store(outputs.informative + group_G, informative_G, mask=live_G)
    all_G = some_G & (positive_G == count_G)
    none_G = some_G & (positive_G == 0)
    flags_G = tl.where(informative_G, 0, 1) + tl.where(all_G, 2, 0) + tl.where(none_G, 4, 0)
    flags_G += tl.where(count_G < end_G - start_G, 8, 0)
    tl.store(outputs.flags + group_G, flags_G.to(tl.uint8), mask=live_G)
    tl.store(scratch.baselines + group_G * 2, anchor_G, mask=live_G)
    tl.store(scratch.baselines + group_G * 2 + 1, offset_G, mask=live_G)
    tl.store(scratch.tokens + group_G, loss_tokens_G, mask=live_G)
    _store_moments(scratch.floats, tile, tiles, (number_G, anchor_G + mean_G, squares_G, low_G, high_G), 0)
    if PLAN.spec.scale == "batch_whiten":
        baseline_G3 = (anchor_G, offset_G, stretch(number_G, informative_G, PLAN))
        moments = _token_moments(inputs, bounds, longest, baseline_G3, max_tokens, PLAN)
        _store_moments(scratch.floats, tile, tiles, moments, 5)
    integers = scratch.integers + tile
    tl.store(integers + KEPT * tiles, tl.sum(kept_G))
    tl.store(integers + TOKENS * tiles, tl.sum(loss_tokens_G))
    tl.store(integers + GROUPS_WITH_TOKENS * tiles, tl.sum((loss_tokens_G > 0).to(tl.int64)))
    tl.store(integers + SCORED * tiles, tl.sum(count_G))
    tl.store(integers + INFORMATIVE * tiles, tl.sum(informative_G.to(tl.int64)))
    tl.store(integers + ALL_POSITIVE * tiles, tl.sum(all_G.to(tl.int64)))
    tl.store(integers + NONE_POSITIVE * tiles, tl.sum(none_G.to(tl.int64)))
    at_F = tile.to(tl.int64) * PLAN.flat + tl.arange(0, PLAN.flat)
    reward_F, usable_F, kept_F, length_F = completion(inputs, at_F, at_F < total, max_tokens, PLAN)
    tl.store(integers + KEPT_FLAT * tiles, tl.sum(kept_F.to(tl.int64)))

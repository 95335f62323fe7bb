"""Device functions: one token's loss, its gradient by log π, and its metrics, for every axis of the objective.

All work on blocks of any shape, scalars included, so that the token kernel (K2) and the row kernel of the language
model head (K3) share them. ``objective.surrogate``, ``kl`` and ``correction`` are the same formulas in torch.
"""

from __future__ import annotations

import triton
import triton.language as tl

#: What a token adds to the metrics, by column: the first SUMS are added up, the others maximised.
COLUMNS = ("loss", "kl/reference", "clip_fraction", "correction/masked", "mismatch/mean", "mismatch/k3",
           "mismatch/max", "ratio/max")  # fmt: skip
SUMS = 6

LIMIT = tl.constexpr(20.0)  # kl.LOG_RATIO_LIMIT


@triton.jit
def excess(d):
    """e^d − 1 − d, without cancellation near 0: a series below 1/2, the closed form above."""
    near = tl.abs(d) < 0.5
    small = tl.where(near, d, 0.0)
    series = small * 0.0 + 1.0
    if d.dtype == tl.float64:
        for k in tl.static_range(18, 2, -1):
            series = 1.0 + series * small * (1.0 / k)
    else:
        for k in tl.static_range(10, 2, -1):
            series = 1.0 + series * small * (1.0 / k)
    return tl.where(near, 0.5 * small * small * series, tl.exp(d) - 1.0 - d)


@triton.jit
def expm1(x):
    """e^x − 1, accurate near 0."""
    return excess(x) + x


@triton.jit
def bounded_exp(log_ratio):
    """exp, of a log-ratio clamped to ±LIMIT: one outlier cannot make the step infinite."""
    return tl.exp(tl.minimum(tl.maximum(log_ratio, -LIMIT), LIMIT))


@triton.jit
def binary_kl(sampler, logprob):
    """KL between drawing one token or any other, of the sampler and the policy (``objective.kl.binary_kl``)."""
    log_q = tl.minimum(sampler, 0.0)
    log_p = tl.minimum(logprob, 0.0)
    others_q = -expm1(log_q)
    others = (others_q + 1e-8) / (-expm1(log_p) + 1e-8)
    return tl.exp(log_q) * (log_q - log_p) + others_q * tl.log(others)


@triton.jit
def surrogate(ratio, advantage, logprob, sampler, PLAN: tl.constexpr):
    """(S, its gradient, whether a bound acted) of the clip rule."""
    unclipped = ratio * advantage
    value = unclipped
    grad = unclipped
    clipped = ratio < 0.0  # never
    bounded = tl.minimum(tl.maximum(ratio, 1.0 - PLAN.spec.clip_low), 1.0 + PLAN.spec.clip_high)
    if PLAN.spec.clip == "ppo":
        value = tl.minimum(unclipped, bounded * advantage)
        clipped = value < unclipped
        if PLAN.spec.delta > 0.0:
            beyond = (ratio > PLAN.spec.delta) & (advantage < 0.0)
            value = tl.where(beyond, PLAN.spec.delta * advantage, value)
            clipped = clipped | beyond
        if PLAN.spec.dual_clip > 0.0:
            floor = tl.where(advantage < 0.0, PLAN.spec.dual_clip * advantage, float("-inf"))
            clipped = clipped | (floor > value)
            value = tl.maximum(value, floor)
        grad = tl.where(clipped, 0.0, unclipped)
    elif PLAN.spec.clip == "cispo":
        grad = bounded * advantage
        value = grad * logprob
        clipped = bounded != ratio
    elif PLAN.spec.clip == "sapo":
        up = advantage > 0.0
        rising = tl.sigmoid(PLAN.spec.sapo_tau_positive * (ratio - 1.0))
        falling = tl.sigmoid(PLAN.spec.sapo_tau_negative * (ratio - 1.0))
        gate = tl.where(up, rising, falling)
        steep = tl.where(up, 4.0 / PLAN.spec.sapo_tau_positive, 4.0 / PLAN.spec.sapo_tau_negative)
        value = steep * gate * advantage
        grad = 4.0 * gate * (1.0 - gate) * ratio * advantage
    elif PLAN.spec.clip == "dppo_tv":
        change = tl.exp(logprob) - tl.exp(sampler)
        clipped = tl.where(advantage > 0.0, change > PLAN.spec.clip_high, change < -PLAN.spec.clip_low)
        value = tl.where(clipped, 0.0, unclipped)
        grad = value
    elif PLAN.spec.clip == "dppo_kl":
        divergence = binary_kl(sampler, logprob.to(sampler.dtype))
        up = (logprob > sampler) & (divergence > PLAN.spec.clip_high)
        clipped = tl.where(advantage > 0.0, up, (logprob < sampler) & (divergence > PLAN.spec.clip_low))
        value = tl.where(clipped, 0.0, unclipped)
        grad = value
    return value, grad, clipped


@triton.jit
def geometric_bound(log_ratio, advantage, PLAN: tl.constexpr):
    """GMPO's token log-ratio, clipped on the side that the advantage pushes to."""
    return tl.where(
        advantage > 0.0,
        tl.minimum(log_ratio, PLAN.spec.clip_high),
        tl.maximum(log_ratio, -PLAN.spec.clip_low),
    )


@triton.jit
def ratio_and_surrogate(token, log_ratio, level, PLAN: tl.constexpr):
    """ρ, S, grad, clipped. ``level``: the sequence's mean log-ratio where ρ is the sequence's, else ``log_ratio``."""
    logprob, old, sampler, reference, advantage, weight = token
    logprob = logprob.to(weight.dtype)
    if PLAN.spec.ratio == "clipped_mean":
        ratio = tl.exp(level)
        value = ratio * advantage
        clipped = geometric_bound(log_ratio, advantage, PLAN) != log_ratio
        return ratio, value, tl.where(clipped, 0.0, value), clipped
    else:
        if PLAN.spec.ratio == "on_policy":
            ratio = tl.exp(level * 0.0)
        else:
            ratio = bounded_exp(level)
        value, grad, clipped = surrogate(ratio, advantage, logprob, sampler, PLAN)
        if PLAN.spec.ratio != "on_policy" and PLAN.spec.clip != "cispo":
            grad = tl.where(tl.abs(level) > LIMIT, 0.0, grad)
        return ratio, value, grad, clipped


@triton.jit
def correction_weight(mismatch, PLAN: tl.constexpr):
    """c of log(π_old/π_sampler) at the spec's level."""
    ratio = bounded_exp(mismatch)
    if PLAN.spec.correction == "tis":
        return tl.minimum(ratio, PLAN.spec.correction_high)
    else:
        outside = (ratio > PLAN.spec.correction_high) | (ratio < PLAN.spec.correction_low)
        return tl.where(outside, 0.0, ratio)


@triton.jit
def kl_term(raw, log_ratio, PLAN: tl.constexpr):
    """Estimate of KL(π || π_ref) and its gradient. ``raw``: log π_ref − log π."""
    d = tl.minimum(tl.maximum(raw, -LIMIT), LIMIT)
    inside = tl.where(d == raw, 1.0, 0.0).to(d.dtype)
    if PLAN.spec.kl_estimator == "k1":
        return -d, inside
    elif PLAN.spec.kl_estimator == "k2":
        return 0.5 * d * d, -d * inside
    else:
        value = excess(d)
        grad = -(value + d) * inside
        if PLAN.spec.kl_estimator == "k3_unbiased":
            ratio = bounded_exp(log_ratio)
            return ratio * value, ratio * (value + grad)
        else:
            return value, grad


@triton.jit
def token_objective(token, levels, kept, PLAN: tl.constexpr):
    """Gradient by log π, and the eight columns, of tokens; all 0 where not ``kept`` (but ρ is 1 there, as π = π_old).

    ``token``: log π, log π_old, log π_sampler, log π_ref, A, w; 0 where not kept. ``levels``: what the sequence adds
    (its mean log-ratio, its log mismatch, its off-policy factor), or the token's own. Log-probabilities may be wider
    than A and w: their differences are small, so what follows is of the dtype of w.
    """
    logprob, old, sampler, reference, advantage, weight = token
    level, mismatch_level, factor = levels
    level = level.to(weight.dtype)
    log_ratio = (logprob - old).to(weight.dtype)
    mismatch = (old - sampler).to(weight.dtype)
    signed = -weight * factor
    if PLAN.spec.correction != "none":
        signed = signed * correction_weight(mismatch_level.to(weight.dtype), PLAN)
    ratio, value, grad, clipped = ratio_and_surrogate(token, log_ratio, level, PLAN)
    loss = tl.where(kept, value * signed, 0.0)
    grad = grad * signed
    kl = loss * 0.0
    if PLAN.has_reference:
        kl, kl_grad = kl_term((reference - logprob).to(weight.dtype), log_ratio, PLAN)
        kl = tl.where(kept, kl, 0.0)
        if PLAN.spec.kl_in == "loss":
            loss += PLAN.spec.kl_coef * (kl * weight)
            grad += kl_grad * (PLAN.spec.kl_coef * weight)
    grad = tl.where(kept, grad, 0.0)
    masked = kept & (signed == 0.0) & (weight != 0.0)
    if PLAN.spec.old == "sampler":  # π_old/π_sampler is 1: how far the trainer's own π is from the sampler's
        mismatch = log_ratio
    distance = tl.abs(mismatch)
    return grad, (
        loss,
        kl,
        tl.where(kept & clipped, 1.0, 0.0).to(loss.dtype),
        tl.where(masked, 1.0, 0.0).to(loss.dtype),
        distance,
        excess(tl.minimum(tl.maximum(mismatch, -LIMIT), LIMIT)),
        distance,
        ratio,
    )

"""Per-token estimates of KL(π || π_ref) from one sampled token, each with its slope d/d log π.

Schulman 2020, "Approximating KL divergence". With d = log π_ref − log π.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlreason.objective.spec import KlEstimator

#: Log-ratios are clamped to ±this before exp, so that one wild token cannot make the step infinite.
LOG_RATIO_LIMIT = 20.0


def kl_estimate(
    logprobs: Tensor, reference_logprobs: Tensor, estimator: KlEstimator, ratio: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Value and slope, each of the shape of ``logprobs``. ``ratio``: π/π_old, for "k3_unbiased" (DeepSeek-V3.2).

    k1 = −d and k3 = e^d − d − 1 are unbiased as values; the gradients of k2 = d²/2 and of ρ·k3 are those of the KL.
    """
    raw = reference_logprobs - logprobs
    d = raw.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    inside = torch.eq(d, raw, out=torch.empty_like(d))
    if estimator == "k1":
        return -d, inside
    if estimator == "k2":
        return 0.5 * d * d, -d * inside
    growth = torch.expm1(d)
    value = growth - d
    slope = growth.mul_(inside.neg_())
    if estimator == "k3_unbiased":
        if ratio is None:
            raise ValueError('kl_estimator = "k3_unbiased" needs the ratio to the old policy')
        return ratio * value, ratio * (value + slope)
    return value, slope

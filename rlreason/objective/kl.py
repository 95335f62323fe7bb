"""Per-token estimates of KL(π || π_ref) from one sampled token, each with its gradient d/d log π.

Schulman 2020, "Approximating KL divergence". With d = log π_ref − log π.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlreason.objective.spec import KlEstimator

#: Log-ratios are clamped to ±this before exp, so that one outlier cannot make the step infinite.
LOG_RATIO_LIMIT = 20.0


def kl_estimate(
    logprobs: Tensor, reference_logprobs: Tensor, estimator: KlEstimator, ratio: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Value and gradient, each of the shape of ``logprobs``. ``ratio``: π/π_old, for "k3_unbiased" (DeepSeek-V3.2).

    k1 = −d and k3 = e^d − d − 1 are unbiased as values; the gradients of k2 = d²/2 and of ρ·k3 are those of the KL.
    """
    d = reference_logprobs - logprobs
    outside = beyond_limit(d)
    if outside is not None:
        d = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if estimator == "k1":
        value, grad = -d, torch.ones_like(d)
    elif estimator == "k2":
        value, grad = 0.5 * d * d, -d
    else:
        growth = torch.expm1(d)
        value, grad = growth - d, growth.neg_()
    if outside is not None:
        grad = grad.masked_fill(outside, 0.0)
    if estimator == "k3_unbiased":
        if ratio is None:
            raise ValueError('kl_estimator = "k3_unbiased" needs the ratio to the old policy')
        return ratio * value, ratio * (value + grad)
    return value, grad


def binary_kl(sampler_logprobs: Tensor, logprobs: Tensor) -> Tensor:
    """KL₂ = μ log(μ/π) + (1 − μ) log((1 − μ)/(1 − π)): between drawing one token or any other, of the sampler and the
    policy (DPPO, arXiv 2602.04879). 1e-8 is added to both complements, as verl does. Without gradient; a
    log-probability that rounding left above 0 counts as 0."""
    log_q, log_p = sampler_logprobs.clamp(max=0.0), logprobs.clamp(max=0.0)
    others_q, others_p = -torch.expm1(log_q), -torch.expm1(log_p)
    return log_q.exp() * (log_q - log_p) + others_q * ((others_q + 1e-8) / (others_p + 1e-8)).log()


def beyond_limit(log_ratio: Tensor) -> Tensor | None:
    """Where a log-ratio is clamped, which stops its gradient; None where a CPU sees that none is."""
    if log_ratio.device.type == "cpu" and log_ratio.numel():
        low, high = torch.aminmax(log_ratio)
        if float(low) >= -LOG_RATIO_LIMIT and float(high) <= LOG_RATIO_LIMIT:
            return None
    return log_ratio.abs() > LOG_RATIO_LIMIT

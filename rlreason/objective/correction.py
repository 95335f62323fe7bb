"""What the mismatch between the sampler's and the trainer's probabilities does to a token: a weight without gradient.

B = sequences, T = positions. r = π_old/π_sampler, the same weights in two engines (or older weights in the sampler).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlreason.objective.kl import LOG_RATIO_LIMIT
from rlreason.objective.spec import Level, ObjectiveSpec


def at_level(log_ratio_BT: Tensor, mask_BT: Tensor, level: Level) -> Tensor:
    """log r of each token, [B, T]; of the sequence's product (the sum) or geometric mean (the mean), [B, 1].

    ``log_ratio_BT`` is 0 where ``mask_BT`` is.
    """
    if level == "token":
        return log_ratio_BT
    total_B1 = log_ratio_BT.sum(dim=1, keepdim=True)
    if level == "sequence_product":
        return total_B1
    return total_B1 / mask_BT.sum(dim=1, keepdim=True).clamp(min=1.0)


def correction_weights(mismatch_BT: Tensor, mask_BT: Tensor, spec: ObjectiveSpec) -> Tensor:
    """c, [B, T] or [B, 1]; of log r = ``mismatch_BT``, 0 where masked.

    tis: min(r, high), truncated importance sampling (Yao et al. 2025). mis: r inside [low, high], else 0. icepop: the
    same for single tokens with both bounds (Ling team 2025). Masked tokens stay in every denominator.
    """
    ratio = at_level(mismatch_BT, mask_BT, spec.correction_level).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if spec.correction == "tis":
        return ratio.clamp(max=spec.correction_high)
    outside = (ratio > spec.correction_high) | (ratio < spec.correction_low)
    return ratio.masked_fill(outside, 0.0)


def off_policy_mask(
    logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor, delta: float
) -> Tensor:
    """1 where a token stays, [B, T]; 0 where its A < 0 and its sequence's mean log(π_sampler/π) > delta
    (DeepSeek-V3.2)."""
    drift_BT = torch.where(mask_BT > 0, sampler_logprobs_BT - logprobs_BT, 0.0)
    drift_B1 = at_level(drift_BT, mask_BT, "sequence_mean")
    return 1.0 - ((advantages_BT < 0) & (drift_B1 > delta)).to(logprobs_BT.dtype)

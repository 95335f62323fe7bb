"""What the mismatch between the sampler's and the trainer's probabilities does to a token: a weight without gradient.

B = sequences, T = positions. r = π_old/π_sampler, the same weights in two engines (or older weights in the sampler).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlreason.objective.kl import LOG_RATIO_LIMIT, binary_kl
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


def sequence_gates(
    logprobs_BT: Tensor, sampler_logprobs_BT: Tensor, mask_BT: Tensor, advantages_BT: Tensor, spec: ObjectiveSpec
) -> Tensor:
    """1 where a token stays, [B, T]; 0 where its sequence has drifted too far from the sampler.

    ``off_policy_delta``: of tokens with A < 0, where the mean log(π_sampler/π) is above it (DeepSeek-V3.2, arXiv
    2512.02556). ``sequence_kl_max``: of all, where the mean binary divergence is (FlashREINFORCE).
    """
    kept_BT = torch.ones_like(logprobs_BT)
    if spec.off_policy_delta:
        drift_BT = torch.where(mask_BT > 0, sampler_logprobs_BT - logprobs_BT, 0.0)
        drift_B1 = at_level(drift_BT, mask_BT, "sequence_mean")
        kept_BT.masked_fill_((advantages_BT < 0) & (drift_B1 > spec.off_policy_delta), 0.0)
    if spec.sequence_kl_max:
        divergence_BT = torch.where(mask_BT > 0, binary_kl(sampler_logprobs_BT, logprobs_BT), 0.0)
        kept_BT.masked_fill_(at_level(divergence_BT, mask_BT, "sequence_mean") > spec.sequence_kl_max, 0.0)
    return kept_BT

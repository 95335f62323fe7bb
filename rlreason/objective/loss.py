"""Losses as pure functions of tensors: no model, no device, no recipe.

B = rows, T = target positions, V = vocabulary. Log-probabilities are natural logs in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlreason.objective.spec import ObjectiveSpec
from rlreason.types import Batch, LossOutput

#: Log-ratios are clamped to ±this before exp, so that one wild token cannot make the step infinite.
LOG_RATIO_LIMIT = 20.0


def k3(logprobs_BT: Tensor, reference_logprobs_BT: Tensor) -> Tensor:
    """k3 estimate of KL(policy || reference) per token: exp(d) − d − 1 with d = log π_ref − log π.

    Unbiased and never negative (Schulman 2020, "Approximating KL divergence"). Shape [B, T].
    """
    difference = (reference_logprobs_BT - logprobs_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(difference) - difference


def token_weights(mask_BT: Tensor, aggregation: str, denominator: float, max_tokens: int) -> Tensor:
    """Weight of each token such that the loss over all micro-batches is a plain sum. Shape [B, T].

    ``denominator`` is global: the number of loss tokens of the whole step for "token", of sequences otherwise.
    """
    if aggregation == "token":
        return mask_BT / denominator
    if aggregation == "sequence":
        lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1.0)
        return mask_BT / (lengths_B1 * denominator)
    return mask_BT / (max_tokens * denominator)


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor,
    batch: Batch,
    spec: ObjectiveSpec,
    weights_BT: Tensor,
    reference_logprobs_BT: Tensor | None = None,
) -> LossOutput:
    """Clipped policy-gradient loss of one micro-batch: −Σ_t w_t c_t min(ρA, clip(ρ)A) + kl_coef · Σ_t w_t k3.

    PPO clip (arXiv 1707.06347) with separate bounds (DAPO, arXiv 2503.14476); c_t = min(π_old/π_sampler, cap)
    is truncated importance sampling of the sampler mismatch. ``old_logprobs_BT`` are the trainer's own, recomputed
    before the first update of the step; with one update per step they equal ``logprobs_BT.detach()``.

    Shapes [B, T], float32; masked positions have exactly no effect on value or gradient.
    """
    mask_BT = batch.loss_mask_BT
    log_ratio_BT = ((logprobs_BT - old_logprobs_BT) * mask_BT).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio_BT = log_ratio_BT.exp()
    advantages_BT = batch.advantages_BT
    unclipped_BT = ratio_BT * advantages_BT
    clipped_BT = ratio_BT.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high) * advantages_BT
    surrogate_BT = torch.minimum(unclipped_BT, clipped_BT)
    mismatch_BT = (old_logprobs_BT - batch.sampler_logprobs_BT) * mask_BT
    if spec.sampler_correction_cap > 0.0:
        correction_BT = mismatch_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        surrogate_BT = surrogate_BT * correction_BT.clamp(max=spec.sampler_correction_cap)
    loss = -(surrogate_BT * weights_BT).sum()
    with torch.no_grad():
        sums = {
            "clip_fraction": ((clipped_BT < unclipped_BT) * mask_BT).sum(),
            "mismatch/mean": mismatch_BT.abs().sum(),
            "mismatch/k3": (k3(old_logprobs_BT, batch.sampler_logprobs_BT) * mask_BT).sum(),
        }
        maxima = {"mismatch/max": mismatch_BT.abs().max(), "ratio/max": (ratio_BT * mask_BT).max()}
    if reference_logprobs_BT is not None:
        divergence_BT = k3(logprobs_BT, reference_logprobs_BT) * mask_BT
        loss = loss + spec.kl_coef * (divergence_BT * weights_BT).sum()
        sums["kl/reference"] = divergence_BT.detach().sum()
    return LossOutput(loss=loss, sums=sums, maxima=maxima)


def supervised_loss(logprobs_BT: Tensor, mask_BT: Tensor, denominator: float) -> LossOutput:
    """Token-mean cross-entropy over the whole step: −Σ log π / N. Shapes [B, T]."""
    negative = -(logprobs_BT * mask_BT).sum()
    return LossOutput(loss=negative / denominator, sums={"loss": negative.detach()})


def distillation_loss(
    student_logits_BTV: Tensor, teacher_logits_BTV: Tensor, mask_BT: Tensor, denominator: float
) -> LossOutput:
    """Forward KL(teacher || student) averaged over tokens (Hinton et al. 2015, arXiv 1503.02531; T = 1).

    Logits [B, T, V] of any float dtype, computed in float32. The teacher's carry no gradient.
    """
    teacher_BTV = torch.log_softmax(teacher_logits_BTV.detach().float(), dim=-1)
    student_BTV = torch.log_softmax(student_logits_BTV.float(), dim=-1)
    divergence_BT = (teacher_BTV.exp() * (teacher_BTV - student_BTV)).sum(dim=-1)
    total = (divergence_BT * mask_BT).sum()
    return LossOutput(loss=total / denominator, sums={"teacher_kl": total.detach()})

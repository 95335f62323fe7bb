"""K2 on the CPU: the policy loss, its metrics and its gradient in one pass over the tokens.

B = sequences, T = positions, V = vocabulary. Log-probabilities are natural logs. The gradient of every piece is a
closed form (``surrogate``, ``kl``), so a block of sequences is read once, while it is in the cache; backward only
multiplies. Proof: ``tests/objective`` (a float64 oracle that shares no code, gradcheck, invariances).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlreason.objective.correction import at_level, correction_weights, off_policy_mask
from rlreason.objective.kl import LOG_RATIO_LIMIT, beyond_limit, kl_estimate
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.surrogate import Moved, Surrogate, surrogate
from rlreason.types import Batch, LossOutput

#: Elements of a block: its temporaries stay in the shared cache, and an operation is worth its call.
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What the loss reads besides the current log-probabilities. Shapes [B, T], or [B, 1] for what is a sequence's."""

    mask_BT: Tensor
    sampler_logprobs_BT: Tensor
    advantages_B1: Tensor
    #: Weight of each loss token (``Credit.weights_N``): the loss is a plain sum over tokens, however they are split.
    weights_B1: Tensor
    #: The trainer's own log π_old, read before the first update of the step. None: equal to the current ones.
    old_logprobs_BT: Tensor | None = None
    reference_logprobs_BT: Tensor | None = None

    @staticmethod
    def of(batch: Batch, old_logprobs_BT: Tensor | None, reference_logprobs_BT: Tensor | None) -> Tokens:
        """What a micro-batch says of its tokens."""
        return Tokens(
            mask_BT=batch.loss_mask_BT,
            sampler_logprobs_BT=batch.sampler_logprobs_BT,
            advantages_B1=batch.advantages_B1,
            weights_B1=batch.weights_B1,
            old_logprobs_BT=old_logprobs_BT,
            reference_logprobs_BT=reference_logprobs_BT,
        )

    def columns(self, places_R: Tensor) -> Tokens:
        """The tokens at b·T + t = ``places_R``, each as a sequence of its own: [R, 1]."""

        def column(values: Tensor) -> Tensor:
            return values.expand_as(self.mask_BT).reshape(-1)[places_R].unsqueeze(1)

        old, reference = self.old_logprobs_BT, self.reference_logprobs_BT
        return Tokens(
            mask_BT=column(self.mask_BT),
            sampler_logprobs_BT=column(self.sampler_logprobs_BT),
            advantages_B1=column(self.advantages_B1),
            weights_B1=column(self.weights_B1),
            old_logprobs_BT=None if old is None else column(old),
            reference_logprobs_BT=None if reference is None else column(reference),
        )

    def rows(self, part: slice) -> Tokens:
        """Some of the sequences."""
        old, reference = self.old_logprobs_BT, self.reference_logprobs_BT
        return Tokens(
            mask_BT=self.mask_BT[part],
            sampler_logprobs_BT=self.sampler_logprobs_BT[part],
            advantages_B1=self.advantages_B1[part],
            weights_B1=self.weights_B1[part],
            old_logprobs_BT=None if old is None else old[part],
            reference_logprobs_BT=None if reference is None else reference[part],
        )


@dataclass(slots=True, kw_only=True)
class Evaluated:
    """Loss and metrics of some sequences, and dL/d log π in ``slope_BT``: exactly 0 where masked."""

    loss: Tensor
    slope_BT: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]

    def plus(self, other: Evaluated) -> Evaluated:
        """Loss and metrics of both, and the slopes of this one."""
        for name, value in other.sums.items():
            _add(self.sums, name, value)
        for name, value in other.maxima.items():
            _raise(self.maxima, name, value)
        return replace(self, loss=self.loss + other.loss)


def evaluate(logprobs_BT: Tensor, tokens: Tokens, spec: ObjectiveSpec) -> Evaluated:
    """L = Σ w [−c S(ρ, A) + kl_coef · KL] over all tokens, with its gradient. No autograd.

    Sums over blocks are added in order, the loss in float64. Masked positions may hold anything, nan included.
    """
    slope_BT = torch.empty_like(logprobs_BT)
    total = Evaluated(loss=logprobs_BT.new_zeros((), dtype=torch.float64), slope_BT=slope_BT, sums={}, maxima={})
    for part in _blocks(*logprobs_BT.shape):
        total = total.plus(_evaluate_block(logprobs_BT[part], tokens.rows(part), spec, slope_BT[part]))
    return total


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    batch: Batch,
    spec: ObjectiveSpec,
    reference_logprobs_BT: Tensor | None = None,
) -> LossOutput:
    """Policy-gradient loss of one micro-batch (``ObjectiveSpec`` has the formula), to call ``backward()`` on.

    ``old_logprobs_BT`` None: the batch is on-policy, ρ = 1 with a gradient. Shapes [B, T], float32 or float64.
    """
    tokens = Tokens.of(batch, old_logprobs_BT, reference_logprobs_BT)
    evaluated = evaluate(logprobs_BT.detach(), tokens, spec)
    loss = with_gradient(evaluated.loss.to(logprobs_BT.dtype), (logprobs_BT, evaluated.slope_BT))
    return LossOutput(loss=loss, sums=evaluated.sums, maxima=evaluated.maxima)


def with_gradient(value: Tensor, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """``value`` as a function of the first of each pair, with the second as its gradient."""
    inputs, gradients = zip(*pairs, strict=True)
    result: Tensor = _WithGradient.apply(value, *inputs, *gradients)  # type: ignore[no-untyped-call]
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *both: Tensor) -> Tensor:
        ctx.save_for_backward(*both[len(both) // 2 :])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # A head's gradient is as large as the head: on a CPU, where asking costs nothing, 1 is not multiplied.
        as_it_is = grad_output.device.type == "cpu" and float(grad_output) == 1.0
        scaled = gradients if as_it_is else tuple(gradient * grad_output for gradient in gradients)
        return (None, *scaled, *(None for _ in gradients))


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _evaluate_block(logprobs_BT: Tensor, tokens: Tokens, spec: ObjectiveSpec, slope_BT: Tensor) -> Evaluated:
    """Loss and metrics of a block; its gradient is written into ``slope_BT``."""
    sums: dict[str, Tensor] = {}
    logprobs_BT, tokens = _without_surprises(logprobs_BT, tokens)
    mask_BT = tokens.mask_BT.to(logprobs_BT.dtype)
    old_BT = logprobs_BT if tokens.old_logprobs_BT is None else tokens.old_logprobs_BT
    mismatch_BT = torch.sub(old_BT, tokens.sampler_logprobs_BT).mul_(mask_BT)
    weights_BT = mask_BT * tokens.weights_B1
    correction = _token_weights(logprobs_BT, mismatch_BT, tokens, spec)
    gains_BT = weights_BT if correction is None else weights_BT * correction
    log_ratio_BT = torch.sub(logprobs_BT, old_BT).mul_(mask_BT)
    ratio, part = _surrogate(logprobs_BT, log_ratio_BT, tokens, spec)
    torch.mul(part.slope, gains_BT, out=slope_BT).neg_()
    product_BT = torch.empty_like(logprobs_BT)  # of one sum after the other: new memory costs more than the product
    loss = -_sum(torch.mul(part.value, gains_BT, out=product_BT))
    sums["clip_fraction"] = torch.mul(part.clipped, mask_BT, out=product_BT).sum()
    if spec.correction in ("mis", "icepop") or spec.off_policy_delta:
        sums["correction/masked"] = ((gains_BT == 0) & (weights_BT != 0)).sum()
    if tokens.reference_logprobs_BT is not None:
        ratio_BT = None
        if spec.kl_estimator == "k3_unbiased":
            ratio_BT = log_ratio_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp_()
        value_BT, kl_slope_BT = kl_estimate(logprobs_BT, tokens.reference_logprobs_BT, spec.kl_estimator, ratio_BT)
        if spec.kl_in == "loss":
            loss += spec.kl_coef * _sum(torch.mul(value_BT, weights_BT, out=product_BT))
            slope_BT.addcmul_(kl_slope_BT, weights_BT, value=spec.kl_coef)
        sums["kl/reference"] = torch.mul(value_BT, mask_BT, out=product_BT).sum()
    size_BT = torch.abs(mismatch_BT, out=product_BT)
    maxima = {"mismatch/max": size_BT.max(), "ratio/max": ratio.max()}
    sums["mismatch/mean"] = sums["mismatch/k3"] = maxima["mismatch/max"]
    if logprobs_BT.device.type != "cpu" or float(maxima["mismatch/max"]) > 0.0:  # else both are that 0
        sums["mismatch/mean"] = size_BT.sum()
        sums["mismatch/k3"] = torch.expm1(mismatch_BT.neg_(), out=product_BT).sub_(mismatch_BT).sum()
    return Evaluated(loss=loss, slope_BT=slope_BT, sums=sums, maxima=maxima)


def _sum(values_BT: Tensor) -> Tensor:
    """Sum in float64 of the sequences' own sums."""
    return values_BT.sum(dim=1).sum(dtype=torch.float64)


def _without_surprises(logprobs_BT: Tensor, tokens: Tokens) -> tuple[Tensor, Tokens]:
    """The same with 0 at masked positions, where anything there is not finite: what the mask is multiplied with may
    not be nan. On a CPU it is cheaper to ask than to fill."""
    dropped_BT: Tensor | None = None

    def tame(values_BT: Tensor | None) -> Tensor | None:
        nonlocal dropped_BT
        if values_BT is None or (values_BT.device.type == "cpu" and math.isfinite(float(values_BT.sum()))):
            return values_BT
        if dropped_BT is None:
            dropped_BT = tokens.mask_BT == 0
        return values_BT.masked_fill(dropped_BT, 0.0)

    now_BT, sampler_BT = tame(logprobs_BT), tame(tokens.sampler_logprobs_BT)
    assert now_BT is not None
    assert sampler_BT is not None
    return now_BT, replace(
        tokens,
        sampler_logprobs_BT=sampler_BT,
        old_logprobs_BT=tame(tokens.old_logprobs_BT),
        reference_logprobs_BT=tame(tokens.reference_logprobs_BT),
    )


def _token_weights(logprobs_BT: Tensor, mismatch_BT: Tensor, tokens: Tokens, spec: ObjectiveSpec) -> Tensor | None:
    """c: what the sampler's mismatch makes of each token, or each sequence; None: nothing."""
    weights: Tensor | None = None
    if spec.correction != "none":
        weights = correction_weights(mismatch_BT, tokens.mask_BT, spec)
    if spec.off_policy_delta:
        kept_B1 = off_policy_mask(
            logprobs_BT, tokens.sampler_logprobs_BT, tokens.mask_BT, tokens.advantages_B1, spec.off_policy_delta
        )
        weights = kept_B1 if weights is None else weights * kept_B1
    return weights


def _surrogate(
    logprobs_BT: Tensor, log_ratio_BT: Tensor, tokens: Tokens, spec: ObjectiveSpec
) -> tuple[Tensor, Surrogate]:
    """ρ, and S with its slope by log π of each token times the length where ρ is the sequence's.

    A sequence's S stands at each of its tokens, so the sums over its |o| tokens and its slope's 1/|o| cancel.
    """
    if spec.ratio == "geometric":
        return _geometric(log_ratio_BT, tokens, spec)
    if spec.ratio == "on_policy":
        ratio = torch.ones_like(logprobs_BT)
        beyond = None
    else:
        level = at_level(log_ratio_BT, tokens.mask_BT, "token" if spec.ratio == "token" else "geometric")
        beyond = beyond_limit(level)
        ratio = level.exp() if beyond is None else level.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp_()
    moved = Moved(
        ratio=ratio,
        advantages=tokens.advantages_B1,
        logprobs=logprobs_BT,
        sampler_logprobs=tokens.sampler_logprobs_BT,
    )
    part = surrogate(moved, spec)
    if beyond is not None and spec.clip != "cispo":  # the clamped ratio does not move; CISPO's slope is not through it
        part = replace(part, slope=part.slope.masked_fill(beyond, 0.0))
    return ratio, part


def _geometric(log_ratio_BT: Tensor, tokens: Tokens, spec: ObjectiveSpec) -> tuple[Tensor, Surrogate]:
    """Geometric mean of token ratios, each clipped on the side that the advantage pushes to (GMPO, arXiv 2507.20673):
    the bounds are on the log-ratio, −clip_low and clip_high."""
    up_B1 = tokens.advantages_B1 > 0
    bounded_BT = torch.where(up_B1, log_ratio_BT.clamp(max=spec.clip_high), log_ratio_BT.clamp(min=-spec.clip_low))
    ratio_B1 = at_level(bounded_BT, tokens.mask_BT, "geometric").exp()
    value_B1 = ratio_B1 * tokens.advantages_B1
    clipped_BT = (bounded_BT != log_ratio_BT).to(value_B1.dtype)
    slope_BT = value_B1 * (1.0 - clipped_BT)
    return ratio_B1, Surrogate(value=value_B1.expand_as(clipped_BT), slope=slope_BT, clipped=clipped_BT)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _raise(maxima: dict[str, Tensor], name: str, value: Tensor) -> None:
    maxima[name] = torch.maximum(maxima[name], value) if name in maxima else value


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

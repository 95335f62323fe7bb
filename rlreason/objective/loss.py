"""K2 on the CPU: the policy loss, its metrics and its gradient in one pass over the tokens.

B = sequences, T = positions, V = vocabulary. Log-probabilities are natural logs. The gradient of every piece is a
closed form (``surrogate``, ``kl``), so a block of sequences is read once, while it is in the cache; backward only
multiplies. Proof: ``tests/objective`` (a float64 oracle that shares no code, gradcheck, invariances).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlreason.objective.correction import at_level, correction_weights, off_policy_mask
from rlreason.objective.kl import LOG_RATIO_LIMIT, kl_estimate
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.surrogate import Moved, Surrogate, surrogate
from rlreason.types import Batch, LossOutput

#: Elements of a block: some ten temporaries of a block stay in a core's cache.
_BLOCK = 1 << 15


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

    Sums over blocks are kept in float64 and added in order. Masked positions may hold anything, nan included.
    """
    slope_BT = torch.empty_like(logprobs_BT)
    total = Evaluated(loss=logprobs_BT.new_zeros((), dtype=torch.float64), slope_BT=slope_BT, sums={}, maxima={})
    for part in _blocks(*logprobs_BT.shape):
        _evaluate_block(logprobs_BT[part], tokens.rows(part), spec, slope_BT[part], total)
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


def _evaluate_block(
    logprobs_BT: Tensor, tokens: Tokens, spec: ObjectiveSpec, slope_BT: Tensor, total: Evaluated
) -> None:
    """Add the block's loss and metrics to ``total`` and write its gradient into ``slope_BT``."""
    dropped_BT = tokens.mask_BT == 0
    old_BT = logprobs_BT if tokens.old_logprobs_BT is None else tokens.old_logprobs_BT
    mismatch_BT = (old_BT - tokens.sampler_logprobs_BT).masked_fill_(dropped_BT, 0.0)
    weights_BT = -tokens.weights_B1 * _token_weights(logprobs_BT, mismatch_BT, tokens, spec)
    log_ratio_BT = (logprobs_BT - old_BT).masked_fill_(dropped_BT, 0.0)
    ratio, part = _surrogate(logprobs_BT, log_ratio_BT, tokens, spec)
    total.loss += (part.value * weights_BT).masked_fill(dropped_BT, 0.0).sum(dtype=torch.float64)
    slope_BT.copy_(part.slope * weights_BT)
    if tokens.reference_logprobs_BT is not None:
        ratio_BT = log_ratio_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp_()
        value_BT, kl_slope_BT = kl_estimate(logprobs_BT, tokens.reference_logprobs_BT, spec.kl_estimator, ratio_BT)
        value_BT = value_BT.masked_fill(dropped_BT, 0.0)
        if spec.kl_in == "loss":
            total.loss += spec.kl_coef * (value_BT * tokens.weights_B1).sum(dtype=torch.float64)
            slope_BT += kl_slope_BT * (spec.kl_coef * tokens.weights_B1)
        _add(total.sums, "kl/reference", value_BT.sum())
    slope_BT.masked_fill_(dropped_BT, 0.0)
    _add(total.sums, "clip_fraction", (part.clipped & ~dropped_BT).sum())
    if spec.correction in ("mis", "icepop") or spec.off_policy_delta:
        _add(total.sums, "correction/masked", ((weights_BT == 0) & (tokens.weights_B1 != 0) & ~dropped_BT).sum())
    _add(total.sums, "mismatch/mean", mismatch_BT.abs().sum())
    _add(total.sums, "mismatch/k3", kl_estimate(mismatch_BT, torch.zeros_like(mismatch_BT), "k3")[0].sum())
    _raise(total.maxima, "mismatch/max", mismatch_BT.abs().max())
    _raise(total.maxima, "ratio/max", ratio.max())


def _token_weights(logprobs_BT: Tensor, mismatch_BT: Tensor, tokens: Tokens, spec: ObjectiveSpec) -> Tensor | float:
    """c: what the sampler's mismatch makes of each token, or each sequence."""
    weights: Tensor | float = 1.0
    if spec.correction != "none":
        weights = correction_weights(mismatch_BT, tokens.mask_BT, spec)
    if spec.off_policy_delta:
        weights = weights * off_policy_mask(
            logprobs_BT, tokens.sampler_logprobs_BT, tokens.mask_BT, tokens.advantages_B1, spec.off_policy_delta
        )
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
        beyond = level.abs() > LOG_RATIO_LIMIT
        ratio = level.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp_()
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
    clipped_BT = bounded_BT != log_ratio_BT
    slope_BT = value_B1.expand_as(clipped_BT).masked_fill(clipped_BT, 0.0)
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

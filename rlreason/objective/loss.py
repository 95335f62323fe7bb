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

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.correction import at_level, correction_weights, sequence_gates
from rlreason.objective.kl import LOG_RATIO_LIMIT, beyond_limit, kl_estimate
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.surrogate import Surrogate, SurrogateInputs, surrogate

#: Elements of a block: its temporaries stay in the shared cache, and an operation is worth its call.
_BLOCK = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What the loss reads besides the current log-probabilities: [B, T] each, in the dtype of those."""

    mask_BT: Tensor
    sampler_logprobs_BT: Tensor
    advantages_BT: Tensor
    #: Weight of each loss token in the whole step: the loss is a plain sum over tokens, however they are split.
    weights_BT: Tensor
    #: The trainer's own log π_old, read before the first update of the step. None: equal to the current ones.
    old_logprobs_BT: Tensor | None = None
    reference_logprobs_BT: Tensor | None = None

    @staticmethod
    def from_batch(
        batch: Batch, spec: ObjectiveSpec, old_logprobs_BT: Tensor | None, reference_logprobs_BT: Tensor | None
    ) -> LossInputs:
        """What a micro-batch says of its tokens; π_old is the sampler's where ``spec.old`` says so. Raises ValueError
        unless each token has an advantage and a weight."""
        if spec.old == "sampler":
            old_logprobs_BT = batch.sampler_logprobs_BT
        for name, values in (("advantages", batch.advantages_BT), ("weights", batch.weights_BT)):
            if values.shape != batch.loss_mask_BT.shape:
                shapes = f"{list(values.shape)}, not {list(batch.loss_mask_BT.shape)}"
                raise ValueError(f"{name}_BT holds one number for each target: its shape is {shapes}")
        return LossInputs(
            mask_BT=batch.loss_mask_BT,
            sampler_logprobs_BT=batch.sampler_logprobs_BT,
            advantages_BT=batch.advantages_BT,
            weights_BT=batch.weights_BT,
            old_logprobs_BT=old_logprobs_BT,
            reference_logprobs_BT=reference_logprobs_BT,
        )

    def columns(self, places_R: Tensor) -> LossInputs:
        """The tokens at b·T + t = ``places_R``, each as a sequence of its own: [R, 1]."""

        def column(values: Tensor) -> Tensor:
            return values.reshape(-1)[places_R].unsqueeze(1)

        old, reference = self.old_logprobs_BT, self.reference_logprobs_BT
        return LossInputs(
            mask_BT=column(self.mask_BT),
            sampler_logprobs_BT=column(self.sampler_logprobs_BT),
            advantages_BT=column(self.advantages_BT),
            weights_BT=column(self.weights_BT),
            old_logprobs_BT=None if old is None else column(old),
            reference_logprobs_BT=None if reference is None else column(reference),
        )

    def rows(self, part: slice) -> LossInputs:
        """Some of the sequences."""
        old, reference = self.old_logprobs_BT, self.reference_logprobs_BT
        return LossInputs(
            mask_BT=self.mask_BT[part],
            sampler_logprobs_BT=self.sampler_logprobs_BT[part],
            advantages_BT=self.advantages_BT[part],
            weights_BT=self.weights_BT[part],
            old_logprobs_BT=None if old is None else old[part],
            reference_logprobs_BT=None if reference is None else reference[part],
        )


@dataclass(slots=True, kw_only=True)
class LossAndGrad:
    """Loss and metrics of some sequences, and dL/d log π in ``grad_logprobs_BT``: exactly 0 where masked."""

    loss: Tensor
    grad_logprobs_BT: Tensor
    sums: dict[str, Tensor]
    maxima: dict[str, Tensor]

    def plus(self, other: LossAndGrad) -> LossAndGrad:
        """Loss and metrics of both, and the gradient of this one."""
        for name, value in other.sums.items():
            _add(self.sums, name, value)
        for name, value in other.maxima.items():
            _raise(self.maxima, name, value)
        return replace(self, loss=self.loss + other.loss)


def evaluate(logprobs_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec) -> LossAndGrad:
    """L = Σ w [−c S(ρ, A) + kl_coef · KL] over all tokens, with its gradient. No autograd.

    Sums over blocks are added in order, the loss in float64. Masked positions may hold anything, nan included.
    """
    grad_logprobs_BT = torch.empty_like(logprobs_BT)
    total = LossAndGrad(
        loss=logprobs_BT.new_zeros((), dtype=torch.float64), grad_logprobs_BT=grad_logprobs_BT, sums={}, maxima={}
    )
    for part in _blocks(*logprobs_BT.shape):
        total = total.plus(_evaluate_block(logprobs_BT[part], inputs.rows(part), spec, grad_logprobs_BT[part]))
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
    inputs = LossInputs.from_batch(batch, spec, old_logprobs_BT, reference_logprobs_BT)
    evaluated = evaluate(logprobs_BT.detach(), inputs, spec)
    loss = with_gradient(evaluated.loss.to(logprobs_BT.dtype), (logprobs_BT, evaluated.grad_logprobs_BT))
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
        scaled = gradients if _is_one(grad_output) else tuple(gradient * grad_output for gradient in gradients)
        return (None, *scaled, *(None for _ in gradients))


def _is_one(grad_output: Tensor) -> bool:
    """A head's gradient is as large as the head: on a CPU, where asking costs nothing, 1 is not multiplied."""
    return grad_output.device.type == "cpu" and float(grad_output) == 1.0


def _blocks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def _evaluate_block(
    logprobs_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec, grad_logprobs_BT: Tensor
) -> LossAndGrad:
    """Loss and metrics of a block; its gradient is written into ``grad_logprobs_BT``.

    NaN · 0 is NaN, so what is not finite at masked positions is set to 0 before anything is multiplied with the mask.
    On a CPU, where reading a number costs little, only when it has shown in the result.
    """
    if logprobs_BT.device.type != "cpu":
        return _compute_block(*_zero_masked(logprobs_BT, inputs), spec, grad_logprobs_BT)
    done = _compute_block(logprobs_BT, inputs, spec, grad_logprobs_BT)
    if all(math.isfinite(float(value)) for value in (done.loss, done.maxima["mismatch/max"], *done.sums.values())):
        return done
    return _compute_block(*_zero_masked(logprobs_BT, inputs), spec, grad_logprobs_BT)


def _compute_block(
    logprobs_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec, grad_logprobs_BT: Tensor
) -> LossAndGrad:
    sums: dict[str, Tensor] = {}
    mask_BT = inputs.mask_BT.to(logprobs_BT.dtype)
    old_BT = logprobs_BT if inputs.old_logprobs_BT is None else inputs.old_logprobs_BT
    mismatch_BT = torch.sub(old_BT, inputs.sampler_logprobs_BT).mul_(mask_BT)
    weights_BT = mask_BT * inputs.weights_BT
    correction = _token_weights(logprobs_BT, mismatch_BT, inputs, spec)
    gains_BT = weights_BT if correction is None else weights_BT * correction
    log_ratio_BT = torch.sub(logprobs_BT, old_BT).mul_(mask_BT)
    ratio, part = _surrogate(logprobs_BT, log_ratio_BT, inputs, spec)
    torch.mul(part.grad_logprob, gains_BT, out=grad_logprobs_BT).neg_()
    product_BT = torch.empty_like(logprobs_BT)  # of one sum after the other: new memory costs more than the product
    loss = -_sum(torch.mul(part.value, gains_BT, out=product_BT))
    sums["clip_fraction"] = torch.mul(part.clipped, mask_BT, out=product_BT).sum()
    if spec.correction in ("mis", "icepop") or spec.gates_sequences:
        sums["correction/masked"] = ((gains_BT == 0) & (weights_BT != 0)).sum()
    if inputs.reference_logprobs_BT is not None:
        ratio_BT = None
        if spec.kl_estimator == "k3_unbiased":
            ratio_BT = log_ratio_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp_()
        value_BT, kl_grad_BT = kl_estimate(logprobs_BT, inputs.reference_logprobs_BT, spec.kl_estimator, ratio_BT)
        if spec.kl_in == "loss":
            loss += spec.kl_coef * _sum(torch.mul(value_BT, weights_BT, out=product_BT))
            grad_logprobs_BT.addcmul_(kl_grad_BT, weights_BT, value=spec.kl_coef)
        sums["kl/reference"] = torch.mul(value_BT, mask_BT, out=product_BT).sum()
    if spec.old == "sampler":  # π_old/π_sampler is 1: what is measured is how far the trainer's own π is from it
        mismatch_BT = log_ratio_BT
    size_BT = torch.abs(mismatch_BT, out=product_BT)
    maxima = {"mismatch/max": size_BT.max(), "ratio/max": ratio.max()}
    sums["mismatch/mean"] = sums["mismatch/k3"] = maxima["mismatch/max"]
    if logprobs_BT.device.type != "cpu" or float(maxima["mismatch/max"]) > 0.0:  # else both are that 0
        sums["mismatch/mean"] = size_BT.sum()
        # Tokens are the sampler's, so r − 1 − log r of r = π_trainer/π_sampler has the mean KL(sampler || trainer).
        mismatch_BT = mismatch_BT.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        sums["mismatch/k3"] = torch.expm1(mismatch_BT, out=product_BT).sub_(mismatch_BT).sum()
    return LossAndGrad(loss=loss, grad_logprobs_BT=grad_logprobs_BT, sums=sums, maxima=maxima)


def _sum(values_BT: Tensor) -> Tensor:
    """Sum in float64 of the sequences' own sums."""
    return values_BT.sum(dim=1).sum(dtype=torch.float64)


def _zero_masked(logprobs_BT: Tensor, inputs: LossInputs) -> tuple[Tensor, LossInputs]:
    """The same with 0 at masked positions."""
    masked_BT = inputs.mask_BT == 0

    def zeroed(values_BT: Tensor) -> Tensor:
        return values_BT.masked_fill(masked_BT, 0.0)

    old_BT, reference_BT = inputs.old_logprobs_BT, inputs.reference_logprobs_BT
    return zeroed(logprobs_BT), LossInputs(
        mask_BT=inputs.mask_BT,
        sampler_logprobs_BT=zeroed(inputs.sampler_logprobs_BT),
        advantages_BT=zeroed(inputs.advantages_BT),
        weights_BT=zeroed(inputs.weights_BT),
        old_logprobs_BT=None if old_BT is None else zeroed(old_BT),
        reference_logprobs_BT=None if reference_BT is None else zeroed(reference_BT),
    )


def _token_weights(logprobs_BT: Tensor, mismatch_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec) -> Tensor | None:
    """c: what the sampler's mismatch makes of each token, or each sequence; None: nothing."""
    weights: Tensor | None = None
    if spec.correction != "none":
        weights = correction_weights(mismatch_BT, inputs.mask_BT, spec)
    if spec.gates_sequences:
        kept_BT = sequence_gates(logprobs_BT, inputs.sampler_logprobs_BT, inputs.mask_BT, inputs.advantages_BT, spec)
        weights = kept_BT if weights is None else weights * kept_BT
    return weights


def _surrogate(
    logprobs_BT: Tensor, log_ratio_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec
) -> tuple[Tensor, Surrogate]:
    """ρ, and S with its gradient by log π of each token.

    Where ρ is the sequence's, it stands at each of its tokens, multiplies that token's own A, and has the gradient of
    that token's own log π: ρ_t = stop_gradient(ρ) · π_t/stop_gradient(π_t), GSPO-token (arXiv 2507.18071, 4.3). With
    one A and one w for all tokens that is the gradient of Σ_t w ρ A, whose 1/|o| and sum over |o| tokens cancel.
    """
    if spec.ratio == "clipped_mean":
        return _clipped_mean(log_ratio_BT, inputs, spec)
    if spec.ratio == "on_policy":
        ratio = torch.ones_like(logprobs_BT)
        beyond = None
    else:
        level = at_level(log_ratio_BT, inputs.mask_BT, "token" if spec.ratio == "token" else "sequence_mean")
        beyond = beyond_limit(level)
        ratio = level.exp() if beyond is None else level.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp_()
    surrogate_inputs = SurrogateInputs(
        ratio=ratio,
        advantages=inputs.advantages_BT,
        logprobs=logprobs_BT,
        sampler_logprobs=inputs.sampler_logprobs_BT,
    )
    part = surrogate(surrogate_inputs, spec)
    if beyond is not None and spec.clip != "cispo":  # a clamped ratio does not move; CISPO's gradient is not through it
        part = replace(part, grad_logprob=part.grad_logprob.masked_fill(beyond, 0.0))
    return ratio, part


def _clipped_mean(log_ratio_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec) -> tuple[Tensor, Surrogate]:
    """Geometric mean of token ratios, each clipped on the side that the advantage pushes to (GMPO, arXiv 2507.20673):
    the bounds are on the log-ratio, −clip_low and clip_high."""
    up_BT = inputs.advantages_BT > 0
    bounded_BT = torch.where(up_BT, log_ratio_BT.clamp(max=spec.clip_high), log_ratio_BT.clamp(min=-spec.clip_low))
    ratio_B1 = at_level(bounded_BT, inputs.mask_BT, "sequence_mean").exp()
    value_BT = ratio_B1 * inputs.advantages_BT
    clipped_BT = (bounded_BT != log_ratio_BT).to(value_BT.dtype)
    return ratio_B1, Surrogate(value=value_BT, grad_logprob=value_BT * (1.0 - clipped_BT), clipped=clipped_BT)


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _raise(maxima: dict[str, Tensor], name: str, value: Tensor) -> None:
    maxima[name] = torch.maximum(maxima[name], value) if name in maxima else value


def supervised_loss(logprobs_BT: Tensor, mask_BT: Tensor, denominator: float) -> LossOutput:
    """Token-mean cross-entropy over the whole step: −Σ log π / N. Shapes [B, T]."""
    negative = -(logprobs_BT * mask_BT).sum()
    return LossOutput(loss=negative / denominator, sums={"loss": negative.detach()})

"""K3 on the GPU: language-model head and policy loss together; the logits never exist as a whole.

N = B·T places, R = loss rows, H = hidden size, V = vocabulary, C = rows of a tile. A tile of logits is one cuBLAS
product with float32 output; one row kernel turns it into log π, entropy and loss, and overwrites it by the gradient.
Where the objective's slope follows from a row alone (``Plan.row_local``), that happens in the forward pass: three
products per row. Else log π of all rows comes first, K2 gives the slopes, and the tiles are computed again: four.

The gradient of a head in half precision is rounded to it once, as an operand; all products accumulate in float32, the
weight's over all tiles (a float32 [V, H] lives through the call), the hidden states' is one product over V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlreason.objective.kernels.device import COLUMNS
from rlreason.objective.kernels.loss import evaluate, evaluated
from rlreason.objective.kernels.plan import Plan
from rlreason.objective.kernels.rows import RowInputs, RowOutputs, RowPlan, row_kernel
from rlreason.objective.loss import Evaluated, Tokens, with_gradient
from rlreason.objective.spec import ObjectiveSpec
from rlreason.types import Batch, LossOutput

_BLOCK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """How the head is computed. Example: ``HeadOptions(temperature=0.7, rows_R=index)``."""

    #: Of the sampler: log π is of softmax(logits / temperature).
    temperature: float = 1.0
    #: Rows of a tile: 4·C·V bytes, 1.2 GB at V = 151,936.
    tile_rows: int = 2048
    #: forward: gradient in the forward pass; recompute: tiles twice; auto: the first where the objective allows it.
    gradient: Literal["auto", "forward", "recompute"] = "auto"
    #: Places b·T + t of the loss rows, int64 [R] on the device; −1 is padding. None: found from the mask, which waits
    #: for the device once.
    rows_R: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss(LossOutput):
    """A loss, and what the head said of each token on the way. [B, T], float32; 0 where masked."""

    logprobs_BT: Tensor
    entropy_BT: Tensor


def linear_policy_loss(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    batch: Batch,
    spec: ObjectiveSpec,
    old_logprobs_BT: Tensor | None = None,
    reference_logprobs_BT: Tensor | None = None,
    options: HeadOptions = HeadOptions(),
) -> HeadLoss:
    """``policy_loss`` of log softmax(hidden · weightᵀ / temperature), to call ``backward()`` on.

    ``hidden_BTH``, ``weight_VH``: bfloat16, float16, float32 (float64 in tests), on one device. ``backward`` gives
    the gradients of both; a head that needs none costs no product for it. Raises ValueError where
    ``options.gradient`` is "forward" and a token's slope depends on its sequence.
    """
    plan = Plan(spec, old_logprobs_BT is not None, reference_logprobs_BT is not None)
    if options.gradient == "forward" and not plan.row_local:
        raise ValueError('gradient = "forward": a token\'s slope depends on its sequence here. Use "auto"')
    tokens = Tokens(
        mask_BT=batch.loss_mask_BT,
        sampler_logprobs_BT=batch.sampler_logprobs_BT,
        advantages_B1=batch.advantages_B1,
        weights_B1=batch.weights_B1,
        old_logprobs_BT=old_logprobs_BT,
        reference_logprobs_BT=reference_logprobs_BT,
    )
    head = _Head.of(hidden_BTH, weight_VH, batch, tokens, options)
    if plan.row_local and options.gradient != "recompute":
        done = head.run(RowPlan(plan, True, True, head.wanted, head.narrow, options.temperature != 1.0))
        assert done is not None
    else:
        head.run(RowPlan(plan, True, False, False, head.narrow, options.temperature != 1.0))
        done = evaluate(head.outputs.logprobs, tokens, spec)
        head.outputs = head.outputs._replace(slopes=done.slope_BT)
        if head.wanted:
            head.run(RowPlan(plan, False, False, True, head.narrow, options.temperature != 1.0))
    pairs = [(tensor, gradient) for tensor, gradient in head.gradients() if gradient is not None]
    loss = with_gradient(done.loss.to(head.outputs.logprobs.dtype), *pairs)
    return HeadLoss(
        loss=loss,
        sums=done.sums,
        maxima=done.maxima,
        logprobs_BT=head.outputs.logprobs,
        entropy_BT=head.outputs.entropies,
    )


@dataclass(slots=True, kw_only=True)
class _Head:
    """The buffers of one call."""

    hidden: Tensor
    weight: Tensor
    #: [N, H] and [V, H], without autograd.
    hidden_NH: Tensor
    weight_VH: Tensor
    inputs: RowInputs
    outputs: RowOutputs
    options: HeadOptions
    #: One spare row behind the N: padding goes there.
    gradient_NH: Tensor | None
    gradient_VH: Tensor | None

    @staticmethod
    def of(hidden: Tensor, weight: Tensor, batch: Batch, tokens: Tokens, options: HeadOptions) -> _Head:
        """Allocate what the call needs."""
        rows_R = options.rows_R
        if rows_R is None:
            rows_R = batch.loss_mask_BT.reshape(-1).nonzero()[:, 0]
        hidden_NH = hidden.detach().reshape(-1, hidden.shape[-1])
        weight_VH = weight.detach()
        float_type = _accumulator(weight)
        shape, count = batch.loss_mask_BT.shape, len(rows_R)

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=float_type, device=hidden.device)

        def column(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.detach().to(float_type).contiguous()

        sampler, advantages, weights = (
            values.detach().to(float_type).contiguous()
            for values in (tokens.sampler_logprobs_BT, tokens.advantages_B1, tokens.weights_B1)
        )
        wanted = torch.is_grad_enabled()
        return _Head(
            hidden=hidden,
            weight=weight,
            hidden_NH=hidden_NH,
            weight_VH=weight_VH,
            inputs=RowInputs(
                places=rows_R.contiguous(),
                targets=batch.targets_BT.contiguous(),
                old=column(tokens.old_logprobs_BT),
                sampler=sampler,
                reference=column(tokens.reference_logprobs_BT),
                advantages=advantages,
                weights=weights,
            ),
            outputs=RowOutputs(
                logprobs=zeros(*shape),
                entropies=zeros(*shape),
                slopes=zeros(*shape),
                normalisers=torch.empty((count, 2), dtype=float_type, device=hidden.device),
                partials=torch.empty((len(COLUMNS), count), dtype=float_type, device=hidden.device),
            ),
            options=options,
            gradient_NH=hidden_NH.new_zeros((len(hidden_NH) + 1, hidden_NH.shape[1]))
            if wanted and hidden.requires_grad
            else None,
            gradient_VH=zeros(*weight.shape) if wanted and weight.requires_grad else None,
        )

    @property
    def wanted(self) -> bool:
        """Whether anything needs a gradient."""
        return self.gradient_NH is not None or self.gradient_VH is not None

    @property
    def narrow(self) -> bool:
        """Whether gradients are of half the width of the logits."""
        return self.weight_VH.element_size() == 2

    def run(self, plan: RowPlan) -> Evaluated | None:
        """All tiles. The evaluated loss, where the plan has the objective."""
        rows_R = self.inputs.places
        vocabulary, width = len(self.weight_VH), self.outputs.logprobs.shape[1]
        memory = self.outputs.logprobs.new_empty((min(self.options.tile_rows, len(rows_R)), vocabulary))
        for start, tile_CV in self._tiles(memory):
            gradient_CV = tile_CV.view(self.weight_VH.dtype)[:, :vocabulary] if self.narrow else tile_CV
            sizes = (start, len(rows_R), width, vocabulary, tile_CV.stride(0), gradient_CV.stride(0))
            row_kernel[(len(tile_CV),)](
                (tile_CV, gradient_CV),
                self.inputs,
                self.outputs,
                sizes,
                self.options.temperature,
                plan,
                _BLOCK,
                num_warps=8,
            )
            if plan.gradient:
                self._add_gradients(start, gradient_CV)
        return evaluated(self.outputs.partials, self.outputs.slopes, plan.token) if plan.objective else None

    def _tiles(self, memory: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First row and logits of each tile, all in the same memory."""
        rows_R = self.inputs.places
        for start in range(0, len(rows_R), max(1, len(memory))):
            hidden_CH = self._hidden(start, len(memory))
            tile_CV = memory[: len(hidden_CH)]
            _product(hidden_CH, self.weight_VH.t(), tile_CV)
            yield start, tile_CV

    def _hidden(self, start: int, count: int) -> Tensor:
        return self.hidden_NH.index_select(0, self.inputs.places[start : start + count].clamp(min=0))

    def _add_gradients(self, start: int, gradient_CV: Tensor) -> None:
        places_C = self.inputs.places[start : start + len(gradient_CV)]
        if self.gradient_NH is not None:
            places_C = torch.where(places_C < 0, len(self.hidden_NH), places_C)
            self.gradient_NH.index_copy_(0, places_C, gradient_CV @ self.weight_VH)
        if self.gradient_VH is not None:
            _accumulate(self.gradient_VH, gradient_CV.t(), self._hidden(start, len(gradient_CV)))

    def gradients(self) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """(hidden, its gradient), (weight, its gradient), in their shapes and dtypes."""
        hidden, weight = self.gradient_NH, self.gradient_VH
        return (
            (self.hidden, None if hidden is None else hidden[:-1].view(self.hidden.shape)),
            (self.weight, None if weight is None else weight.to(self.weight.dtype)),
        )


def _accumulator(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out = left @ right, accumulated and stored in ``out``'s dtype."""
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    elif left.is_cuda:
        torch.ops.aten.mm.dtype_out(left, right, out.dtype, out=out)
    else:
        torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in ``total``'s dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, left, right, total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))

"""K3 on the GPU: language-model head and policy loss together; the logits never exist as a whole.

N = B·T places, R = loss rows, H = hidden size, V = vocabulary, C = rows of a tile. A tile of logits is one cuBLAS
product with float32 output; one row kernel turns it into log π, entropy and loss, and overwrites it by the gradient.
Where the gradient by log π follows from a row alone (``Plan.row_local``), that happens in the forward pass: three
products per row. Else log π of all rows comes first, K2 (the policy loss, ``loss.py``) gives the gradients by it, and
the tiles are computed again: four.

The gradient of a head in half precision is rounded to it once, as an operand; all products accumulate in float32, the
weight's over all tiles (a float32 [V, H] lives through the call), the hidden states' is one product over V.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlreason.objective.batch import Batch
from rlreason.objective.centering import centred, gains, with_centering
from rlreason.objective.kernels.device import COLUMNS
from rlreason.objective.kernels.loss import evaluate, evaluated
from rlreason.objective.kernels.plan import Plan
from rlreason.objective.kernels.rows import RowInputs, RowOutputs, RowPlan, row_kernel
from rlreason.objective.linear import DEFAULT_HEAD, HeadLoss, HeadOptions
from rlreason.objective.loss import LossAndGrad, LossInputs, with_gradient
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.token_rows import TokenRows

#: Columns that a program of the row kernel works on at a time.
_BLOCK = 4096
#: Rows of a tile: 1.2 GB of float32 at V = 151,936.
_TILE_ROWS = 2048
#: Of a thread: two programs of 8 warps share a multiprocessor. Left to itself ptxas aims at three in one build of the
#: row kernel, and moves to memory what does not fit.
_REGISTERS = 128
#: For passes without an objective.
_PLAIN = Plan(ObjectiveSpec(), False, False)


def linear_policy_loss(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    batch: Batch,
    spec: ObjectiveSpec,
    old_logprobs_BT: Tensor | None = None,
    reference_logprobs_BT: Tensor | None = None,
    options: HeadOptions = DEFAULT_HEAD,
) -> HeadLoss:
    """As ``objective.linear.linear_policy_loss``, on the device of ``hidden_BTH``.

    A head in half precision multiplies as it is, into float32. With ``options.rows_R`` nothing waits for the device.
    """
    inputs = LossInputs.from_batch(batch, spec, old_logprobs_BT, reference_logprobs_BT)
    plan = Plan(
        replace(spec, entropy_coef=0.0, entropy_target=0.0),
        inputs.old_logprobs_BT is not None,
        reference_logprobs_BT is not None,
    )
    if options.gradient == "forward" and not plan.row_local:
        raise ValueError('gradient = "forward": a token\'s gradient depends on its sequence here. Use "auto"')
    head = _Head.from_hidden(hidden_BTH, weight_VH, batch, inputs, options)
    head.entropy_coef = spec.entropy_coef
    if spec.centering != "off":
        return _centred_loss(head, inputs, plan)
    if plan.row_local and options.gradient != "recompute":
        head.run(head.plan(plan, measure=True, objective=True, gradient=head.wanted))
        return head.output(evaluated(head.outputs.partials, head.outputs.grad_logprobs, plan))
    head.run(head.plan(plan, measure=True, objective=False, gradient=False))
    done = evaluate(head.outputs.logprobs, inputs, spec)
    if head.wanted:
        head.outputs = head.outputs._replace(grad_logprobs=done.grad_logprobs_BT)
        head.run(head.plan(plan, measure=False, objective=False, gradient=True))
    return head.output(done)


def _centred_loss(head: _Head, inputs: LossInputs, plan: Plan) -> HeadLoss:
    """The loss with score centering: log π and C of all rows first, then the tiles again, four products."""
    spec = plan.spec
    if head.sets is None:
        raise ValueError(f'centering = "{spec.centering}" needs to know what the tokens were drawn from')
    head.centring = centring = _Centring(spec=spec, advantages_R=head.at_rows(inputs.advantages_BT))
    head.run(head.plan(plan, measure=True, objective=False, gradient=False))
    nothing = centring.advantages_R[:0]
    done = evaluate(head.outputs.logprobs, inputs, spec)
    centring.gains_R = head.at_rows(gains(head.outputs.logprobs, inputs, spec))
    done = with_centering(done, centring.gains_R, torch.cat([nothing, *centring.values]))
    if head.wanted:
        at_all_R = centring.gains_R * torch.cat([nothing, *centring.totals])
        grad_BT = done.grad_logprobs_BT.to(at_all_R.dtype).reshape(-1)
        grad_BT = grad_BT.index_add(0, head.inputs.places, at_all_R).view(head.inputs.targets.shape)
        head.outputs = head.outputs._replace(grad_logprobs=grad_BT)
        head.run(head.plan(plan, measure=False, objective=False, gradient=True))
    return head.output(done)


def linear_supervised_loss(
    hidden_BTH: Tensor, weight_VH: Tensor, batch: Batch, denominator: float, options: HeadOptions = DEFAULT_HEAD
) -> HeadLoss:
    """As ``objective.linear.linear_supervised_loss``."""
    inputs = LossInputs.from_batch(batch, _PLAIN.spec, None, None)
    head = _Head.from_hidden(hidden_BTH, weight_VH, batch, inputs, options)
    head.outputs.grad_logprobs.fill_(-1.0 / denominator)
    head.run(head.plan(_PLAIN, measure=True, objective=False, gradient=head.wanted))
    negative = -head.outputs.logprobs.sum(dtype=torch.float64)
    loss = negative / denominator
    return head.output(
        LossAndGrad(loss=loss, grad_logprobs_BT=head.outputs.grad_logprobs, sums={"loss": negative}, maxima={})
    )


@torch.no_grad()
def linear_logprobs(
    hidden_BTH: Tensor, weight_VH: Tensor, batch: Batch, options: HeadOptions = DEFAULT_HEAD
) -> tuple[Tensor, Tensor]:
    """As ``objective.linear.linear_logprobs``: (log π of each loss token, entropy), [B, T] each."""
    inputs = LossInputs.from_batch(batch, _PLAIN.spec, None, None)
    head = _Head.from_hidden(hidden_BTH, weight_VH, batch, inputs, options)
    head.run(head.plan(_PLAIN, measure=True, objective=False, gradient=False))
    return head.outputs.logprobs.to(head.outputs.entropies.dtype), head.outputs.entropies


@dataclass(slots=True, kw_only=True)
class _Centring:
    """What score centering knows of the rows; of each tile in turn, C and the sum of its coefficients."""

    spec: ObjectiveSpec
    advantages_R: Tensor
    gains_R: Tensor | None = None
    values: list[Tensor] = field(default_factory=list)
    totals: list[Tensor] = field(default_factory=list)


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
    #: What the rows were drawn from, where that is known.
    sets: TokenRows | None
    gradient_NH: Tensor | None
    gradient_VH: Tensor | None
    centring: _Centring | None = None
    #: Of an entropy bonus. No part of what kernels are compiled for, as it may change with every step.
    entropy_coef: float = 0.0

    @staticmethod
    def from_hidden(hidden: Tensor, weight: Tensor, batch: Batch, inputs: LossInputs, options: HeadOptions) -> _Head:
        """Allocate what the call needs."""
        rows_R = options.rows_R
        if rows_R is None:
            rows_R = inputs.mask_BT.reshape(-1).nonzero()[:, 0]
        hidden_NH = hidden.detach().reshape(-1, hidden.shape[-1])
        weight_VH = weight.detach()
        float_type = _accumulator(weight)
        shape, count = inputs.mask_BT.shape, len(rows_R)
        if batch.sampled_from is not None and len(batch.sampled_from.ends) != count:
            known = len(batch.sampled_from.ends)
            raise ValueError(f"the batch says of {known} rows what they were drawn from, and there are {count}")

        def zeros(*size: int, dtype: torch.dtype = float_type) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=hidden.device)

        def column(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.detach().to(float_type).contiguous()

        sampler, advantages, weights = (
            values.detach().to(float_type).contiguous()
            for values in (inputs.sampler_logprobs_BT, inputs.advantages_BT, inputs.weights_BT)
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
                old=column(inputs.old_logprobs_BT),
                sampler=sampler,
                reference=column(inputs.reference_logprobs_BT),
                advantages=advantages,
                weights=weights,
            ),
            outputs=RowOutputs(
                logprobs=zeros(*shape, dtype=torch.float64),
                entropies=zeros(*shape),
                grad_logprobs=zeros(*shape),
                normalisers=torch.empty((count, 2), dtype=float_type, device=hidden.device),
                partials=torch.empty((len(COLUMNS), count), dtype=float_type, device=hidden.device),
            ),
            options=options,
            sets=batch.sampled_from,
            gradient_NH=torch.zeros_like(hidden_NH) if wanted and hidden.requires_grad else None,
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

    def plan(self, token: Plan, *, measure: bool, objective: bool, gradient: bool) -> RowPlan:
        """What one pass over the tiles does."""
        tempered = self.options.temperature != 1.0
        return RowPlan(token, measure, objective, gradient, self.narrow, tempered, self.entropy_coef > 0.0)

    def run(self, plan: RowPlan) -> None:
        """One pass over all tiles."""
        rows_R = self.inputs.places
        vocabulary = len(self.weight_VH)
        tile_rows = min(self.options.tile_rows or _TILE_ROWS, len(rows_R))
        memory = self.outputs.entropies.new_empty((tile_rows, vocabulary))
        for start, tile_CV in self._tiles(memory):
            gradient_CV = tile_CV.view(self.weight_VH.dtype)[:, :vocabulary] if self.narrow else tile_CV
            part = slice(start, start + len(tile_CV))
            sets = None if self.sets is None else self.sets.part(part)
            if sets is not None:
                sets.cut(tile_CV)
            logits_E = None
            if sets is not None and self.centring is not None:
                logits_E = tile_CV[sets.row_E, sets.ids_E]
            sizes = (start, len(rows_R), vocabulary, tile_CV.stride(0), gradient_CV.stride(0))
            row_kernel[(len(tile_CV),)](
                (tile_CV, gradient_CV),
                self.inputs,
                self.outputs,
                sizes,
                (self.options.temperature, self.entropy_coef),
                plan,
                _BLOCK,
                num_warps=8,
                maxnreg=_REGISTERS,
            )
            if sets is not None and logits_E is not None:
                self._centre(part, sets, logits_E, gradient_CV if plan.gradient else None)
            if plan.gradient:
                self._add_gradients(start, gradient_CV)

    def _centre(self, part: slice, sets: TokenRows, logits_E: Tensor, gradient_CV: Tensor | None) -> None:
        """C of a tile's rows; or what it adds to their gradient, which has −π · its sum already, and e_y with it."""
        centring = self.centring
        assert centring is not None
        largest_C, log_total_C = self.outputs.normalisers[part].unbind(dim=1)
        logprobs_E = (logits_E - largest_C[sets.row_E]) / self.options.temperature - log_total_C[sets.row_E]
        found = centred(sets, logprobs_E, centring.advantages_R[part], centring.spec)
        if gradient_CV is None:
            centring.values.append(found.value_R)
            centring.totals.append(found.total_R)
            return
        assert centring.gains_R is not None
        gains_C = centring.gains_R[part] / self.options.temperature
        targets_C1 = self.inputs.targets.reshape(-1)[self.inputs.places[part]].unsqueeze(1)
        at_target_C1 = (-gains_C * found.total_R).unsqueeze(1).to(gradient_CV.dtype)
        gradient_CV.scatter_add_(1, targets_C1, at_target_C1)
        added_E = (gains_C[sets.row_E] * found.coefficients_E).to(gradient_CV.dtype)
        gradient_CV.index_put_((sets.row_E, sets.ids_E), added_E, accumulate=True)

    def at_rows(self, values_BT: Tensor) -> Tensor:
        """Values of the loss rows, [R], in the logits' dtype."""
        return values_BT.reshape(-1)[self.inputs.places].to(self.outputs.entropies.dtype)

    def _tiles(self, memory: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First row and logits of each tile, all in the same memory."""
        rows_R = self.inputs.places
        for start in range(0, len(rows_R), max(1, len(memory))):
            hidden_CH = self._hidden(start, len(memory))
            tile_CV = memory[: len(hidden_CH)]
            _product(hidden_CH, self.weight_VH.t(), tile_CV)
            yield start, tile_CV

    def _hidden(self, start: int, count: int) -> Tensor:
        """Hidden states of a tile's rows."""
        return self.hidden_NH.index_select(0, self.inputs.places[start : start + count])

    def _add_gradients(self, start: int, gradient_CV: Tensor) -> None:
        places_C = self.inputs.places[start : start + len(gradient_CV)]
        if self.gradient_NH is not None:
            self.gradient_NH.index_copy_(0, places_C, gradient_CV @ self.weight_VH)
        if self.gradient_VH is not None:
            _accumulate(self.gradient_VH, gradient_CV.t(), self._hidden(start, len(gradient_CV)))

    def output(self, done: LossAndGrad) -> HeadLoss:
        """The loss as a function of hidden states and weight."""
        pairs = []
        if self.gradient_NH is not None:
            pairs.append((self.hidden, self.gradient_NH.view(self.hidden.shape)))
        if self.gradient_VH is not None:
            pairs.append((self.weight, self.gradient_VH.to(self.weight.dtype)))
        loss = done.loss.to(_accumulator(self.weight))
        if self.entropy_coef:
            bonus_BT = self.outputs.entropies * self.inputs.weights  # entropies are 0 where masked
            loss = (done.loss - self.entropy_coef * bonus_BT.sum(dtype=torch.float64)).to(loss.dtype)
        return HeadLoss(
            loss=with_gradient(loss, *pairs) if pairs else loss,
            sums=done.sums,
            maxima=done.maxima,
            logprobs_BT=self.outputs.logprobs.to(loss.dtype),
            entropy_BT=self.outputs.entropies,
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

"""K3 on the CPU: language-model head and loss together, over loss rows only; the logits never exist as a whole.

B = sequences, T = positions, R = loss rows, C = rows of a tile, H = hidden size, V = vocabulary. A tile of logits is
one matrix product into memory that is used again for the next; row by row, while it is in the cache, it becomes
exp(z − max z), its sum, log π of the target and the entropy. Where the gradient by log π follows from the row alone
(``ObjectiveSpec.is_row_local``) the gradient is taken at once: three products per row. Else log π of all rows comes
first, K2 (the policy loss, ``objective.loss``) gives the gradients by log π, and the tiles are computed again: four
products, or three where one tile holds all rows.

With e = exp(z − max z), s = Σ e and g = dL/d log π, the gradient by the logits is −g/s · e, but g · (1 − π) at the
target. The factor −g/s of a row is applied to its hidden state [H] and not to its logits [V], which saves a pass over
the tile, and the target's entry is −expm1(log π), which keeps its digits where π is near 1. Of a head in bfloat16 the
logits are float32 products; their gradient is rounded to bfloat16 once, as an operand, as in the GPU's kernel.

Where draws were truncated (``Batch.sampled_from``), logits of all other tokens are cut off first, so that π is over the
tokens that could be drawn. Score centering (``objective.centering``) adds its own row to the gradient's while the tile
is there: no product more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.centering import CentredRows, centred, gains, with_centering
from rlreason.objective.loss import LossAndGrad, LossInputs, evaluate, with_gradient
from rlreason.objective.products import Products
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.token_rows import TokenRows

#: Elements of a tile: 160 MB of float32. Smaller tiles make the weight's gradient pass through memory more often.
_TILE = 40_000_000
#: Elements of the part of a tile that is worked on at a time: it and its copy stay in a core's cache.
_BLOCK = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """How the head is computed. Example: ``HeadOptions(temperature=0.7)``."""

    #: Of the sampler: log π is of softmax(logits / temperature).
    temperature: float = 1.0
    #: Rows of a tile, 4·C·V bytes. None: a size that suits the device.
    tile_rows: int | None = None
    #: forward: gradient in the forward pass; recompute: tiles twice; auto: the first where the objective allows it.
    gradient: Literal["auto", "forward", "recompute"] = "auto"
    #: Places b·T + t of the loss rows, int64 [R]. None: found from the mask (a GPU waits for that).
    rows_R: Tensor | None = None


DEFAULT_HEAD = HeadOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss(LossOutput):
    """A loss, and what the head said of each token on the way. [B, T], float32 (float64 of float64), without gradient;
    0 where masked. ``entropy_BT`` in nats."""

    logprobs_BT: Tensor
    entropy_BT: Tensor


def linear_policy_loss(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    batch: Batch,
    spec: ObjectiveSpec,
    old_logprobs_BT: Tensor | None = None,
    reference_logprobs_BT: Tensor | None = None,
    options: HeadOptions = DEFAULT_HEAD,
) -> HeadLoss:
    """``policy_loss`` of log softmax(hidden · weightᵀ / temperature), to call ``backward()`` on.

    ``hidden_BTH``, ``weight_VH``: one dtype of bfloat16, float16, float32, float64; products, sums and log π are
    float32 at least. ``backward`` gives the gradients of both; one that needs none costs no product. Raises ValueError
    where ``options.gradient`` is "forward" and a token's gradient depends on its sequence.
    """
    inputs = LossInputs.from_batch(batch, spec, old_logprobs_BT, reference_logprobs_BT)
    local = spec.is_row_local(has_old=inputs.old_logprobs_BT is not None)
    if options.gradient == "forward" and not local:
        raise ValueError('gradient = "forward": a token\'s gradient depends on its sequence here. Use "auto"')
    head = _Head.from_hidden(hidden_BTH, weight_VH, batch, options)
    if spec.entropy_coef:
        head.bonus_R = spec.entropy_coef * inputs.weights_BT.reshape(-1)[head.places_R].to(head.logprobs_R.dtype)
    if spec.centering != "off":
        head.centring = _Centring.of(head, inputs, spec)
    if local and options.gradient != "recompute" and head.rows:
        done = _forward_gradient(head, inputs, spec)
    else:
        for part in head.tiles():
            head.measure(part)
        logprobs_BT = head.in_place(head.logprobs_R)
        done = evaluate(logprobs_BT, inputs, spec)
        if head.centring is not None:  # the sequences' weights are known now
            head.centring.gains_R = gains(logprobs_BT, inputs, spec).reshape(-1)[head.places_R]
        _backward_gradient(head, done.grad_logprobs_BT.reshape(-1)[head.places_R])
    if head.centring is not None:
        done = with_centering(done, head.centring.gains_R, head.centring.value_R)
    if head.bonus_R is not None:
        done = replace(done, loss=done.loss - (head.bonus_R * head.entropies_R).sum(dtype=torch.float64))
    return head.output(done)


def linear_supervised_loss(
    hidden_BTH: Tensor, weight_VH: Tensor, batch: Batch, denominator: float, options: HeadOptions = DEFAULT_HEAD
) -> HeadLoss:
    """``supervised_loss`` of the same head: −Σ log π / N over the loss rows, three products per row."""
    head = _Head.from_hidden(hidden_BTH, weight_VH, batch, options)
    for part in head.tiles():
        head.measure(part)
        head.add_gradient(part, head.logprobs_R.new_full((part.stop - part.start,), -1.0 / denominator))
    negative = -head.logprobs_R.sum(dtype=torch.float64)
    done = LossAndGrad(
        loss=negative / denominator, grad_logprobs_BT=head.logprobs_R, sums={"loss": negative}, maxima={}
    )
    return head.output(done)


@torch.no_grad()
def linear_logprobs(
    hidden_BTH: Tensor, weight_VH: Tensor, batch: Batch, options: HeadOptions = DEFAULT_HEAD
) -> tuple[Tensor, Tensor]:
    """(log π of each loss token, entropy), [B, T] each, without gradient; 0 where masked."""
    head = _Head.from_hidden(hidden_BTH, weight_VH, batch, options)
    for part in head.tiles():
        head.measure(part)
    return head.in_place(head.logprobs_R), head.in_place(head.entropies_R)


def _forward_gradient(head: _Head, inputs: LossInputs, spec: ObjectiveSpec) -> LossAndGrad:
    """Loss and gradient of each tile while it is there: each row is a sequence of one token."""
    columns = inputs.columns(head.places_R)
    total: LossAndGrad | None = None
    for part in head.tiles():
        head.measure(part)
        done = evaluate(head.logprobs_R[part].unsqueeze(1), columns.rows(part), spec)
        head.add_gradient(part, done.grad_logprobs_BT.squeeze(1))
        total = done if total is None else total.plus(done)
    assert total is not None
    return total


def _backward_gradient(head: _Head, grad_logprobs_R: Tensor) -> None:
    """Gradients where those by log π came after all tiles: they are computed again, unless one holds all rows."""
    if not head.wanted:
        return
    for part in head.tiles():
        if head.rows > head.tile_rows:
            head.measure(part)
        head.add_gradient(part, grad_logprobs_R[part])


@dataclass(slots=True, kw_only=True)
class _Centring:
    """What score centering knows of the rows; ``newest``: of the newest tile."""

    spec: ObjectiveSpec
    advantages_R: Tensor
    #: w A, and of objectives with weights of sequences, those in it once they are known.
    gains_R: Tensor
    value_R: Tensor
    newest: CentredRows | None = None

    @staticmethod
    def of(head: _Head, inputs: LossInputs, spec: ObjectiveSpec) -> _Centring:
        if head.sets is None:
            raise ValueError(f'centering = "{spec.centering}" needs to know what the tokens were drawn from')
        advantages_R = inputs.advantages_BT.reshape(-1)[head.places_R].to(head.logprobs_R.dtype)
        weights_R = inputs.weights_BT.reshape(-1)[head.places_R].to(head.logprobs_R.dtype)
        return _Centring(
            spec=spec,
            advantages_R=advantages_R,
            gains_R=weights_R * advantages_R,
            value_R=torch.zeros_like(advantages_R),
        )


@dataclass(slots=True, kw_only=True)
class _Head:
    """The buffers of one call."""

    hidden_BTH: Tensor
    weight_VH: Tensor
    #: Of the loss rows, in at least float32, divided by the temperature.
    scaled_RH: Tensor
    wide_VH: Tensor
    places_R: Tensor
    targets_R1: Tensor
    #: What the rows were drawn from, where that is known.
    sets: TokenRows | None
    temperature: float
    tile_rows: int
    #: exp(z − max z) of the newest tile; its target entries are changed by ``add_gradient``.
    memory_CV: Tensor
    scratch: Tensor
    sums_R: Tensor
    logprobs_R: Tensor
    entropies_R: Tensor
    gradient_RH: Tensor | None
    gradient_VH: Tensor | None
    centring: _Centring | None = None
    #: entropy_coef · w of each row, where the objective has an entropy bonus.
    bonus_R: Tensor | None = None

    @staticmethod
    def from_hidden(hidden_BTH: Tensor, weight_VH: Tensor, batch: Batch, options: HeadOptions) -> _Head:
        """Allocate what the call needs."""
        places_R = options.rows_R
        places_R = batch.loss_mask_BT.reshape(-1).nonzero()[:, 0] if places_R is None else places_R
        wide = torch.float64 if weight_VH.dtype == torch.float64 else torch.float32
        scaled_RH = hidden_BTH.detach().reshape(-1, hidden_BTH.shape[-1]).index_select(0, places_R).to(wide)
        if options.temperature != 1.0:
            scaled_RH /= options.temperature
        rows, vocabulary = len(places_R), len(weight_VH)
        tile_rows = min(options.tile_rows or max(1, _TILE // vocabulary), max(1, rows))
        grad = torch.is_grad_enabled()
        sets = batch.sampled_from
        if sets is not None and len(sets.ends) != rows:
            raise ValueError(f"the batch says of {len(sets.ends)} rows what they were drawn from, and {rows} have loss")

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=wide, device=weight_VH.device)

        return _Head(
            hidden_BTH=hidden_BTH,
            weight_VH=weight_VH,
            scaled_RH=scaled_RH,
            wide_VH=weight_VH.detach().to(wide),
            places_R=places_R,
            targets_R1=batch.targets_BT.reshape(-1)[places_R].unsqueeze(1),
            sets=sets,
            temperature=options.temperature,
            tile_rows=tile_rows,
            memory_CV=empty(tile_rows, vocabulary),
            scratch=empty(max(1, min(tile_rows, _BLOCK // vocabulary)), vocabulary),
            sums_R=empty(rows),
            logprobs_R=empty(rows),
            entropies_R=empty(rows),
            gradient_RH=empty(*scaled_RH.shape) if grad and hidden_BTH.requires_grad else None,
            gradient_VH=empty(*weight_VH.shape) if grad and weight_VH.requires_grad else None,
        )

    @property
    def rows(self) -> int:
        return len(self.places_R)

    @property
    def wanted(self) -> bool:
        """Whether anything needs a gradient."""
        return self.gradient_RH is not None or self.gradient_VH is not None

    def tiles(self) -> Iterator[slice]:
        """The rows of each tile."""
        for start in range(0, self.rows, self.tile_rows):
            yield slice(start, min(self.rows, start + self.tile_rows))

    def measure(self, part: slice) -> None:
        """Logits of a tile -> exp(z − max z) in the tile; sums, log π and entropy of its rows."""
        tile_CV = self.memory_CV[: part.stop - part.start]
        torch.mm(self.scaled_RH[part], self.wide_VH.t(), out=tile_CV)
        sets = None if self.sets is None else self.sets.part(part)
        logits_E = None
        if sets is not None:
            sets.cut(tile_CV)
            logits_E = tile_CV[sets.row_E, sets.ids_E] if self.centring is not None else None
        largest_C1 = tile_CV.new_empty((len(tile_CV), 1))
        for start in range(0, len(tile_CV), len(self.scratch)):
            block = tile_CV[start : start + len(self.scratch)]
            at = slice(part.start + start, part.start + start + len(block))
            largest = torch.amax(block, dim=1, keepdim=True, out=largest_C1[start : start + len(block)])
            z = torch.sub(block, largest, out=self.scratch[: len(block)])
            chosen = z.gather(1, self.targets_R1[at]).squeeze(1)
            total = torch.sum(torch.exp(z, out=block), dim=1, out=self.sums_R[at])
            log_total = total.log()
            torch.sub(chosen, log_total, out=self.logprobs_R[at])
            torch.sub(log_total, z.mul_(block).sum(dim=1).div_(total), out=self.entropies_R[at])
        if self.centring is not None and sets is not None and logits_E is not None:
            normaliser_C = largest_C1.squeeze(1) + self.sums_R[part].log()
            newest = centred(
                sets, logits_E - normaliser_C[sets.row_E], self.centring.advantages_R[part], self.centring.spec
            )
            self.centring.newest = newest
            self.centring.value_R[part] = newest.value_R

    def add_gradient(self, part: slice, grad_logprobs_C: Tensor) -> None:
        """Gradients of the newest tile, whose rows have dL/d log π = ``grad_logprobs_C``."""
        if not self.wanted:
            return
        tile_CV = self.memory_CV[: part.stop - part.start]
        sums_C1 = self.sums_R[part].unsqueeze(1)
        factor_C1 = -grad_logprobs_C.unsqueeze(1) / sums_C1
        if self.centring is not None or self.bonus_R is not None:
            self._make_rows(tile_CV, part, grad_logprobs_C)
            factor_C1 = torch.ones_like(factor_C1)
        else:
            self._set_target(tile_CV, part)
        products = Products.of(tile_CV, self.weight_VH.detach(), self.wide_VH)
        if self.gradient_RH is not None:
            products.by_hidden(self.gradient_RH[part])
            self.gradient_RH[part] *= factor_C1 / self.temperature
        if self.gradient_VH is not None:
            products.by_weight(self.scaled_RH[part] * factor_C1, self.gradient_VH, add=part.start > 0)

    def _set_target(self, rows_CV: Tensor, part: slice) -> None:
        """The target's entry of rows of e = exp(z − max z): what −g/s turns into g (1 − π)."""
        at_target_C1 = self.sums_R[part].unsqueeze(1) * torch.expm1(self.logprobs_R[part].unsqueeze(1))
        rows_CV.scatter_(1, self.targets_R1[part], at_target_C1)

    def _make_rows(self, tile_CV: Tensor, part: slice, grad_logprobs_C: Tensor) -> None:
        """The tile -> dL/dlogits: g (e_y − π) of the objective; entropy_coef w π (log π + H) of an entropy bonus; and
        w A (coefficients − π · their sum) of centering."""
        at_all_C = torch.zeros_like(grad_logprobs_C)
        if self.centring is not None and self.centring.newest is not None:
            at_all_C = self.centring.gains_R[part] * self.centring.newest.total_R
        factor_C1 = (-(grad_logprobs_C + at_all_C) / self.sums_R[part]).unsqueeze(1)
        for start in range(0, len(tile_CV), len(self.scratch)):
            block = tile_CV[start : start + len(self.scratch)]
            rows = slice(part.start + start, part.start + start + len(block))
            bonus = self._entropy_rows(block, rows)
            self._set_target(block, rows)
            block *= factor_C1[start : start + len(block)]
            if bonus is not None:
                block += bonus
        if self.centring is not None:
            self._add_centring(tile_CV, part, at_all_C)

    def _entropy_rows(self, block: Tensor, rows: slice) -> Tensor | None:
        """entropy_coef w π (log π + H) of rows of e, in the scratch memory."""
        if self.bonus_R is None:
            return None
        sums_C1, found = self.sums_R[rows].unsqueeze(1), self.scratch[: len(block)]
        torch.log(torch.clamp(block, min=torch.finfo(block.dtype).tiny, out=found), out=found)  # e = 0 adds 0
        found += self.entropies_R[rows].unsqueeze(1) - sums_C1.log()
        return found.mul_(block).mul_(self.bonus_R[rows].unsqueeze(1) / sums_C1)

    def _add_centring(self, tile_CV: Tensor, part: slice, at_all_C: Tensor) -> None:
        assert self.sets is not None
        assert self.centring is not None
        assert self.centring.newest is not None
        sets, newest, gains_C = self.sets.part(part), self.centring.newest, self.centring.gains_R[part]
        tile_CV.scatter_add_(1, self.targets_R1[part], -at_all_C.unsqueeze(1))
        tile_CV.index_put_((sets.row_E, sets.ids_E), gains_C[sets.row_E] * newest.coefficients_E, accumulate=True)

    def in_place(self, values_R: Tensor) -> Tensor:
        """Values of the loss rows where they belong, [B, T]; 0 elsewhere."""
        shape = self.hidden_BTH.shape[:2]
        return values_R.new_zeros(shape.numel()).index_copy_(0, self.places_R, values_R).view(shape)

    def output(self, done: LossAndGrad) -> HeadLoss:
        """The loss as a function of hidden states and weight."""
        loss = done.loss.to(self.logprobs_R.dtype)
        pairs = []
        if self.gradient_RH is not None:
            flat = self.hidden_BTH.new_zeros((self.hidden_BTH.shape[:2].numel(), self.hidden_BTH.shape[2]))
            flat.index_copy_(0, self.places_R, self.gradient_RH.to(flat.dtype))
            pairs.append((self.hidden_BTH, flat.view_as(self.hidden_BTH)))
        if self.gradient_VH is not None:
            gradient_VH = self.gradient_VH if self.rows else self.gradient_VH.zero_()
            pairs.append((self.weight_VH, gradient_VH.to(self.weight_VH.dtype)))
        return HeadLoss(
            loss=with_gradient(loss, *pairs) if pairs else loss,
            sums=done.sums,
            maxima=done.maxima,
            logprobs_BT=self.in_place(self.logprobs_R),
            entropy_BT=self.in_place(self.entropies_R),
        )

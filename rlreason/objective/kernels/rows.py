"""K3's row kernel: one program per row of a tile of logits.

One sweep over the row gives its log-sum-exp, the target's log π and the entropy; where the gradient is taken in the
forward pass, the objective's gradient by log π follows at once (``device.token_objective``), and a second sweep
overwrites the row by dL/dlogits. A row's one log π is float64: rounded to float32, some 10⁻⁶ at −15, it would be the
largest error of the loss, as log π − log π_old is far smaller.

A bfloat16 gradient is written into the first half of its own float32 row: a matrix of row stride 2·V, which a matrix
product reads as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from rlreason.objective.kernels.device import expm1, token_objective
from rlreason.objective.kernels.plan import Plan


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What the row kernel is compiled for."""

    token: Plan
    #: Find log-sum-exp, log π and entropy; else they are read from an earlier pass.
    measure: bool
    #: Evaluate the objective; else its gradient by log π is read, if ``gradient``.
    objective: bool
    #: Overwrite the tile by the gradient.
    gradient: bool
    #: The gradient is narrower than the tile, and the tile's memory holds both.
    narrow: bool
    #: Whether a temperature divides the logits.
    tempered: bool
    #: Whether the gradient has that of an entropy bonus.
    entropy: bool


class RowInputs(NamedTuple):
    #: Place b·T + t of each row, int64 [R].
    places: Tensor
    #: [B, T] each.
    targets: Tensor
    old: Tensor | None
    sampler: Tensor
    reference: Tensor | None
    advantages: Tensor
    weights: Tensor


class RowOutputs(NamedTuple):
    #: [B, T] each; log π in float64.
    logprobs: Tensor
    entropies: Tensor
    grad_logprobs: Tensor
    #: Largest logit, and log Σ exp((logit − largest) / temperature), of each row: [R, 2].
    normalisers: Tensor
    #: [8, R], the columns of ``device.COLUMNS``.
    partials: Tensor


@triton.jit
def _sweep(row_ptr, vocabulary, scale, PLAN: tl.constexpr, BLOCK: tl.constexpr):
    """(largest z, log Σ exp(scale (z − largest)), entropy) of a row, the last two in float64. The sums are kept lane by
    lane and scaled as a larger logit appears, so each block costs one reduction; one tree over the lanes ends it."""
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    lanes = tl.arange(0, BLOCK)
    largest = tl.full((), -1.0e38, dtype)
    sums = tl.full([BLOCK], 0.0, dtype)
    products = sums
    for first in range(0, vocabulary, BLOCK):
        z = tl.load(row_ptr + first + lanes, mask=first + lanes < vocabulary, other=-1.0e38)
        new = tl.maximum(largest, tl.max(z))
        step = largest - new
        below = z - new
        if PLAN.tempered:
            step = tl.maximum(step * scale, -1.0e38)  # finite: it meets sums of 0
            below = below * scale
        shrink = tl.exp(step)
        each = tl.exp(below)
        products = shrink * (products + step * sums) + tl.where(each > 0.0, each * below, 0.0)
        sums = shrink * sums + each
        largest = new
    total = tl.sum(sums.to(tl.float64))
    log_total = tl.log(total)
    return largest, log_total, log_total - tl.sum(products.to(tl.float64)) / total


@triton.jit
def _overwrite(pointers, vocabulary, target, numbers, scale, PLAN: tl.constexpr, BLOCK: tl.constexpr):
    """dL/dlogits = grad_logprob/temperature · ([v = target] − π(v)); at the target −expm1(log π), which keeps its
    digits where π is near 1; beside it bonus · π (log π + H). ``numbers``: largest, log_total, logprob, grad_logprob,
    entropy, bonus."""
    row_ptr, gradient_ptr = pointers
    dtype: tl.constexpr = row_ptr.dtype.element_ty
    largest, log_total, logprob, grad_logprob, entropy, bonus = numbers
    lanes = tl.arange(0, BLOCK)
    at_target = -expm1(logprob.to(dtype))
    log_total = log_total.to(dtype)
    grad_logprob = grad_logprob.to(dtype) * scale
    tl.debug_barrier()  # the target's logit has been read by all threads
    for first in range(0, vocabulary, BLOCK):
        columns = first + lanes
        below = tl.load(row_ptr + columns, mask=columns < vocabulary, other=float("-inf")) - largest
        if PLAN.tempered:
            below = below * scale
        each = tl.exp(below - log_total)
        gradient = tl.where(columns == target, at_target, -each) * grad_logprob
        if PLAN.entropy:
            log_each = tl.maximum(below - log_total, -1.0e30)  # finite: it meets an each of 0
            gradient += each * (log_each + entropy.to(dtype)) * (bonus.to(dtype) * scale)
        if PLAN.narrow:
            tl.debug_barrier()  # a narrow store lands on logits of this block or an earlier one: all must be read
        tl.store(gradient_ptr + columns, gradient.to(gradient_ptr.dtype.element_ty), mask=columns < vocabulary)


@triton.jit
def _objective(inputs, outputs, row, spot, rows, logprob, PLAN: tl.constexpr):
    """The row's gradient by log π; its eight columns are stored. ``rows``: of all tiles."""
    old = logprob
    if PLAN.token.has_old:
        old = tl.load(inputs.old + spot)
    sampler = tl.load(inputs.sampler + spot)
    reference = logprob
    if PLAN.token.has_reference:
        reference = tl.load(inputs.reference + spot)
    advantage = tl.load(inputs.advantages + spot)
    weight = tl.load(inputs.weights + spot)
    kept = spot >= 0  # each row has loss
    token = (logprob, old, sampler, reference, advantage, weight)
    levels = (logprob - old, old - sampler, weight * 0.0 + 1.0)
    grad_logprob, measured = token_objective(token, levels, kept, PLAN.token)
    partials = outputs.partials + row
    tl.store(partials, measured[0])
    tl.store(partials + rows, measured[1])
    tl.store(partials + 2 * rows, measured[2])
    tl.store(partials + 3 * rows, measured[3])
    tl.store(partials + 4 * rows, measured[4])
    tl.store(partials + 5 * rows, measured[5])
    tl.store(partials + 6 * rows, measured[6])
    tl.store(partials + 7 * rows, measured[7])
    return grad_logprob


@triton.jit
def row_kernel(tile, inputs, outputs, sizes, scales, PLAN: tl.constexpr, BLOCK: tl.constexpr):
    """``tile``: logits [C, V] and where the gradient goes, the same memory. ``sizes``: first row, rows of all tiles,
    V, and the row strides of the two. ``scales``: temperature, coefficient of the entropy bonus."""
    tile_ptr, gradient_ptr = tile
    temperature, entropy_coef = scales
    start, rows, vocabulary, stride, gradient_stride = sizes
    row = start + tl.program_id(0)
    line = tl.program_id(0).to(tl.int64)
    row_ptr = tile_ptr + line * stride
    spot = tl.load(inputs.places + row)
    target = tl.load(inputs.targets + spot)
    scale = 1.0 / (temperature + tl.full((), 0.0, tile_ptr.dtype.element_ty))
    if PLAN.measure:
        largest, log_total, entropy = _sweep(row_ptr, vocabulary, scale, PLAN, BLOCK)
        below = tl.load(row_ptr + target).to(tl.float64) - largest
        if PLAN.tempered:
            below = below * scale
        logprob = below - log_total
        tl.store(outputs.logprobs + spot, logprob)
        tl.store(outputs.entropies + spot, entropy)
        tl.store(outputs.normalisers + 2 * row, largest)
        tl.store(outputs.normalisers + 2 * row + 1, log_total)
    else:
        logprob = tl.load(outputs.logprobs + spot)
        largest = tl.load(outputs.normalisers + 2 * row)
        log_total = tl.load(outputs.normalisers + 2 * row + 1)
    if PLAN.objective:
        grad_logprob = _objective(inputs, outputs, row, spot, rows, logprob, PLAN)
        tl.store(outputs.grad_logprobs + spot, grad_logprob)
    elif PLAN.gradient:
        grad_logprob = tl.load(outputs.grad_logprobs + spot)
    if PLAN.gradient:
        bonus = grad_logprob * 0.0
        if not PLAN.measure:
            entropy = tl.load(outputs.entropies + spot)
        if PLAN.entropy:
            bonus = tl.load(inputs.weights + spot) * entropy_coef
        numbers = (largest, log_total, logprob, grad_logprob, entropy, bonus)
        pointers = (row_ptr, gradient_ptr + line * gradient_stride)
        _overwrite(pointers, vocabulary, target, numbers, scale, PLAN, BLOCK)

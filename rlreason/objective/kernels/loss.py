"""K2 on the GPU: policy loss, metrics and gradient in one pass over the tokens.

B = sequences, T = positions. Two launches: the pass, and a small one that adds the programs' partial sums in index
order. Bytes per token: what is read (4 each of log π, mask, log π_sampler, A, w, and log π_old, log π_ref where they
exist) and 4 written; a masked token costs its mask. No host synchronisation, no atomics.

Where a sequence has a number of its own (its ratio, its correction), one program takes a sequence and reads it twice,
the second time from the L2 cache; else (``Plan.row_local``) programs take blocks of 1,024 tokens. Same formulas as
``objective.loss``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.kernels.device import COLUMNS, SUMS, binary_kl, geometric_bound, token_objective
from rlreason.objective.kernels.plan import Plan
from rlreason.objective.loss import LossAndGrad, LossInputs, with_gradient
from rlreason.objective.spec import ObjectiveSpec

_BLOCK = 1024
_REDUCE_BLOCK = 1024


class Pointers(NamedTuple):
    """[B, T] each, row-major."""

    logprobs: Tensor
    old: Tensor | None
    sampler: Tensor
    reference: Tensor | None
    mask: Tensor
    advantages: Tensor
    weights: Tensor


def evaluate(logprobs_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec) -> LossAndGrad:
    """As ``objective.loss.evaluate``, on the device of ``logprobs_BT`` (float32 or float64).

    Metrics are float64 scalars on the device: reading them is the caller's one synchronisation of the step.
    """
    plan = Plan(spec, inputs.old_logprobs_BT is not None, inputs.reference_logprobs_BT is not None)
    rows, width = logprobs_BT.shape
    programs = rows * triton.cdiv(width, _BLOCK) if plan.row_local else rows
    grad_logprobs_BT = torch.empty_like(logprobs_BT, memory_format=torch.contiguous_format)
    partials_KP = torch.empty((len(COLUMNS), programs), dtype=logprobs_BT.dtype, device=logprobs_BT.device)
    if programs and width:
        _token_kernel[(programs,)](
            pointers(logprobs_BT, inputs), (grad_logprobs_BT, partials_KP), width, plan, _BLOCK, num_warps=8
        )
    return evaluated(partials_KP, grad_logprobs_BT, plan)


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    batch: Batch,
    spec: ObjectiveSpec,
    reference_logprobs_BT: Tensor | None = None,
) -> LossOutput:
    """As ``objective.loss.policy_loss``: shapes [B, T], to call ``backward()`` on."""
    inputs = LossInputs.from_batch(batch, spec, old_logprobs_BT, reference_logprobs_BT)
    done = evaluate(logprobs_BT.detach(), inputs, spec)
    loss = with_gradient(done.loss.to(logprobs_BT.dtype), (logprobs_BT, done.grad_logprobs_BT))
    return LossOutput(loss=loss, sums=done.sums, maxima=done.maxima)


def pointers(logprobs_BT: Tensor, inputs: LossInputs) -> Pointers:
    """Row-major views (a copy only where an input isn't), in one dtype: the kernels compute in that of ``logprobs``."""
    dtype = logprobs_BT.dtype
    old, reference = inputs.old_logprobs_BT, inputs.reference_logprobs_BT
    return Pointers(
        logprobs=logprobs_BT.contiguous(),
        old=None if old is None else old.to(dtype).contiguous(),
        sampler=inputs.sampler_logprobs_BT.to(dtype).contiguous(),
        reference=None if reference is None else reference.to(dtype).contiguous(),
        mask=inputs.mask_BT.contiguous(),
        advantages=inputs.advantages_BT.to(dtype).contiguous(),
        weights=inputs.weights_BT.to(dtype).contiguous(),
    )


def evaluated(partials_KP: Tensor, grad_logprobs_BT: Tensor, plan: Plan) -> LossAndGrad:
    """Loss and metrics from the programs' partial ones, [8, P], added in index order."""
    totals_K = torch.empty(len(COLUMNS), dtype=torch.float64, device=partials_KP.device)
    _reduce_kernel[(len(COLUMNS),)](partials_KP, totals_K, partials_KP.shape[1], SUMS, _REDUCE_BLOCK, num_warps=4)
    unread = {
        "kl/reference": not plan.has_reference,
        "correction/masked": plan.spec.correction not in ("mis", "icepop") and not plan.spec.gates_sequences,
    }
    named = dict(zip(COLUMNS, totals_K.unbind(), strict=True))
    return LossAndGrad(
        loss=named["loss"],
        grad_logprobs_BT=grad_logprobs_BT,
        sums={name: named[name] for name in COLUMNS[1:SUMS] if name not in unread or not unread[name]},
        maxima={name: named[name] for name in COLUMNS[SUMS:]},
    )


@triton.jit
def load_token(pointers, at, kept, PLAN: tl.constexpr):
    """The token's numbers, 0 where not ``kept``: what lies there may be anything, nan included, and is not read."""
    logprob = tl.load(pointers.logprobs + at, mask=kept, other=0.0)
    old = logprob
    if PLAN.has_old:
        old = tl.load(pointers.old + at, mask=kept, other=0.0)
    sampler = tl.load(pointers.sampler + at, mask=kept, other=0.0)
    reference = logprob
    if PLAN.has_reference:
        reference = tl.load(pointers.reference + at, mask=kept, other=0.0)
    advantage = tl.load(pointers.advantages + at, mask=kept, other=0.0)
    weight = tl.load(pointers.weights + at, mask=kept, other=0.0)
    return logprob, old, sampler, reference, advantage, weight


@triton.jit
def _sequence_levels(pointers, row, width, PLAN: tl.constexpr, BLOCK: tl.constexpr):
    """First sweep over a sequence: what its tokens share, (mean log-ratio, log mismatch, what is left of a token with
    A < 0: 0 where the sequence has drifted too far off policy, and what is left of every token)."""
    lanes = tl.arange(0, BLOCK)
    base = row.to(tl.int64) * width
    count = tl.zeros([BLOCK], tl.int32)
    ratios = tl.zeros([BLOCK], pointers.logprobs.dtype.element_ty)
    mismatches = ratios
    drifts = ratios
    divergences = ratios
    for start in range(0, width, BLOCK):
        inside = start + lanes < width
        at = base + start + lanes
        kept = inside & (tl.load(pointers.mask + at, mask=inside, other=0) != 0)
        logprob, old, sampler, reference, advantage, weight = load_token(pointers, at, kept, PLAN)
        log_ratio = logprob - old
        if PLAN.spec.ratio == "clipped_mean":
            log_ratio = geometric_bound(log_ratio, advantage, PLAN)
        count += kept.to(tl.int32)
        ratios += log_ratio
        mismatches += old - sampler
        drifts += sampler - logprob
        if PLAN.spec.sequence_kl_max > 0.0:
            divergences += tl.where(kept, binary_kl(sampler, logprob), 0.0)
    length = tl.maximum(tl.sum(count), 1).to(ratios.dtype)
    level = tl.sum(ratios) / length
    mismatch = tl.sum(mismatches)
    if PLAN.spec.correction_level == "sequence_mean":
        mismatch = mismatch / length
    left = level * 0.0 + 1.0
    if PLAN.spec.off_policy_delta > 0.0:
        left = tl.where(tl.sum(drifts) / length > PLAN.spec.off_policy_delta, 0.0, 1.0).to(level.dtype)
    stay = level * 0.0 + 1.0
    if PLAN.spec.sequence_kl_max > 0.0:
        stay = tl.where(tl.sum(divergences) / length > PLAN.spec.sequence_kl_max, 0.0, 1.0).to(level.dtype)
    return level, mismatch, left, stay


@triton.jit
def _block(pointers, grad_ptr, place, levels, PLAN: tl.constexpr, BLOCK: tl.constexpr):
    """Write the gradient of one block of a sequence; its eight columns, per lane. ``place``: row, first, width."""
    row, first, width = place
    columns = first + tl.arange(0, BLOCK)
    inside = columns < width
    at = row.to(tl.int64) * width + columns
    kept = inside & (tl.load(pointers.mask + at, mask=inside, other=0) != 0)
    token = load_token(pointers, at, kept, PLAN)
    logprob, old, sampler, reference, advantage, weight = token
    level, mismatch, left, stay = levels
    level = tl.where(inside, level, 0.0)
    mismatch = tl.where(inside, mismatch, 0.0)
    if PLAN.row_local or PLAN.spec.ratio == "token" or PLAN.spec.ratio == "on_policy":
        level = logprob - old
    if PLAN.spec.correction_level == "token":
        mismatch = old - sampler
    factor = left
    if PLAN.spec.off_policy_delta > 0.0:
        factor = tl.where(advantage < 0.0, left, 1.0).to(weight.dtype)
    if PLAN.spec.sequence_kl_max > 0.0:
        factor = factor * stay
    grad, measured = token_objective(token, (level, mismatch, factor), kept, PLAN)
    tl.store(grad_ptr + at, grad, mask=inside)
    loss, kl, clipped, masked, distance, k3, furthest, ratio = measured
    return loss, kl, clipped, masked, distance, k3, furthest, tl.where(inside, ratio, 0.0)


@triton.jit
def _token_kernel(pointers, outputs, width, PLAN: tl.constexpr, BLOCK: tl.constexpr):
    grad_ptr, partials_ptr = outputs
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    if not PLAN.row_local:
        levels = _sequence_levels(pointers, program, width, PLAN, BLOCK)
        a = tl.full([BLOCK], 0.0, pointers.logprobs.dtype.element_ty)
        b, c, d, e, f, g, h = a, a, a, a, a, a, a
        for first in range(0, width, BLOCK):
            i, j, k, m, n, o, p, q = _block(pointers, grad_ptr, (program, first, width), levels, PLAN, BLOCK)
            a, b, c, d, e, f = a + i, b + j, c + k, d + m, e + n, f + o
            g, h = tl.maximum(g, p), tl.maximum(h, q)
    else:
        blocks = tl.cdiv(width, BLOCK)
        place = (program // blocks, (program % blocks) * BLOCK, width)
        one = tl.full((), 1.0, pointers.logprobs.dtype.element_ty)
        a, b, c, d, e, f, g, h = _block(pointers, grad_ptr, place, (one, one, one, one), PLAN, BLOCK)
    tl.store(partials_ptr + program, tl.sum(a))
    tl.store(partials_ptr + programs + program, tl.sum(b))
    tl.store(partials_ptr + 2 * programs + program, tl.sum(c))
    tl.store(partials_ptr + 3 * programs + program, tl.sum(d))
    tl.store(partials_ptr + 4 * programs + program, tl.sum(e))
    tl.store(partials_ptr + 5 * programs + program, tl.sum(f))
    tl.store(partials_ptr + 6 * programs + program, tl.max(g))
    tl.store(partials_ptr + 7 * programs + program, tl.max(h))


@triton.jit
def _reduce_kernel(partials_ptr, totals_ptr, programs, SUMS: tl.constexpr, BLOCK: tl.constexpr):
    """One program per column: the programs' partials, lane by lane in index order, then one tree over the lanes."""
    column = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    largest = tl.zeros([BLOCK], tl.float64)  # what is maximised is never negative
    for start in range(0, programs, BLOCK):
        inside = start + lanes < programs
        values = tl.load(partials_ptr + column.to(tl.int64) * programs + start + lanes, mask=inside, other=0.0)
        total += values.to(tl.float64)
        largest = tl.maximum(largest, values.to(tl.float64))
    tl.store(totals_ptr + column, tl.where(column < SUMS, tl.sum(total), tl.max(largest)))

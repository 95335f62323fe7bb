"""Floating-point operations of training and drawing, as torch.utils.flop_counter counts them: 2 a product.

A forward pass multiplies each token by its active parameters and each query by its keys and values, 2 · heads ·
(key size + value size) a pair; the head is computed for tokens that carry loss. A backward pass is two forward passes
(gradients of inputs and of weights), with frozen weights one; recomputed layers add one, all but
their last product. Of SDPA, pairs that are hidden count: kernels that skip them do up to half of attention's work
less. Of flex_attention, which skips blocks, they don't.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlreason.policy.layouts import whole_rows_cost_less
from rlreason.sizing.activations import MicroBatch
from rlreason.sizing.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Operations of one forward pass."""

    products: float
    attention: float
    head: float
    #: Of ``products``, those that a recomputed layer leaves out.
    last: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.products + self.attention + self.head


def pass_of(shape: ModelShape, tokens: float, pairs: float, loss_rows: float) -> Pass:
    """A forward pass over ``tokens`` positions with ``pairs`` of queries and keys, and the head of ``loss_rows``."""
    each = sum(2 * one.heads * (one.key_width + one.value_width) for one in shape.attention)
    return Pass(
        products=2 * shape.layer_products * tokens,
        attention=each * pairs,
        head=2 * shape.head * loss_rows,
        last=2 * shape.last_products * tokens,
    )


def forward_packed(shape: ModelShape, batch: MicroBatch, *, flex: bool = False) -> Pass:
    """Of a packed micro-batch: by flex_attention what is visible, else the tables that ``policy.layouts`` takes."""
    behind = batch.completion - 1
    longest = batch.prompt + behind
    if flex:
        pairs = batch.prompts * batch.prompt**2 / 2 + batch.rows * behind * (batch.prompt + behind / 2)
    elif whole_rows_cost_less(
        prompts=batch.prompts, prompt=batch.prompt, rows=batch.rows, steps=behind, longest=longest
    ):
        pairs = batch.rows * longest**2
    else:
        pairs = batch.prompts * batch.prompt**2 + batch.rows * behind * longest
    return pass_of(shape, batch.tokens, pairs, batch.loss_rows)


def training(forward: Pass, *, recompute: bool = False, lora: bool = False) -> float:
    """Forward and backward passes of a step or micro-batch."""
    products = forward.products * (2 if lora else 3) + forward.head * (2 if lora else 3)
    again = forward.products - forward.last + forward.attention if recompute else 0.0
    return products + 3 * forward.attention + again


def decoding(shape: ModelShape, rows: int, length: float) -> float:
    """One token more of each of ``rows`` sequences of ``length`` tokens."""
    return pass_of(shape, rows, rows * length, rows).total

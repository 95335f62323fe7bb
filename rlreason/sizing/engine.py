"""Memory of one GPU of a rollout engine: its share of the weights, and the completions whose keys and values fit.

w = bytes of the dtype, t = GPUs of an engine (tensor parallel). A token takes w · Σ_layers cached / min(t, cuts) bytes:
of grouped-query attention 2 · groups · head size numbers a layer, cut by groups; of multi-head latent attention the
latent and the rotary key, whole on every GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlreason.sizing.shape import ModelShape

#: Of an engine's memory, for activations of its own, CUDA graphs and what the allocator can't use.
ENGINE_RESERVE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One GPU of an engine."""

    #: Bytes of its share of the weights.
    weights: float
    #: Bytes for keys and values.
    cache: float
    #: Bytes of one completion at its full length.
    row: float
    #: Completions that are drawn together: what fits, and ``sampler.max_rows`` at most.
    rows: int


def cache_bytes(shape: ModelShape, length: int, width: int, tensor_parallel: int = 1) -> float:
    """Keys and values of one sequence of ``length`` tokens on one GPU."""
    return sum(
        width * one.cached * min(length, one.window or length) / min(tensor_parallel, one.cuts)
        for one in shape.attention
    )


def weight_bytes(shape: ModelShape, width: int, tensor_parallel: int = 1) -> float:
    """An engine's weights on one of its GPUs."""
    return width * shape.total / tensor_parallel


def engine(
    shape: ModelShape, memory: float, length: int, *, width: int, tensor_parallel: int, most_rows: int
) -> Engine:
    """What ``memory`` bytes of each GPU hold, at completions of ``length`` tokens with their prompt."""
    weights = weight_bytes(shape, width, tensor_parallel)
    cache = max(0.0, memory * (1 - ENGINE_RESERVE) - weights)
    row = cache_bytes(shape, length, width, tensor_parallel)
    return Engine(weights=weights, cache=cache, row=row, rows=min(most_rows, int(cache // row)))


def read_bytes(shape: ModelShape, rows: int, length: float, *, width: int, tensor_parallel: int) -> float:
    """What one GPU reads to decode one token of each of ``rows`` sequences of ``length`` tokens.

    Weights once for all rows, of the routed experts those that any row goes to: 1 − (1 − k/E)^rows of them, were they
    chosen evenly.
    """
    touched = 1 - (1 - shape.chosen / shape.experts) ** rows if shape.experts else 0.0
    weights = float(shape.layer_products + shape.head)
    if shape.experts:
        weights += shape.routed * (touched - shape.chosen / shape.experts)
    return width * weights / tensor_parallel + rows * cache_bytes(shape, math.ceil(length), width, tensor_parallel)

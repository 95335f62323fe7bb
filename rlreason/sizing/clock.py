"""Time and money by roofline (Williams et al. 2009): what a GPU's peaks allow at best, and what a share of them costs.

A step's time is that of its slower resource: products at the peak of bfloat16, or bytes at the bandwidth of the memory
or of the links. Runs reach a part of it, ``efficiency``, which is an assumption until it is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlreason.sizing.cut import Cut
from rlreason.sizing.engine import read_bytes
from rlreason.sizing.flops import decoding, pass_of
from rlreason.sizing.gpus import Gpu
from rlreason.sizing.shape import ModelShape

#: Share of the roofline that training and drawing reach, where none is given: 0.3 to 0.5 is what is reported of well
#: tuned training (arXiv 2104.04473, table 1: 0.44 to 0.52 of A100s).
EFFICIENCY = 0.4
#: Bytes/s at which packed weights reach an engine: one link of 200 Gbit/s, or PCIe 4.0 x16.
DELIVERY = 25e9
#: Bytes/s of packing with a CRC-32 of each tensor, on one core of the trainer's host: 538 MB in 0.14 s on an EPYC core
#: (bench/delivery, docs/rollouts.md).
PACKING = 3.8e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """Seconds at the roofline, and the resource that they wait for."""

    seconds: float
    by: str


def _slower(*bounds: Bound) -> Bound:
    return max(bounds, key=lambda one: one.seconds)


def training_time(flops: float, traffic: float, gpu: Gpu, gpus: int, waits: float = 0.0) -> Bound:
    """``flops`` of all ``gpus`` together; ``traffic``: bytes that each sends over its links while it computes;
    ``waits``: seconds in which a layer waits for other ranks' parts of it."""
    products = flops / (gpu.flops * gpus)
    return _slower(
        Bound(seconds=products + waits, by="products" if products >= waits else "exchanges within layers"),
        Bound(seconds=traffic / gpu.link(gpus), by="gathering shards"),
    )


def shard_traffic(trained: float, frozen: float, width: int, ranks: int, micro_batches: int) -> float:
    """Bytes of one rank: layers gathered twice a micro-batch, and float32 gradients handed over once."""
    if ranks < 2:
        return 0.0
    return micro_batches * ((2 * width + 4) * trained + 2 * width * frozen) * (ranks - 1) / ranks


def cut_traffic(shape: ModelShape, cut: Cut, width: int, micro_batches: int) -> float:
    """``shard_traffic`` of a model whose weights all train, each part over the ranks that it is gathered over."""
    dense = shape.total - shape.outside - shape.routed
    parts = ((shape.outside, cut.shards), (dense / cut.tensor, cut.rows), (shape.routed / cut.experts, cut.copies))
    return sum(shard_traffic(size, 0, width, ranks, micro_batches) for size, ranks in parts)


def exchanges(shape: ModelShape, cut: Cut, width: int, tokens: float, gpu: Gpu, *, recompute: bool) -> float:
    """Seconds in which one rank's layers send ``tokens`` tokens' states: sums of tensor ranks twice a layer (arXiv
    1909.08053), tokens to their experts and back (arXiv 2006.16668); forward, backward, and where layers are
    recomputed once more."""
    passes, state = 3 if recompute else 2, width * shape.hidden * tokens
    sums = 2 * shape.layers * 2 * state * (cut.tensor - 1) / cut.tensor
    sent = 2 * shape.routed_layers * shape.chosen * state / cut.tensor * (cut.experts - 1) / cut.experts
    return passes * (sums / gpu.link(cut.tensor) + sent / gpu.link(cut.experts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Completions that engines draw: ``count`` of them on ``engines``, ``rows`` at a time on each."""

    count: int
    prompt: int
    completion: int
    engines: int
    rows: int
    tensor_parallel: int
    width: int


def drawing_time(shape: ModelShape, draw: Draw, gpu: Gpu) -> Bound:
    """All completions at full length: prompts, then one token of each row after the other."""
    each = math.ceil(draw.count / draw.engines)
    waves = math.ceil(each / draw.rows)
    rows = math.ceil(each / waves)
    length = draw.prompt + draw.completion / 2
    peak = gpu.flops * draw.tensor_parallel
    moved = read_bytes(shape, rows, length, width=draw.width, tensor_parallel=draw.tensor_parallel)
    token = _slower(
        Bound(seconds=moved / gpu.bandwidth, by="reading weights and keys"),
        Bound(seconds=decoding(shape, rows, length) / peak, by="products"),
    )
    prompts = pass_of(shape, each * draw.prompt, each * draw.prompt**2, each).total / peak
    return Bound(seconds=waves * draw.completion * token.seconds + prompts, by=token.by)


def delivery_time(size: float, *, packed: bool = True) -> float:
    """Seconds for ``size`` bytes to reach the engines, which take them side by side; ``packed``: on the host first."""
    return size / DELIVERY + (size / PACKING if packed else 0.0)

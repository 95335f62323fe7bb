"""Packed tokens through torch's flex_attention: one row [1, L] and the blocks of its scores that are visible.

The mask is a function of two places (``layouts.Tokens.visible``), asked inside of the kernel; which blocks it has to be
asked in is found here in strips, so that an L × L mask, 1 GiB at 32k tokens, is never made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rlreason.errors import UsageError
from rlreason.objective.batch import Packing
from rlreason.policy.layouts import Call, Tokens

#: Queries and keys of a block: what torch's kernels take where nothing else is said.
BLOCK = 128
#: Numbers of a head, fewer than which flex_attention's kernels don't compute.
SMALLEST_HEAD = 16
#: Kinds of calls that are compiled before torch would fall back.
_KINDS = 256
#: Scores of a strip that are looked at together.
_STRIP = 2**25


@dataclass(slots=True)
class FlexLayout:
    """flex_attention over all packed tokens. See ``layouts.Layout``."""

    packing: Packing
    _tokens: Tokens = field(init=False)
    _masks: dict[int | None, BlockMask] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._tokens = Tokens.of(self.packing)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """See ``layouts.Layout``. Raises UsageError for dropout, which flex_attention has not."""
        if call.dropout:
            raise UsageError(f'trainer.attention = "flex" has no dropout, and the model asks for {call.dropout:g}')
        compute: Any = compiled() if query.device.type == "cuda" else flex_attention
        found = compute(query, key, value, block_mask=self._mask(call.window), scale=call.scale, enable_gqa=True)
        states: Tensor = found.transpose(1, 2)
        return states

    def _mask(self, window: int | None) -> BlockMask:
        """One for each window of the model's layers; one that hides nothing is none."""
        if window is not None and window >= self.packing.longest:
            window = None
        if window not in self._masks:
            self._masks[window] = block_mask(self._tokens, window)
        return self._masks[window]


@cache
def compiled(backend: str | Callable[..., Any] = "inductor") -> Callable[..., Any]:
    """The fused kernel of GPUs; elsewhere ``flex_attention`` itself, which has every score in memory, is its proof.

    Each kind of call (heads, window, with or without gradients) is compiled once, for any length. torch gives up after
    eight by default and, without a word in the log, keeps every score in memory: here it may be many, and the end of
    them is an error.
    """
    found: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]  # its stubs lack recompile_limit
        flex_attention, fullgraph=True, dynamic=True, recompile_limit=_KINDS, backend=backend
    )
    return found


def block_mask(tokens: Tokens, window: int | None = None) -> BlockMask:
    """The blocks in which ``tokens.visible`` shows anything, and those in which it shows everything."""
    some, every = _blocks(tokens, window)
    counts, order = _first_ones(some & ~every)
    full_counts, full_order = _first_ones(every)

    def mask_mod(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return tokens.visible(query, key, window)

    length = len(tokens.group_L)
    return BlockMask.from_kv_blocks(
        counts,
        order,
        full_counts,
        full_order,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod,
        seq_lengths=(length, length),
    )


def _blocks(tokens: Tokens, window: int | None) -> tuple[Tensor, Tensor]:
    """(anything is visible, everything is), bool [blocks of queries, blocks of keys]. What is behind the last token is
    not visible."""
    length, device = len(tokens.group_L), tokens.group_L.device
    across = -(-length // BLOCK)
    keys = torch.arange(across * BLOCK, device=device)
    inside, keys = keys < length, keys.clamp(max=length - 1)
    step = max(1, _STRIP // (BLOCK * len(keys))) * BLOCK
    some, every = [], []
    for start in range(0, across * BLOCK, step):
        queries = slice(start, min(start + step, across * BLOCK))
        seen = tokens.visible(keys[queries, None], keys[None, :], window)
        seen &= inside[queries, None] & inside[None, :]
        tiles = seen.view(-1, BLOCK, across, BLOCK)
        some.append(tiles.any(dim=3).any(dim=1))
        every.append(tiles.all(dim=3).all(dim=1))
    return torch.cat(some), torch.cat(every)


def _first_ones(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(how many blocks of keys each block of queries has, their numbers before those of all others), int32."""
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1).to(torch.int32)[None, None], order.to(torch.int32)[None, None]

"""How attention over packed tokens is computed: as padded tables for SDPA, or over all of them by blocks for flex.

G = prompts, P = longest prompt, B = rows, S = positions that a row's completion computes, W = longest row with its
prompt (of what is computed), K = P + S, L = packed tokens, D = size of a head.

No way makes an L × L mask. SDPA has two tables to choose from: rows whole, each behind a copy of its prompt, where the
causal kernel needs no mask at all and skips half of the work; or prompts once and completions that see prompt and
themselves by a mask [B, 1, S, K] (what PrefixGrouper, arXiv 2506.05433, does within one long sequence), which is less
work where long prompts are shared by short completions. flex_attention (arXiv 2412.05496) computes the blocks of L × L
that anything is visible in, and needs neither tables nor copies: it is for GPUs, as it has no backward pass on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlreason.objective.batch import Packing

#: Bytes of a mask above which rows are computed whole whatever that costs.
MOST_MASK = 256 * 2**20
#: Keys up to which a CPU attends in float32 where the model is bfloat16: torch's kernel for that is 1.5 (heads of 64)
#: to 3.5 (of 32) times as slow there, forward and backward, and as fast from about 300 keys on.
MOST_WIDENED = 256
#: Queries of a sliding window that are computed together.
WINDOW_BLOCK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a layer asks of its attention beside queries, keys and values. ``window``: positions that a token sees,
    itself included; None: all before it."""

    scale: float | None
    dropout: float = 0.0
    window: int | None = None


class Layout(Protocol):
    """A micro-batch's packing, as attention is computed over it: made once, used by every layer."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """[1, heads, L, D] each (keys and values may have fewer heads) -> [1, L, heads, D of the values]."""
        ...


def whole_rows_cost_less(*, prompts: int, prompt: int, rows: int, steps: int, longest: int) -> bool:
    """Whether whole rows (``longest`` = W) are less work for SDPA than prompts once (G, P, B, S in the order of the
    arguments), or the mask of those would be too large.

    Scores that are computed: of whole rows B · W² / 2 (the causal kernel skips the upper half); of prompts once
    G · P² / 2 + B · S · K (with a mask nothing is skipped).
    """
    masked = rows * steps * (prompt + steps)
    mask = 4 * masked // (rows if prompts == 1 else 1)
    return mask > MOST_MASK or rows * longest**2 <= prompts * prompt**2 + 2 * masked


def _takes_whole_rows(packing: Packing) -> bool:
    (prompts, prompt), (rows, steps) = packing.prompt_at_GP.shape, packing.row_at_BS.shape
    return whole_rows_cost_less(prompts=prompts, prompt=prompt, rows=rows, steps=steps, longest=packing.longest)


@dataclass(slots=True)
class SdpaLayout:
    """Tables for ``scaled_dot_product_attention``."""

    packing: Packing
    _rows: _WholeRows = field(init=False)
    _tables: _PromptsOnce | None = field(init=False)

    def __post_init__(self) -> None:
        self._rows = _WholeRows(self.packing)
        self._tables = None if _takes_whole_rows(self.packing) else _PromptsOnce(self.packing)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """See ``Layout``."""
        states = tuple(one[0].transpose(0, 1) for one in (query, key, value))
        windowed = call.window is not None and call.window < self.packing.longest
        if self._tables is None or windowed:
            return self._rows.attend(states, call)
        return self._tables.attend(states, call)


class _WholeRows:
    """A table [B, W] of rows behind their prompts. A prompt's states are those of the first row that has it."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._biases: dict[tuple[int, int, int], Tensor] = {}

    @cached_property
    def _at_BW(self) -> Tensor:
        """Place among the packed tokens; behind the end of a row any."""
        packing = self._packing
        width = packing.prompt_at_GP.shape[1]
        at_BK = torch.cat([packing.prompt_at_GP[packing.prompt_of_B], packing.row_at_BS], dim=1)
        columns_W = torch.arange(packing.longest, device=at_BK.device)
        prompt_B1 = packing.prompt_lengths_G[packing.prompt_of_B].unsqueeze(1)
        places_BW = torch.where(columns_W < prompt_B1, columns_W, columns_W + (width - prompt_B1))
        return at_BK.gather(1, places_BW.clamp(max=at_BK.shape[1] - 1))

    @cached_property
    def _back_L(self) -> Tensor:
        """Place of each packed token in the table, flattened."""
        packing = self._packing
        tokens = Tokens.of(packing)
        rows_B = torch.arange(len(packing.prompt_of_B), device=tokens.own_L.device)
        first_G = torch.full_like(packing.prompt_lengths_G, len(rows_B)).scatter_reduce(
            0, packing.prompt_of_B, rows_B, reduce="amin"
        )
        row_L = torch.where(tokens.own_L < 0, first_G[tokens.group_L], tokens.own_L)
        return row_L * packing.longest + packing.positions_L

    def attend(self, states: tuple[Tensor, ...], call: Call) -> Tensor:
        query, key, value = (_table(one, self._at_BW) for one in states)
        if call.window is None or call.window >= self._packing.longest:
            found = causal(query, key, value, call)
        else:
            found = self._windowed(query, key, value, call)
        return found.transpose(1, 2).flatten(0, 1).index_select(0, self._back_L).unsqueeze(0)

    def _windowed(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """Block by block of queries, each with the keys that its windows reach."""
        assert call.window is not None
        longest, repeats = self._packing.longest, query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(repeats, dim=1) if repeats > 1 else one for one in (key, value))
        found = []
        for start in range(0, longest, WINDOW_BLOCK):
            end, first = min(longest, start + WINDOW_BLOCK), max(0, start - call.window + 1)
            bias = self._band(end - start, start - first, call.window, query)
            found.append(
                scaled_dot_product_attention(
                    query[:, :, start:end],
                    key[:, :, first:end],
                    value[:, :, first:end],
                    attn_mask=bias,
                    dropout_p=call.dropout,
                    scale=call.scale,
                )
            )
        return torch.cat(found, dim=2)

    def _band(self, queries: int, before: int, window: int, like: Tensor) -> Tensor:
        """0 or −inf of ``queries`` positions and the ``before`` ones before them, [queries, before + queries]."""
        kind = (queries, before, window)
        if kind not in self._biases:
            apart = _apart(queries, before, like.device)
            hidden = (apart < 0) | (apart >= window)
            self._biases[kind] = torch.zeros_like(apart, dtype=like.dtype).masked_fill_(hidden, -torch.inf)
        return self._biases[kind]


def _apart(queries: int, before: int, device: torch.device) -> Tensor:
    """How far each key is before each query, [queries, before + queries]."""
    at = torch.arange(before + queries, device=device)
    return at[before:].unsqueeze(1) - at


class _PromptsOnce:
    """Prompts, and completions that see their prompt and themselves."""

    def __init__(self, packing: Packing) -> None:
        self._packing = packing
        self._biases: dict[torch.dtype, Tensor] = {}

    @cached_property
    def _key_at_BK(self) -> Tensor:
        packing = self._packing
        return torch.cat([packing.prompt_at_GP[packing.prompt_of_B], packing.row_at_BS], dim=1)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """0 or −inf, [B or 1, 1, S, K], in the dtype of queries."""
        if dtype not in self._biases:
            hidden = self._hidden()
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._biases[dtype] = zeros.masked_fill_(hidden, -torch.inf).unsqueeze(1)
        return self._biases[dtype]

    def _hidden(self) -> Tensor:
        packing, device = self._packing, self._packing.row_at_BS.device
        (prompts, width), (_, steps) = packing.prompt_at_GP.shape, packing.row_at_BS.shape
        later_SS = _apart(steps, 0, device) < 0
        if prompts == 1:  # nothing of it is padding, and all rows see the same
            return torch.cat([torch.zeros((steps, width), dtype=torch.bool, device=device), later_SS], dim=1)[None]
        inside_BP = torch.arange(width, device=device) < packing.prompt_lengths_G[packing.prompt_of_B].unsqueeze(1)
        hidden_BSP = ~inside_BP.unsqueeze(1).expand(-1, steps, -1)
        return torch.cat([hidden_BSP, later_SS.expand(len(inside_BP), -1, -1)], dim=2)

    def attend(self, states: tuple[Tensor, ...], call: Call) -> Tensor:
        query_L, key_L, value_L = states
        packing, repeats = self._packing, query_L.shape[1] // key_L.shape[1]
        query, key, value = (_table(one, packing.prompt_at_GP) for one in states)
        prompts = causal(query, key, value, call)
        found = [prompts]
        if packing.row_at_BS.numel():
            query, key, value = widened(
                _table(query_L, packing.row_at_BS),
                _table(key_L, self._key_at_BK, repeats),
                _table(value_L, self._key_at_BK, repeats),
            )
            rows = scaled_dot_product_attention(
                query, key, value, attn_mask=self.bias(query.dtype), dropout_p=call.dropout, scale=call.scale
            )
            found.append(rows.to(prompts.dtype))
        tables = [one.transpose(1, 2).flatten(0, 1) for one in found]
        return torch.cat(tables).index_select(0, packing.back_L).unsqueeze(0)


def causal(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    """Attention to all that is before, [rows, heads, columns, D] each, by the kernel that needs no mask."""
    dtype = query.dtype
    query, key, value = widened(query, key, value)
    found = scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=call.dropout,
        is_causal=True,
        scale=call.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.to(dtype)


def widened(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the dtype in which this device attends soonest: see ``MOST_WIDENED``."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= MOST_WIDENED:
        return query.float(), key.float(), value.float()
    return query, key, value


def _table(states_L: Tensor, place: Tensor, repeats: int = 1) -> Tensor:
    """[rows, heads, columns, D] of packed [L, heads, D]."""
    table = states_L.index_select(0, place.flatten()).view(*place.shape, *states_L.shape[1:]).transpose(1, 2)
    return table.repeat_interleave(repeats, dim=1) if repeats > 1 else table


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What decides who sees whom: of each packed token its prompt's number, its row's (−1: it is the prompt's) and its
    position, int64 [L]."""

    group_L: Tensor
    own_L: Tensor
    positions_L: Tensor

    @staticmethod
    def of(packing: Packing) -> Tokens:
        """Read from the places in the tables of prompts and rows; nothing waits for the device."""
        (prompts, width), steps = packing.prompt_at_GP.shape, max(1, packing.row_at_BS.shape[1])
        behind_L = packing.back_L - prompts * width
        own_L = torch.where(behind_L < 0, -1, behind_L // steps)
        group_L = torch.where(behind_L < 0, packing.back_L // width, packing.prompt_of_B[own_L.clamp(min=0)])
        return Tokens(group_L=group_L, own_L=own_L, positions_L=packing.positions_L)

    def visible(self, query: Tensor, key: Tensor, window: int | None = None) -> Tensor:
        """Whether the tokens at places ``query`` see those at ``key``: their prompt and what is before them in their
        row, within the window."""
        own_key = self.own_L[key]
        seen = (self.group_L[query] == self.group_L[key]) & ((own_key == -1) | (self.own_L[query] == own_key))
        seen = seen & (query >= key)
        return seen if window is None else seen & (self.positions_L[query] - self.positions_L[key] < window)

"""Attention over packed tokens: each prompt once, then its completions, without padding anywhere else in the model.

G = prompts, P = longest prompt, B = rows, S = positions that a row's completion computes, K = P + S, L = packed tokens.
Everything between attentions works on the [1, L] tokens as they are. Here they are laid out as a padded table of
prompts and one of completions that see their prompt and themselves: what PrefixGrouper (arXiv 2506.05433) does by a
mask over one long sequence, at the cost of separate rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlreason.attention_options import check_options
from rlreason.objective.batch import Packing

#: The attention of every policy: transformers' "sdpa", unless a forward call brings a ``PackedLayout``.
ATTENTION = "rlreason"
_LAYOUT = "packed_layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayout:
    """A micro-batch's packing, and what of the keys its completions see: 0 or −inf, [B, 1, S, K]."""

    packing: Packing
    key_at_BK: Tensor
    bias_B1SK: Tensor

    @staticmethod
    def of(packing: Packing, dtype: torch.dtype) -> PackedLayout:
        """The layout in the model's dtype: made once, read by every layer."""
        width, steps = packing.prompt_at_GP.shape[1], packing.row_at_BS.shape[1]
        device = packing.row_at_BS.device
        inside_BP = torch.arange(width, device=device) < packing.prompt_lengths_G[packing.prompt_of_B].unsqueeze(1)
        hidden_BSP = ~inside_BP.unsqueeze(1).expand(-1, steps, -1)
        later_SS = torch.ones((steps, steps), dtype=torch.bool, device=device).triu(1)
        hidden_BSK = torch.cat([hidden_BSP, later_SS.expand(len(inside_BP), -1, -1)], dim=2)
        bias_BSK = torch.zeros(hidden_BSK.shape, dtype=dtype, device=device).masked_fill_(hidden_BSK, -torch.inf)
        return PackedLayout(
            packing=packing,
            key_at_BK=torch.cat([packing.prompt_at_GP[packing.prompt_of_B], packing.row_at_BS], dim=1),
            bias_B1SK=bias_BSK.unsqueeze(1),
        )


def packed_states(
    model: nn.Module, token_ids_1L: Tensor, packing: Packing, router_logits: list[Tensor] | None = None
) -> Tensor:
    """Last hidden states of packed tokens, [L, H], of a model whose attention is ``ATTENTION``.

    A list as ``router_logits`` is filled with those of each layer with experts, [L, experts].
    """
    layout = PackedLayout.of(packing, next(model.parameters()).dtype)
    options = {} if router_logits is None else {"output_router_logits": True}
    output = model(
        input_ids=token_ids_1L,
        position_ids=packing.positions_L.unsqueeze(0),
        # Of four dimensions: transformers takes it as it is, and makes no L × L mask.
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=token_ids_1L.device),
        use_cache=False,
        **{_LAYOUT: layout},
        **options,
    )
    if router_logits is not None:
        router_logits += output.router_logits
    hidden: Tensor = output.last_hidden_state
    return hidden.squeeze(0)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: [1, heads, L, D] each with a layout, whatever "sdpa" takes without.

    Raises UsageError for an option that "sdpa" would drop, such as the sinks of gpt-oss or Gemma 2's soft cap.
    """
    layout = options.pop(_LAYOUT, None)
    check_options(options)
    if layout is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    packing = layout.packing
    query_L, key_L, value_L = (states[0].transpose(0, 1) for states in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    prompts = scaled_dot_product_attention(
        _table(query_L, packing.prompt_at_GP),
        _table(key_L, packing.prompt_at_GP),
        _table(value_L, packing.prompt_at_GP),
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=grouped,
    )
    tables = [prompts.transpose(1, 2).flatten(0, 1)]
    if packing.row_at_BS.numel():
        repeats = query.shape[1] // key.shape[1]
        rows = scaled_dot_product_attention(
            _table(query_L, packing.row_at_BS),
            _table(key_L, layout.key_at_BK, repeats),
            _table(value_L, layout.key_at_BK, repeats),
            attn_mask=layout.bias_B1SK,
            dropout_p=dropout,
            scale=scaling,
        )
        tables.append(rows.transpose(1, 2).flatten(0, 1))
    return torch.cat(tables).index_select(0, packing.back_L).unsqueeze(0), None


def _table(states_L: Tensor, place: Tensor, repeats: int = 1) -> Tensor:
    """[rows, heads, columns, D] of packed [L, heads, D]."""
    table = states_L.index_select(0, place.flatten()).view(*place.shape, *states_L.shape[1:]).transpose(1, 2)
    return table.repeat_interleave(repeats, dim=1) if repeats > 1 else table


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)

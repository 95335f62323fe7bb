"""Attention over packed tokens: each prompt once, then its completions, without padding anywhere else in the model.

Everything between attentions works on the [1, L] tokens as they are (L = packed tokens, H = hidden size, D = size of a
head); how attention itself is laid out, and which kernel computes it, is for ``policy.layouts`` and ``policy.blocks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlreason.attention_options import AttentionWay, check_options
from rlreason.errors import UsageError
from rlreason.objective.batch import Packing
from rlreason.policy.blocks import SMALLEST_HEAD, FlexLayout
from rlreason.policy.layouts import Call, Layout, SdpaLayout, widened

#: The attention of every policy: transformers' "sdpa", unless a forward call brings a ``Layout``.
ATTENTION = "rlreason"
#: A policy's attention by how packed tokens are computed: the name that transformers knows it by.
_NAMES: dict[AttentionWay, str] = {"auto": ATTENTION, "sdpa": f"{ATTENTION}_sdpa", "flex": f"{ATTENTION}_flex"}
_LAYOUT = "packed_layout"


def set_attention(model: PreTrainedModel, way: AttentionWay, device: torch.device) -> None:
    """Say how ``model``, which computes on ``device``, attends over packed tokens; ``trainer.attention`` is ``way``.

    A model whose attention is not ours, which takes no packed tokens, is left as it is. Raises UsageError where
    flex_attention can't compute it.
    """
    if not has_own_attention(model):
        return
    if way == "flex":
        _check_flex(model, device)
    model.config._attn_implementation = _NAMES[way]


def has_own_attention(model: PreTrainedModel) -> bool:
    """Whether the model's attention is ``ATTENTION``, in any of its ways."""
    return model.config._attn_implementation in _NAMES.values()


def _check_flex(model: PreTrainedModel, device: torch.device) -> None:
    asked = 'trainer.attention = "flex"'
    instead = 'use "auto", which takes "sdpa" where it can\'t'
    if device.type != "cuda":
        raise UsageError(f"{asked} needs a GPU: torch's flex_attention has no backward pass on a CPU; {instead}")
    if not has_triton():
        raise UsageError(f"{asked} needs Triton, which is not installed here; {instead}")
    if smallest_head(model.config) < SMALLEST_HEAD:
        raise UsageError(
            f"{asked} needs heads of {SMALLEST_HEAD} numbers, {type(model).__name__}'s are smaller; {instead}"
        )


def has_triton() -> bool:
    """Whether what compiles flex_attention is installed."""
    return find_spec("triton") is not None


def smallest_head(config: Any) -> int:
    """Numbers of the smaller of a head's queries and values, of a model's ``config``."""
    known = {*config.to_dict(), *config.attribute_map}
    if "kv_lora_rank" in known and config.kv_lora_rank:  # multi-head latent attention
        return int(min(config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim))
    if "head_dim" in known and config.head_dim:
        return int(config.head_dim)
    return int(config.hidden_size // config.num_attention_heads)


def layout_of(model: nn.Module, packing: Packing) -> Layout:
    """How ``model`` attends over ``packing``: as it was told, else by flex_attention on a GPU that has it."""
    config: Any = model.config
    flex = config._attn_implementation == _NAMES["flex"]
    if config._attn_implementation == ATTENTION and packing.back_L.is_cuda:
        flex = has_triton() and smallest_head(config) >= SMALLEST_HEAD
    return FlexLayout(packing) if flex else SdpaLayout(packing)


def packed_states(
    model: nn.Module,
    token_ids_1L: Tensor,
    packing: Packing,
    router_logits: list[Tensor] | None = None,
    layout: Layout | None = None,
    more: Mapping[str, Any] | None = None,
) -> Tensor:
    """Last hidden states of packed tokens, [L, H], of a model whose attention is ``ATTENTION``.

    A list as ``router_logits`` is filled with those of each layer with experts, [L, experts]. ``layout``: in place of
    ``layout_of``. ``more``: other arguments of the forward pass.
    """
    options = {} if router_logits is None else {"output_router_logits": True}
    output = model(
        input_ids=token_ids_1L,
        position_ids=packing.positions_L.unsqueeze(0),
        # Of four dimensions: transformers takes it as it is, and makes no L × L mask.
        attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=token_ids_1L.device),
        use_cache=False,
        **{_LAYOUT: layout or layout_of(model, packing)},
        **options,
        **(more or {}),
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
    layout: Layout | None = options.pop(_LAYOUT, None)
    check_options(options)
    if layout is None:
        dtype = query.dtype
        query, key, value = widened(query, key, value)
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(query.dtype)
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return found.to(dtype), None
    call = Call(scale=scaling, dropout=dropout, window=options.pop("sliding_window", None))
    return layout.attend(query, key, value, call), None


for _name in _NAMES.values():
    AttentionInterface.register(_name, attend)
    AttentionMaskInterface.register(_name, sdpa_mask)

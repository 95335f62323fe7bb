"""What a model's layers may ask of our attention functions, in the policy and in the embedded engine.

transformers hands every option of a layer to the attention function that is registered under the model's name for it,
and "sdpa" drops those that it does not know. So attention sinks (gpt-oss) or a soft cap (Gemma 2, arXiv 2408.00118)
would be left out in the trainer and the sampler alike, where no comparison of the two can see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rlreason.errors import UsageError

#: How attention over packed tokens is computed, ``trainer.attention``: see ``policy.layouts``.
AttentionWay = Literal["auto", "sdpa", "flex"]
#: Options of a layer's attention that "sdpa" honours, or that say nothing of its result: windows are in the mask.
HONOURED = frozenset(
    {
        "attention_type",
        "cache",
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "is_causal",
        "labels",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_bias",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)
#: What the options are called in the field.
_MEANINGS = {"s_aux": "attention sinks", "softcap": "a soft cap on attention scores", "indices": "sparse attention"}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an option of a layer's attention that "sdpa" would drop without a word."""
    for name, value in options.items():
        if name in HONOURED or value is None or value is False:
            continue
        meaning = f" ({_MEANINGS[name]})" if name in _MEANINGS else ""
        raise UsageError(
            f"the model's attention has {name!r}{meaning}, which rlreason does not compute: its log-probabilities "
            f"would be wrong. docs/models.md lists the models that work"
        )

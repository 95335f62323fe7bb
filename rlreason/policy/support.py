"""Which models can be trained and drawn from here, and which are refused before they are wrong in silence.

Our attention functions have names of their own, so transformers' checks of "sdpa" pass them by. What those checks and
the config tells is asked here, before any weight is loaded; ``rlreason.attention_options`` looks at what each layer
hands to its attention. docs/models.md has the table that this file decides.
"""

from __future__ import annotations

from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

from rlreason.errors import UsageError

#: Kinds of layers whose past is a plain cache of keys and values.
_PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
#: Where configs keep a soft cap on attention scores.
_SOFT_CAPS = ("attn_logit_softcapping",)
#: Types whose routers draw their experts while they learn.
_SAMPLES_EXPERTS = ("phimoe",)
_INSTEAD = "docs/models.md lists the models that work"


def check_supported(config: PretrainedConfig, where: str) -> None:
    """Raise UsageError where a model of ``config`` would be computed wrongly, or can't be drawn from.

    ``where`` names it in the message: a path, or a table of the recipe.
    """
    why_not = _why_not(config)
    if why_not:
        raise UsageError(f"{where} ({config.model_type}) {why_not}. {_INSTEAD}")


def _why_not(config: PretrainedConfig) -> str:
    if "quantization_config" in config.to_dict():
        return _quantised(config)
    if config.is_encoder_decoder:
        return "is an encoder-decoder model; rlreason trains decoders"
    if config.get_text_config() is not config:
        return (
            "is a multimodal model, and rlreason trains text models: its other towers would be lost when it is saved. "
            "Save its language model as a checkpoint of its own"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "is no causal language model"
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if config.model_type in _SAMPLES_EXPERTS:
        return (
            "samples its experts in training mode (SparseMixer, arXiv 2409.12136), where samplers take the most "
            "probable ones: no step could be repeated, and what is trained would not be what was drawn with"
        )
    settings = config.to_dict()
    others = sorted(set(settings.get("layer_types") or ()) - _PLAIN_LAYERS)
    if model._is_stateful or others:
        kinds = f" ({', '.join(others)})" if others else ""
        return f"has layers with a recurrent state{kinds}, which neither sampler of rlreason is proved with"
    if any(settings.get(name) for name in _SOFT_CAPS):
        return 'has a soft cap on attention scores, which "sdpa" attention does not compute'
    if not model._supports_sdpa:
        return 'has attention (such as sinks) that transformers does not compute with "sdpa"'
    return ""


def _quantised(config: PretrainedConfig) -> str:
    """transformers dequantises some formats by a guess of their blocks, and quantises again what it saves."""
    method = config.to_dict()["quantization_config"].get("quant_method", "by an unnamed method")
    deepseek = ", converted from fp8 to bf16 first for DeepSeek-V3 and R1" if method == "fp8" else ""
    return (
        f"is quantised ({method}; quantization_config in its config.json), and what is trained and drawn from here are "
        f"plain weights: use the bfloat16 folder of the same model{deepseek}. A server that has a quantised one can be "
        "drawn from: [endpoint.NAME], or `rlreason eval --url`"
    )


def own_attention(config: PretrainedConfig) -> UsageError:
    """The error of models that have a table of attention classes, such as Falcon."""
    return UsageError(
        f"models of type {config.model_type!r} have attention classes of their own, which rlreason's can't replace. "
        f"{_INSTEAD}"
    )


def longest_sequence(config: PretrainedConfig) -> int | None:
    """Positions that a model of ``config`` has been made for; None where it says none (ALiBi, for example)."""
    if "max_position_embeddings" not in {*config.to_dict(), *config.attribute_map}:
        return None
    found = config.max_position_embeddings
    return int(found) if found else None

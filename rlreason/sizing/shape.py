"""A model without numbers: its parameters by use, its layers by kind, and what a token of it leaves in an engine.

Models are made by accelerate's ``init_empty_weights``: names and shapes of hundreds of billions of parameters cost a
second and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlreason.errors import UsageError
from rlreason.policy.attention import ATTENTION
from rlreason.policy.lora import is_adapter
from rlreason.policy.model import count_parameters
from rlreason.policy.support import own_attention
from rlreason.routing import chosen_count, expert_count


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """The model of ``config`` on the meta device. Raises UsageError for a model that can't be built or is refused."""
    try:
        with init_empty_weights(include_buffers=True):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    except KeyError as error:
        if error.args != (ATTENTION,):
            raise
        raise own_attention(config) from error
    except (RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"a model of type {config.model_type!r} can't be built: {reason}") from error
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """What one layer's attention computes and keeps, of one token."""

    heads: int
    #: Of queries and keys, and of values, a head.
    key_width: int
    value_width: int
    #: Numbers in the engine's cache; of MLA the latent and the rotary key.
    cached: int
    #: Into how many parts of equal size tensor parallelism can cut the cache; 1: every GPU holds all of it (MLA).
    cuts: int
    #: Positions that it looks back at most; None: all.
    window: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Counts of one model. All are numbers of parameters unless said otherwise."""

    total: int
    #: Of one token: all but the routed experts that it does not go to. The embedding counts, as in model names.
    active: int
    #: Parameters that multiply one token inside of the layers, and of the head.
    layer_products: int
    #: Of these the last matrix of each layer, whose product nothing behind it needs: recomputing stops before it.
    last_products: int
    head: int
    #: (all but routed experts, routed experts) of each kind of layer, which shards of it are gathered to.
    layer_parts: tuple[tuple[int, int], ...]
    #: Layers with routed experts.
    routed_layers: int
    #: Outside of all layers: embedding, last norm, head.
    outside: int
    vocabulary: int
    hidden: int
    #: Whether logits are a product and nothing else, as the fused head computes them.
    plain_head: bool
    experts: int
    chosen: int
    #: All routed experts.
    routed: int
    attention: tuple[Attention, ...]

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.attention)

    @property
    def largest_layer(self) -> int:
        """Parameters of the largest layer."""
        return max(sum(parts) for parts in self.layer_parts)


def shape_of(model: PreTrainedModel) -> ModelShape:
    """Count ``model``, of any device; an adapter's parameters are left out.

    Raises UsageError where transformers does not name its layers, for a head that is no matrix, and for a config that
    does not say what its attention or experts are.
    """
    try:
        return _shape_of(model)
    except (TypeError, KeyError) as error:
        raise UsageError(f"{type(model).__name__} can't be sized: its config lacks a number ({error})") from error


def _shape_of(model: PreTrainedModel) -> ModelShape:
    layers = layers_of(model)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UsageError(f"{type(model).__name__} has a head that is no matrix: its size is not known here")
    experts = expert_count(model)
    chosen = chosen_count(model)
    if experts and not chosen:
        raise UsageError(f"{type(model).__name__} can't be sized: its config says not how many experts a token goes to")
    total, active = count_parameters(model)
    adapter = sum(one.numel() for name, one in model.named_parameters() if is_adapter(name))
    parts = [_parts(layer) for layer in layers]
    routed = sum(experts for _, experts in parts)
    products = sum(one.numel() for layer in layers for name, one in _named(layer) if one.ndim >= 2)
    idle = routed * (experts - chosen) // experts if experts else 0
    return ModelShape(
        total=total - adapter,
        active=active - adapter,
        layer_products=products - idle,
        last_products=sum(_last_product(layer, head.weight.shape[1]) for layer in layers),
        head=head.weight.numel(),
        layer_parts=tuple(sorted(set(parts))),
        routed_layers=sum(experts > 0 for _, experts in parts),
        outside=total - adapter - sum(map(sum, parts)),
        vocabulary=head.weight.shape[0],
        hidden=head.weight.shape[1],
        plain_head=head.bias is None and not _scales_logits(model.config),
        experts=experts,
        chosen=chosen,
        routed=routed,
        attention=_attention(model.config, len(layers)),
    )


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers that are alike, in order. Raises UsageError where transformers does not name them."""
    names = set(model._no_split_modules or ())
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and any(type(one).__name__ in names for one in module):
            return module
    raise UsageError(f"{type(model).__name__} can't be sized: transformers does not say which its layers are")


def _named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, one) for name, one in module.named_parameters() if not is_adapter(name)]


def _parts(layer: nn.Module) -> tuple[int, int]:
    """(all but routed experts, routed experts)."""
    routed = sum(one.numel() for name, one in _named(layer) if ".experts." in f".{name}")
    return sum(one.numel() for _, one in _named(layer)) - routed, routed


#: What configs call a factor of the logits (Granite, Cohere, Falcon-H1) and a cap on them (Gemma).
_FACTORS, _CAPS = ("logits_scaling", "logit_scale", "lm_head_multiplier"), ("final_logit_softcapping",)


def _scales_logits(config: PretrainedConfig) -> bool:
    settings = config.to_dict()
    scaled = any(settings.get(name) not in {None, 1} for name in _FACTORS)
    return scaled or any(settings.get(name) for name in _CAPS)


def _last_product(layer: nn.Module, hidden: int) -> int:
    """Parameters of the layer's last matrix, where its output is added to the stream as it is: of dense layers and
    shared experts, while that of routed ones is still weighed."""
    last = [one for _, one in _named(layer) if one.ndim >= 2][-1]
    return last.numel() if last.ndim == 2 and last.shape[0] == hidden else 0


def _attention(config: PretrainedConfig, layers: int) -> tuple[Attention, ...]:
    known = {*config.to_dict(), *config.attribute_map}

    def read(name: str) -> Any:
        """What the config says, by whatever name it has for it; None where it says nothing."""
        return getattr(config, name) if name in known else None

    heads = int(read("num_attention_heads"))
    if read("kv_lora_rank"):  # multi-head latent attention (DeepSeek-V2, arXiv 2405.04434)
        latent, rotary = int(read("kv_lora_rank")), int(read("qk_rope_head_dim"))
        widths = int(read("qk_nope_head_dim")) + rotary, int(read("v_head_dim"))
        one = Attention(
            heads=heads, key_width=widths[0], value_width=widths[1], cached=latent + rotary, cuts=1, window=None
        )
        return (one,) * layers
    groups = int(read("num_key_value_heads") or heads)
    width = int(read("head_dim") or int(read("hidden_size")) // heads)
    kinds = read("layer_types") or ["full_attention"] * layers
    window = read("sliding_window")
    return tuple(
        Attention(
            heads=heads,
            key_width=width,
            value_width=width,
            cached=2 * groups * width,
            cuts=groups,
            window=int(window) if window and kind != "full_attention" else None,
        )
        for kind in kinds
    )

"""Sparse upcycling: a dense model as a mixture of experts that computes the same (Komatsuzaki et al. 2022, arXiv
2212.05055).

Each layer's feed-forward network is copied into E experts, a random router chooses K of them for each token, and their
weights are normalised to 1: while the experts are equal, the sum of any K is the network itself. All other tensors are
taken over. Which families that is exact for stands in ``TARGETS``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlreason.errors import UsageError, nearest
from rlreason.policy.attention import ATTENTION
from rlreason.policy.support import check_supported

#: Width of a shared expert of zeros, where a family can't be without one. vLLM's kernels want a multiple of 32.
SHARED = 64
#: Settings that mean the same in a family's dense and sparse models.
_TAKEN_OVER = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_parameters",
    "tie_word_embeddings", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpcycleOptions:
    """How a dense model becomes sparse. Example: ``UpcycleOptions(experts=4, top_k=2)``."""

    experts: int
    #: Experts of a token.
    top_k: int
    #: Standard deviation of what is added to each weight of each expert. 0: experts are equal, the model is exact, and
    #: the router has no gradient until training has made them differ.
    noise: float = 1e-3
    #: Standard deviation of the router's weights.
    router_std: float = 0.02
    #: Of router and noise.
    seed: int = 0
    #: Type of the sparse model; None: the exact one of the dense model's family.
    target: str | None = None


def _mixtral(dense: _Settings, options: UpcycleOptions) -> dict[str, Any]:
    window = dense["sliding_window"] if dense["model_type"] == "mistral" else None
    return {
        "num_local_experts": options.experts,
        "intermediate_size": dense["intermediate_size"],
        "sliding_window": window,
    }


def _qwen(dense: _Settings, options: UpcycleOptions) -> dict[str, Any]:
    return {
        "num_experts": options.experts,
        "moe_intermediate_size": dense["intermediate_size"],
        "intermediate_size": dense["intermediate_size"],
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
    }


def _qwen2_moe(dense: _Settings, options: UpcycleOptions) -> dict[str, Any]:
    biased = dense["model_type"] == "qwen2"
    return {**_qwen(dense, options), "shared_expert_intermediate_size": SHARED, "qkv_bias": biased}


def _qwen3_moe(dense: _Settings, options: UpcycleOptions) -> dict[str, Any]:
    return {**_qwen(dense, options), "attention_bias": dense["attention_bias"]}


#: Dense type -> sparse types that compute the same, with their settings, the best supported first.
TARGETS: Mapping[str, Mapping[str, Callable[[_Settings, UpcycleOptions], dict[str, Any]]]] = {
    "llama": {"mixtral": _mixtral, "qwen2_moe": _qwen2_moe},
    "mistral": {"mixtral": _mixtral},
    "qwen2": {"qwen2_moe": _qwen2_moe},
    "qwen3": {"qwen3_moe": _qwen3_moe},
}
_NORMS = "norms its queries and keys, and no weight of such a norm leaves those of {dense} as they are"
#: Sparse types that a dense one has no exact map to, and why.
INEXACT = {"qwen3_moe": _NORMS, "olmoe": _NORMS}


def sparse_config(dense: PretrainedConfig, options: UpcycleOptions, where: str) -> PretrainedConfig:
    """The config of the sparse model. ``where`` names the dense one in messages.

    Raises UsageError where the family has no sparse model that computes the same, with the reason, and for options that
    no model can have.
    """
    _check_options(options)
    settings = dense.to_dict()
    kind = dense.model_type
    if kind not in TARGETS:
        raise UsageError(
            f"{where} is of type {kind!r}, and a sparse model that computes the same is known for "
            f"{', '.join(TARGETS)} only"
        )
    target = options.target or next(iter(TARGETS[kind]))
    if target not in TARGETS[kind]:
        why = INEXACT.get(target, "is no sparse model that {dense} has an exact map to").format(dense=kind)
        others = ", ".join(TARGETS[kind])
        raise UsageError(f"--to {target}: {target} {why}{nearest(target, TARGETS[kind])}; use {others}")
    refused = {
        "mlp_bias": "its feed-forward networks have biases, which experts have not",
        "use_sliding_window": "its layers alternate with a sliding window, which the sparse type counts otherwise",
    }
    if target in {"mixtral", "qwen2_moe"}:
        refused["attention_bias"] = f"its attention has biases, which {target} has not"
    for name, why in refused.items():
        if settings.get(name):
            raise UsageError(f"{where} can't be upcycled exactly to {target}: {why} ({name} = true)")
    taken = {name: settings[name] for name in _TAKEN_OVER if name in settings}
    own = TARGETS[kind][target](settings, options)
    try:
        config: PretrainedConfig = AutoConfig.for_model(target, **taken, **own, num_experts_per_tok=options.top_k)
    except (ValueError, StrictDataclassError) as error:
        raise UsageError(f"{where} can't be upcycled to {target}: {str(error).splitlines()[0]}") from error
    check_supported(config, where)
    return config


def _check_options(options: UpcycleOptions) -> None:
    if options.top_k < 2:
        raise UsageError(
            f"--top-k {options.top_k}: the weight of a single expert, normalised, is always 1, so that no router "
            "would learn; use 2 or more"
        )
    if options.experts < options.top_k:
        raise UsageError(f"--experts {options.experts} is less than --top-k {options.top_k}")
    for name, value in {"--noise": options.noise, "--router-std": options.router_std}.items():
        if not 0 <= value < float("inf"):
            raise UsageError(f"{name} {value}: a standard deviation is 0 or more")


def on_meta(config: PretrainedConfig) -> PreTrainedModel:
    """A model of ``config`` without numbers."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    return model


def sparse_tensors(
    dense: Mapping[str, Tensor], sparse: PreTrainedModel, options: UpcycleOptions, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of ``sparse`` (on the meta device), by transformers' names, in ``dtype``: made when it is asked for.

    ``dense``: the dense model's tensors. Raises UsageError where one is missing or has another shape.
    """
    for name, shape in ((name, one.shape) for name, one in sparse.state_dict().items()):
        at, _, inside = name.partition(".mlp.")
        if inside == "experts.gate_up_proj":
            one = _experts(
                torch.cat([_of(dense, f"{at}.mlp.{part}_proj.weight") for part in ("gate", "up")]), name, options
            )
        elif inside == "experts.down_proj":
            one = _experts(_of(dense, f"{at}.mlp.down_proj.weight"), name, options)
        elif inside == "gate.weight":
            one = _normal(name, shape, options) * options.router_std
        elif inside.startswith("shared_expert"):
            one = torch.zeros(shape)
        else:
            one = _of(dense, name)
        if one.shape != shape:
            raise UsageError(f"{name} would be {list(one.shape)}, and {sparse.config.model_type} has {list(shape)}")
        yield name, one.to(dtype)


def _of(dense: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in dense:
        raise UsageError(f"the dense model has no tensor {name}, which the sparse one needs")
    return dense[name]


def _experts(one: Tensor, name: str, options: UpcycleOptions) -> Tensor:
    """``one`` for each expert, [E, …], each with noise of its own."""
    copies = one.expand(options.experts, *one.shape)
    if not options.noise:
        return copies
    return torch.stack(
        [
            copy + _normal(f"{name}.{expert}", one.shape, options) * options.noise
            for expert, copy in enumerate(copies.float())
        ]
    )


def _normal(name: str, shape: tuple[int, ...], options: UpcycleOptions) -> Tensor:
    """Standard normal numbers, float32, that depend on the seed and the tensor's name alone."""
    digest = hashlib.sha256(f"{options.seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(shape, generator=generator)

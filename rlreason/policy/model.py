"""Building models from a config, and what can be counted of any. One of the few files that touch torch models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from rlreason.errors import UsageError
from rlreason.policy.attention import ATTENTION
from rlreason.policy.support import check_supported, own_attention
from rlreason.routing import chosen_count, expert_count
from rlreason.wide_routers import wide_names

if TYPE_CHECKING:
    from rlreason.config import PolicyConfig


def quiet_loading() -> None:
    """No progress bars of transformers: the run has its own."""
    logging.disable_progress_bar()


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """What a model computes in: "auto" is bfloat16 on an accelerator and float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def default_device() -> torch.device:
    """The accelerator of this process where there is one, the CPU otherwise."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def build_model(
    policy: PolicyConfig, tokenizer: PreTrainedTokenizerBase, seed: int, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """A fresh model of ``policy.model_type`` with random weights that depend on ``seed`` alone.

    Raises UsageError where transformers knows no such model type or refuses an option, and for a model that would be
    computed wrongly.
    """
    config = fresh_config(policy, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _from_config(config)
    cast_parameters(model, dtype)
    return model.to(device=device)


def fresh_config(policy: PolicyConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> PretrainedConfig:
    """The config of a model built from nothing; ``tokenizer`` gives the vocabulary and the special tokens.

    Raises as ``build_model`` does.
    """
    settings: dict[str, object] = dict(policy.model)
    if tokenizer is not None:
        settings.setdefault("vocab_size", len(tokenizer))
        settings.setdefault("pad_token_id", tokenizer.pad_token_id)
        settings.setdefault("eos_token_id", tokenizer.eos_token_id)
        settings.setdefault("bos_token_id", None)
    where = f"[policy] model_type {policy.model_type!r}"
    try:
        config: PretrainedConfig = AutoConfig.for_model(policy.model_type, **settings)
    except (ValueError, StrictDataclassError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UsageError(f"{where}: {' '.join(lines[:2])}") from error
    check_supported(config, where)
    return config


def _from_config(config: PretrainedConfig) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    except KeyError as error:
        if error.args != (ATTENTION,):
            raise
        raise own_attention(config) from error


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to ``dtype``, buffers and wide routers as they are: what loading a checkpoint in ``dtype`` gives.

    ``Module.to`` would cast the frequencies of rotary embeddings too, and they need float32: a bfloat16 one is off by
    up to 0.4 %, which at position 1000 is another angle altogether.
    """
    wide = wide_names(model)
    for name, parameter in model.named_parameters():
        if name not in wide:
            parameter.data = parameter.data.to(dtype)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """(all parameters, parameters active for one token). Tied weights count once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = expert_count(model)
    if not experts:
        return total, total
    chosen = chosen_count(model)
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return total, total - routed * (experts - chosen) // experts


def generation_eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Every token that the generation config, or the config where it has none, says ends a generation."""
    generation = model.generation_config
    found = None if generation is None else generation.eos_token_id
    found = model.config.eos_token_id if found is None else found
    ids = [] if found is None else found if isinstance(found, list) else [found]
    return tuple(int(one) for one in ids)


def meta_model(policy: PolicyConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedModel:
    """The model that ``policy.model`` describes on the meta device: shapes and counts without any memory.

    Raises as ``build_model`` does, and UsageError for sizes that no model can have.
    """
    config = fresh_config(policy, tokenizer)
    try:
        with torch.device("meta"):
            return _from_config(config)
    except (RuntimeError, ZeroDivisionError) as error:
        raise UsageError(
            f"[policy] model of type {policy.model_type!r} can't be built: {str(error).splitlines()[0]}"
        ) from error

"""Building, loading and saving policies as plain Hugging Face folders. One of the few files that touch torch models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from rlreason.errors import UsageError
from rlreason.policy.attention import ATTENTION

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

    Raises UsageError where transformers knows no such model type or refuses an option.
    """
    settings: dict[str, object] = dict(policy.model)
    settings.setdefault("vocab_size", len(tokenizer))
    settings.setdefault("pad_token_id", tokenizer.pad_token_id)
    settings.setdefault("eos_token_id", tokenizer.eos_token_id)
    settings.setdefault("bos_token_id", None)
    try:
        config = AutoConfig.for_model(policy.model_type, **settings)
    except ValueError as error:
        raise UsageError(f"[policy] model_type {policy.model_type!r}: {str(error).splitlines()[0]}") from error
    config.use_cache = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    cast_parameters(model, dtype)
    return model.to(device=device)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to ``dtype``, buffers as they are: what loading a checkpoint in ``dtype`` gives.

    ``Module.to`` would cast the frequencies of rotary embeddings too, and they need float32: a bfloat16 one is off by
    up to 0.4 %, which at position 1000 is another angle altogether.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def load_model(path: str | Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Load a Hugging Face folder or hub id with its parameters in ``dtype``.

    Raises UsageError naming the path when it can't be read.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype, attn_implementation=ATTENTION)
    except (OSError, ValueError) as error:
        raise UsageError(f"can't load a model from {path}: {str(error).splitlines()[0]}") from error
    return model.to(device=device)


def check_shape(model: PreTrainedModel, expected: Mapping[str, object], path: str) -> None:
    """Raise UsageError where the loaded config differs from what the recipe says of it: another model than meant."""
    config = model.config.to_dict()
    for name, value in expected.items():
        if name in config and config[name] != value:
            raise UsageError(f"{path} has {name} = {config[name]}, but the recipe expects {value}")


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder or hub id. Raises UsageError where there is none or no chat template."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"can't load a tokenizer from {path}: {str(error).splitlines()[0]}") from error
    if tokenizer.chat_template is None:
        raise UsageError(f"the tokenizer in {path} has no chat template; use an instruct model or add one")
    return tokenizer


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), config, tokenizer and chat template: a folder transformers and vLLM load."""
    model.save_pretrained(folder)
    # transformers notes how the tokenizer was loaded, which says nothing of it and differs from process to process.
    for noise in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(noise, None)
    tokenizer.save_pretrained(folder)


def expert_count(model: PreTrainedModel) -> int:
    """Routed experts of a layer; 0 for a dense model. Architectures spell it differently."""
    config = model.config.to_dict()
    spellings = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((int(config[name]) for name in spellings if config.get(name)), 0)


def count_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """(all parameters, parameters active for one token). Tied weights count once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = expert_count(model)
    if not experts:
        return total, total
    chosen = int(model.config.to_dict()["num_experts_per_tok"])
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return total, total - routed * (experts - chosen) // experts


def meta_model(policy: PolicyConfig) -> PreTrainedModel:
    """The model that ``policy.model`` describes on the meta device: shapes and counts without any memory."""
    config = AutoConfig.for_model(policy.model_type, **policy.model)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)

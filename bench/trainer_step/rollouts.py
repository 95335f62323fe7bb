"""Rollouts that both trainers replay, and the models they train: the same bits for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

GROUP = 8
MODELS: dict[str, dict[str, Any]] = {
    # The quickstart's student
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 256,
    },
    "small": {
        "vocab_size": 512,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 768,
    },
    # Qwen3-0.6B's shape, 4 of its 28 layers
    "wide": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How long prompts and completions are, drawn evenly between the bounds. Example: groups=4, prompt=(16, 64)."""

    groups: int
    prompt: tuple[int, int]
    completion: tuple[int, int]


SHAPES: dict[tuple[str, str], Shape] = {
    ("tiny", "ragged"): Shape(groups=4, prompt=(16, 64), completion=(16, 64)),
    ("tiny", "lean"): Shape(groups=4, prompt=(2, 2), completion=(64, 64)),
    ("small", "ragged"): Shape(groups=4, prompt=(16, 64), completion=(16, 64)),
    ("small", "lean"): Shape(groups=4, prompt=(2, 2), completion=(64, 64)),
    ("wide", "ragged"): Shape(groups=2, prompt=(16, 64), completion=(16, 64)),
    ("wide", "lean"): Shape(groups=2, prompt=(2, 2), completion=(64, 64)),
}


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """``GROUP`` completions of each prompt, group after group; rewards differ within each group."""

    prompts: list[list[int]]
    completions: list[list[int]]
    rewards: list[float]


def make_model(size: str, attention: str) -> PreTrainedModel:
    """Qwen3 in float32 with the shape of ``size`` and random weights, always the same."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", **MODELS[size], tie_word_embeddings=True, pad_token_id=0, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
    model.config.use_cache = False
    return model


def make_rollouts(size: str, kind: str) -> Rollouts:
    """Token ids from one seed. Id 1 ends a sequence and occurs at its end alone."""
    shape, vocabulary = SHAPES[size, kind], MODELS[size]["vocab_size"]
    draw = np.random.default_rng(0)

    def ids(bounds: tuple[int, int]) -> list[int]:
        return [int(i) for i in draw.integers(2, vocabulary, draw.integers(bounds[0], bounds[1] + 1))]

    prompts, completions, rewards = [], [], []
    for _ in range(shape.groups):
        prompts.append(ids(shape.prompt))
        completions += [[*ids(shape.completion)[:-1], 1] for _ in range(GROUP)]
        rewards += [1.0, 0.0, *(float(r) for r in draw.integers(0, 2, GROUP - 2))]
    return Rollouts(prompts=prompts, completions=completions, rewards=rewards)

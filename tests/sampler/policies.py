"""Small models that vLLM's CPU kernels run, and problems, for the tests of engines and pools."""

from __future__ import annotations

import torch

from rlreason.config import PolicyConfig
from rlreason.data.procedural import make_task
from rlreason.policy.policies import Policy, fresh_policy

TASK = make_task("arithmetic", {"min_terms": 2, "max_terms": 6}, seed=0)
PROBLEMS = [TASK.problem("train", index) for index in range(24)]
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
SHAPES = {
    "qwen3": {**SHAPE, "tie_word_embeddings": True},
    "qwen3_moe": {
        **SHAPE,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    },
}


def make_policy(kind: str, seed: int = 0) -> Policy:
    """Dense with a tied head, or MoE with a head of its own, from random weights."""
    config = PolicyConfig(model_type=kind, model=SHAPES[kind])
    return fresh_policy(config, TASK.alphabet, (), seed, torch.device("cpu"))


def nudge(policy: Policy, size: float, seed: int) -> None:
    """Add noise to every weight, as a training step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))

"""The models and problems of the rollout bench."""

from __future__ import annotations

import torch

from rlreason.config import PolicyConfig
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.tasks.procedural import make_task

TASK = make_task("arithmetic", {"min_terms": 3, "max_terms": 6}, seed=0)
PROBLEMS = [TASK.problem("train", index) for index in range(64)]
#: Sequences decoded together: all of a round.
SEQUENCES = 512
QUICKSTART = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 256, "tie_word_embeddings": True, "max_position_embeddings": 256, "initializer_range": 0.06,
}  # fmt: skip
LARGER = {**QUICKSTART, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
          "head_dim": 64, "intermediate_size": 512, "initializer_range": 0.05}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
MODELS = {
    "quickstart's MoE (1.3 M)": ("qwen3_moe", {**QUICKSTART, **EXPERTS, "moe_intermediate_size": 128}),
    "quickstart's student": ("qwen3", QUICKSTART),
    "MoE of 7 M": ("qwen3_moe", {**LARGER, **EXPERTS, "moe_intermediate_size": 256}),
}


def make_policy(name: str) -> Policy:
    """The model with random weights that depend on its name alone."""
    kind, shape = MODELS[name]
    config = PolicyConfig(model_type=kind, model=dict(shape))
    return fresh_policy(config, TASK.alphabet, (), 0, torch.device("cpu"))

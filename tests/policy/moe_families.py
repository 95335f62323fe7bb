"""Tiny models of experts, one a family, and passes through them: shared by tests of routers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.config import PolicyConfig
from rlreason.policy.logprobs import body_of
from rlreason.policy.policies import fresh_policy
from rlreason.routing import RoutedPass, Routers, find_routers, options_of

CPU = torch.device("cpu")
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 6, "moe_intermediate_size": 16, "head_dim": 16, "norm_topk_prob": True},
    "olmoe": {"num_experts": 6, "norm_topk_prob": False},
    "mixtral": {"num_local_experts": 6},
    "qwen2_moe": {"num_experts": 6, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "glm4_moe": {"n_routed_experts": 6, "moe_intermediate_size": 16, "head_dim": 16, "first_k_dense_replace": 0},
    "llama4_text": {
        "num_local_experts": 6,
        "num_experts_per_tok": 1,
        "head_dim": 16,
        "intermediate_size_mlp": 32,
        "moe_layers": [0, 1],
    },
    "afmoe": {"num_experts": 6, "moe_intermediate_size": 16, "head_dim": 16, "num_dense_layers": 0},
    "hunyuan_v1_moe": {"num_experts": 6, "moe_topk": 2, "head_dim": 16},
    "ernie4_5_moe": {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0},
    "gemma4_text": {
        "num_experts": 6,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
        "enable_moe_block": True,
        "head_dim": 16,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
    },
    # Two groups of three experts, of which one is taken: a top-k over groups besides that over experts.
    "deepseek_v3": {
        "n_routed_experts": 6,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
}


def model_of(kind: str, **changes: Any) -> PreTrainedModel:
    config = PolicyConfig(model_type=kind, model={**BASE, **FAMILIES.get(kind, {}), **changes})
    return fresh_policy(config, "0123456789", (), 0, CPU).model.eval()


def routers_of(model: PreTrainedModel) -> Routers:
    routers = find_routers(model)
    assert routers is not None
    return routers


@torch.no_grad()
def states(model: PreTrainedModel, routed: RoutedPass | None = None) -> Tensor:
    body = body_of(model)
    assert body is not None
    hidden: Tensor = body(input_ids=IDS, use_cache=False, **options_of(routed)).last_hidden_state
    return hidden


def forced(experts_NLK: Tensor) -> RoutedPass:
    return RoutedPass(given_NLK=experts_NLK.to(torch.uint8), replay=True)

"""Tiny models of each family of docs/models.md's second table, of sizes that vLLM's CPU kernels take."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
PLAIN = {**{key: value for key, value in BASE.items() if key != "head_dim"}, "num_attention_heads": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    **PLAIN,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
}
#: Name in the table -> (model type, options of its config).
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-MoE": ("qwen3_moe", {**BASE, **MOE, "norm_topk_prob": True}),
    "Qwen2-MoE": ("qwen2_moe", {**PLAIN, **MOE, "shared_expert_intermediate_size": 32}),
    "DeepSeek-V2": ("deepseek_v2", {**LATENT, "topk_method": "greedy"}),
    "DeepSeek-V3": ("deepseek_v3", {**LATENT, "topk_method": "noaux_tc"}),
    "OLMoE": ("olmoe", {**PLAIN, "num_experts": 4, "num_experts_per_tok": 2}),
    "Mixtral": ("mixtral", {**PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "GLM-4-MoE": (
        "glm4_moe",
        {**BASE, **MOE, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "gpt-oss": ("gpt_oss", {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Llama 4": ("llama4_text", {**BASE, "intermediate_size_mlp": 64, "num_local_experts": 4, "num_experts_per_tok": 1}),
    "Qwen2, Qwen2.5": ("qwen2", PLAIN),
    "Qwen3": ("qwen3", BASE),
    "Llama, Yi": ("llama", PLAIN),
    "GLM-4": ("glm4", BASE),
    "Gemma": ("gemma", BASE),
    "Gemma 3": ("gemma3_text", {**BASE, "sliding_window": 64}),
    "Mistral": ("mistral", PLAIN),
}

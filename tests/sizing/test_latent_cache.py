"""What multi-head latent attention saves (arXiv 2405.04434, section 2.1): the numbers of docs/models.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from rlreason.sizing.engine import cache_bytes
from rlreason.sizing.shape import empty_model, shape_of

ROOT = Path(__file__).parents[2]
#: huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json, of its attention; the rest does not count here.
DEEPSEEK_V3: dict[str, Any] = {
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    "n_group": 1, "topk_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
}  # fmt: skip


def test_the_cache_of_deepseek_v3() -> None:
    shape = shape_of(empty_model(AutoConfig.for_model("deepseek_v3", **DEEPSEEK_V3)))
    latent = cache_bytes(shape, 1, 2)
    heads, layers, key, value = 128, 61, 128 + 64, 128
    assert latent == 2 * layers * (512 + 64) == 70_272
    # The same heads, each with keys and values of its own, and in 8 groups that share them.
    own, grouped = 2 * layers * heads * (key + value), 2 * layers * 8 * (key + value)
    assert (own, grouped) == (4_997_120, 312_320)
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    numbers = (
        f"{latent:,.0f}",
        f"{own:,}",
        f"{grouped:,}",
        f"{own / latent:.0f} times",
        f"{grouped / latent:.1f} times",
    )
    for number in numbers:
        assert number in page
    # Canary: without the rotary key, which is not in the latent.
    assert latent != 2 * layers * 512

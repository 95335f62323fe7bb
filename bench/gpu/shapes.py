"""Shapes of bench/gpu/train.py: those of the models' config.json on the Hugging Face hub, and a small one of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from rlreason.sizing.activations import MicroBatch


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model, how it trains, and the micro-batches of a step."""

    name: str
    family: str
    model: dict[str, Any] = field(hash=False)
    #: Train an adapter of rank 16 beside bfloat16 weights; else all weights, with float32 masters.
    lora: bool
    #: As one FSDP2 shard: 16 bytes a parameter, of which a single process without shards holds 20.
    sharded: bool
    batch: MicroBatch
    micro_batches: int
    checkpointing: bool = True

    def config(self) -> PretrainedConfig:
        config: PretrainedConfig = AutoConfig.for_model(self.family, **self.model)
        return config

    def small(self) -> Shape:
        """The same family and way at a size whose gradients a CPU computes in a second."""
        sizes = {
            "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 32, "intermediate_size": 256, "vocab_size": 512, "max_position_embeddings": 512,
            "initializer_range": 0.1,
        }  # fmt: skip
        if "num_experts" in self.model:
            sizes |= {"moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2}
        batch = MicroBatch(rows=4, group=2, prompt=24, completion=49)
        return replace(self, model={**self.model, **sizes}, batch=batch, micro_batches=2)


#: huggingface.co/Qwen/Qwen3-30B-A3B, Qwen/Qwen2.5-7B, Qwen/Qwen3-32B: config.json.
_QWEN3_30B_A3B = {
    "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
_QWEN25_7B = {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 131072,
}  # fmt: skip
_QWEN3_32B = {
    "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 25600, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
_TINY = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128, "moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2,
    "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip
#: A group of 4 behind one prompt of 512: 16,124 computed positions.
_FOUR = MicroBatch(rows=4, group=4, prompt=512, completion=3904)
_SMALL = MicroBatch(rows=4, group=4, prompt=32, completion=129)

SHAPES = {
    one.name: one
    for one in (
        Shape(name="30b-a3b-lora", family="qwen3_moe", model=_QWEN3_30B_A3B, lora=True, sharded=False, batch=_FOUR,
              micro_batches=2),
        Shape(name="7b-full", family="qwen2", model=_QWEN25_7B, lora=False, sharded=True,
              batch=MicroBatch(rows=2, group=2, prompt=512, completion=3840), micro_batches=2),
        Shape(name="32b-lora", family="qwen3", model=_QWEN3_32B, lora=True, sharded=False, batch=_FOUR,
              micro_batches=1),
        Shape(name="tiny", family="qwen3_moe", model=_TINY, lora=True, sharded=False, batch=_SMALL, micro_batches=2),
        Shape(name="tiny-full", family="qwen3_moe", model=_TINY, lora=False, sharded=True, batch=_SMALL,
              micro_batches=2),
    )
}  # fmt: skip

"""Formulas of FLOPs beside torch's counter, on models that are really computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from rlreason.objective.batch import Batch
from rlreason.policy.attention import ATTENTION
from rlreason.policy.batch import collate, pack, supervised_sample
from rlreason.policy.logprobs import plain_head
from rlreason.policy.lora import LoraOptions, add_adapter
from rlreason.sizing import flops
from rlreason.sizing.activations import MicroBatch
from rlreason.sizing.shape import ModelShape, shape_of
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.options import checkpoint_activations
from rlreason.trainer.protocol import Models

BATCH = MicroBatch(rows=4, group=2, prompt=12, completion=21)
WIDE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 160, "vocab_size": 300, "max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {"tie_word_embeddings": True},
    "qwen3_moe": {"moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "deepseek_v3": {
        "moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 24, "q_lora_rank": 32,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8,
    },
}  # fmt: skip


def model(family: str) -> Any:
    # torch counts no grouped product of experts; one product an expert is the same work.
    config = AutoConfig.for_model(family, **(WIDE | FAMILIES[family]))
    made = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, experts_implementation="eager")
    return made.train()


def batch(*, packed: bool) -> Batch:
    rows = []
    for row in range(BATCH.rows):
        ids = [row // BATCH.group] * BATCH.prompt + [7] * BATCH.completion
        rows.append(supervised_sample(ids, [0] * BATCH.prompt + [1] * BATCH.completion))
    return (pack if packed else collate)(rows, 0, torch.device("cpu"))


def counted(made: Any, *, packed: bool, backward: bool) -> int:
    loss = CrossEntropyLoss(denominator=1.0)
    plain_head(made)  # a trial of its own, which is no part of a step
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no flash kernel of CPUs
        if backward:
            loss(Models(policy=made), batch(packed=packed)).loss.backward()
        else:
            made.base_model(batch(packed=packed).token_ids_BT, use_cache=False)
    return int(counter.get_total_flops())


def forward(shape: ModelShape, *, packed: bool) -> flops.Pass:
    if packed:
        return flops.forward_packed(shape, BATCH)
    length = BATCH.prompt + BATCH.completion - 1  # a padded table; the head of loss tokens only
    return flops.pass_of(shape, BATCH.rows * length, BATCH.rows * length**2, BATCH.loss_rows)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_what_torch_counts(family: str, packed: bool) -> None:
    made = model(family)
    expected = flops.training(forward(shape_of(made), packed=packed))
    assert counted(made, packed=packed, backward=True) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_computes_the_layers_again(family: str) -> None:
    made = model(family)
    checkpoint_activations(made)
    expected = flops.training(forward(shape_of(made), packed=True), recompute=True)
    assert counted(made, packed=True, backward=True) == pytest.approx(expected, rel=0.02)


def test_frozen_weights_have_no_gradient() -> None:
    made = model("qwen3")
    shape = shape_of(made)
    add_adapter(made, LoraOptions(rank=1, alpha=1.0))
    expected = flops.training(forward(shape, packed=True), lora=True)
    found = counted(made, packed=True, backward=True)
    adapter = 6 * sum(one.numel() for one in made.parameters() if one.requires_grad) * BATCH.tokens
    # What enters the first layer needs no gradient: one product of its queries, keys and values less.
    first = 2 * BATCH.tokens * (64 * 64 + 2 * 64 * 32)
    assert found == pytest.approx(expected + adapter - first, rel=0.02)
    assert shape_of(made) == shape  # an adapter is no part of the model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forgotten_part_is_seen(family: str) -> None:
    """The canary: without attention, or without the head, the numbers differ by more than the tolerance."""
    shape = shape_of(model(family))
    whole = forward(shape, packed=False)
    for part in (whole.attention, whole.head):
        assert part > 0.04 * whole.total


def test_active_parameters_by_hand() -> None:
    shape = shape_of(model("qwen3_moe"))
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 2 * 16  # q, k and v, o, and the norms of heads
    layer = attention + 2 * 64 + 64 * 6  # two norms, router
    expert = 3 * 64 * 48
    assert shape.total == 3 * (layer + 6 * expert) + 64 + 2 * 300 * 64
    assert shape.active == 3 * (layer + 2 * expert) + 64 + 2 * 300 * 64
    assert shape.layer_products == 3 * (layer - 2 * 16 - 2 * 64 + 2 * expert)
    assert (shape.routed, shape.head, shape.outside) == (3 * 6 * expert, 300 * 64, 64 + 2 * 300 * 64)

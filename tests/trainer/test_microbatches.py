"""Gradients of micro-batches: the same bits for one thread and for several, and those of one large batch."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rlreason.config import PolicyConfig
from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.loss import supervised_loss
from rlreason.policy.batch import make_batches, supervised_sample
from rlreason.policy.logprobs import target_logits, target_logprobs
from rlreason.policy.policies import fresh_policy
from rlreason.trainer.masters import Masters
from rlreason.trainer.microbatches import accumulate_gradients, in_turn

CPU = torch.device("cpu")
MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": True,
}
ROWS = [supervised_sample([3 + (i * t) % 9 for t in range(4 + i % 7)], [0] + [1] * (3 + i % 7)) for i in range(24)]
TOKENS = float(sum(int(row.loss_mask.sum()) for row in ROWS))


def gradients(max_tokens: int, threads: int) -> tuple[list[torch.Tensor], float]:
    policy = fresh_policy(PolicyConfig(model_type="qwen3_moe", model=MODEL), "0123456789", (), 0, CPU)

    def loss_of(batch: Batch) -> LossOutput:
        logprobs = target_logprobs(target_logits(policy.model, batch), batch)
        return supervised_loss(logprobs, batch.loss_mask_BT, TOKENS)

    masters = Masters(policy.model, torch.float32)
    outputs = accumulate_gradients(policy.model, masters, make_batches(ROWS, max_tokens, 0, CPU), loss_of, threads)
    assert not any(output.loss.requires_grad for output in outputs)
    grads = [parameter.grad for parameter in policy.model.parameters() if parameter.grad is not None]
    return grads, float(sum(output.loss for output in outputs))


def test_threads_change_no_bit() -> None:
    torch.set_num_threads(1)
    (one, loss_one), (two, loss_two) = gradients(30, 1), gradients(30, 2)
    assert loss_one == loss_two
    for left, right in zip(one, two, strict=True):
        assert torch.equal(left, right)


def test_few_gradients_wait_to_be_added() -> None:
    """They are as large as the model. While the first micro-batch takes long, two threads make two more sets."""
    policy = fresh_policy(PolicyConfig(model_type="qwen3_moe", model=MODEL), "0123456789", (), 0, CPU)
    batches, begun, further = make_batches(ROWS, 30, 0, CPU), [], threading.Event()
    assert len(batches) == 6

    def loss_of(batch: Batch) -> LossOutput:
        begun.append(batch)
        if len(begun) == 4:
            further.set()
        if batch is batches[0]:
            further.wait(2.0)
            assert len(begun) == 3  # canary: 4 and more where all are handed out at once
        return supervised_loss(target_logprobs(target_logits(policy.model, batch), batch), batch.loss_mask_BT, TOKENS)

    assert len(accumulate_gradients(policy.model, Masters(policy.model, torch.float32), batches, loss_of, 2)) == 6
    assert len(begun) == len(batches)


def test_micro_batches_sum_to_the_whole() -> None:
    (small, loss_small), (whole, loss_whole) = gradients(30, 1), gradients(10**6, 1)
    assert abs(loss_small - loss_whole) < 1e-5
    for left, right in zip(small, whole, strict=True):
        assert torch.allclose(left, right, atol=1e-6)
    # Canary: a batch left out is far outside the tolerance.
    assert not all(torch.allclose(left * 23 / 24, right, atol=1e-6) for left, right in zip(small, whole, strict=True))


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
         "intermediate_size": 16, "vocab_size": 30}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("qwen3", {"tie_word_embeddings": True}),
    "untied": ("qwen3", {"tie_word_embeddings": False}),
    "tied, with a padding row": ("qwen3", {"tie_word_embeddings": True, "pad_token_id": 4}),
    "untied, with a padding row": ("qwen3", {"tie_word_embeddings": False, "pad_token_id": 4}),
    "more than a table": ("gemma3_text", {"tie_word_embeddings": True}),
    "frozen": ("qwen3", {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_an_embedding_learns_what_autograd_says(case: str) -> None:
    """Rows hold ids 3 to 11, so the padding row is looked up."""
    kind, options = CASES[case]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **options))
    table = model.get_input_embeddings()
    table.weight.requires_grad_(case != "frozen")
    assert (type(table) is nn.Embedding) == (case != "more than a table")
    batches = make_batches(ROWS, 40, 0, CPU)
    assert len(batches) > 2

    def loss_of(batch: Batch) -> LossOutput:
        return supervised_loss(target_logprobs(target_logits(model, batch), batch), batch.loss_mask_BT, TOKENS)

    masters = Masters(model, torch.float32)
    in_turn(masters, batches, loss_of)  # autograd's own way, that of accelerators
    expected = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    accumulate_gradients(model, masters, batches, loss_of, threads=2)
    found = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-7, name
    assert not table._forward_hooks
    if case != "frozen":  # canary: without the rows that were looked up it would be far off
        assert expected["model.embed_tokens.weight"].abs().max() > 1e-4
    if case == "untied, with a padding row":
        assert not found["model.embed_tokens.weight"][4].any()
        assert found["model.embed_tokens.weight"][5].any()

"""Gradients of micro-batches: the same bits for one thread and for several, and those of one large batch."""

from __future__ import annotations

import torch

from rlreason.config import PolicyConfig
from rlreason.objective.loss import supervised_loss
from rlreason.policy.batch import make_batches, supervised_row
from rlreason.policy.logprobs import target_logits, target_logprobs
from rlreason.policy.microbatches import backward_all
from rlreason.policy.policies import fresh_policy
from rlreason.types import Batch, LossOutput

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
ROWS = [supervised_row([3 + (i * t) % 9 for t in range(4 + i % 7)], [0] + [1] * (3 + i % 7)) for i in range(24)]
TOKENS = float(sum(sum(row.loss_mask) for row in ROWS))


def gradients(max_tokens: int, threads: int) -> tuple[list[torch.Tensor], float]:
    policy = fresh_policy(PolicyConfig(model_type="qwen3_moe", model=MODEL), "0123456789", (), 0, CPU)

    def loss_of(index: int, batch: Batch) -> LossOutput:
        logprobs = target_logprobs(target_logits(policy.model, batch), batch)
        return supervised_loss(logprobs, batch.loss_mask_BT, TOKENS)

    outputs = backward_all(policy.model, make_batches(ROWS, max_tokens, 0, CPU), loss_of, threads)
    assert not any(output.loss.requires_grad for output in outputs)
    grads = [parameter.grad for parameter in policy.model.parameters() if parameter.grad is not None]
    return grads, float(sum(output.loss for output in outputs))


def test_threads_change_no_bit() -> None:
    torch.set_num_threads(1)
    (one, loss_one), (two, loss_two) = gradients(30, 1), gradients(30, 2)
    assert loss_one == loss_two
    for left, right in zip(one, two, strict=True):
        assert torch.equal(left, right)


def test_micro_batches_sum_to_the_whole() -> None:
    (small, loss_small), (whole, loss_whole) = gradients(30, 1), gradients(10**6, 1)
    assert abs(loss_small - loss_whole) < 1e-5
    for left, right in zip(small, whole, strict=True):
        assert torch.allclose(left, right, atol=1e-6)
    # Canary: a batch left out is far outside the tolerance.
    assert not all(torch.allclose(left * 23 / 24, right, atol=1e-6) for left, right in zip(small, whole, strict=True))

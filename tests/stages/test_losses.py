"""Forward pass and loss of real models: the fused head where it is plain, whole logits where it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlreason.objective.loss import policy_loss, supervised_loss
from rlreason.objective.presets import PRESETS
from rlreason.policy.batch import collate, rollout_row, supervised_row
from rlreason.policy.logprobs import plain_head, target_entropy, target_logits, target_logprobs
from rlreason.stages.losses import demonstration_loss, loss_logprobs, rollout_loss
from rlreason.types import Batch, Completion

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
    "initializer_range": 0.2,
}
MIXTURE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
#: Whether the head is a plain product.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "dense, tied": ("qwen3", {"tie_word_embeddings": True}, True),
    "dense, untied": ("llama", {"tie_word_embeddings": False}, True),
    "experts": ("qwen3_moe", MIXTURE, True),
    "soft cap": ("gemma2", {"final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}, False),
    "scaled": ("granite", {"logits_scaling": 4.0}, False),
    "biased": ("phi", {}, False),
}


def make_model(name: str) -> PreTrainedModel:
    kind, extra, _ = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **extra}))


def make_batch() -> Batch:
    rows = [
        rollout_row(
            Completion(
                prompt_ids=tuple(range(3, 5 + i)),
                token_ids=tuple(10 + (7 * i * t) % 29 for t in range(3 + i)),
                logprobs_T=tuple(-3.0 - 0.1 * t for t in range(3 + i)),
                text="",
                finish_reason="stop",
            ),
            advantage=(-1.0) ** i * (1 + i),
            weight=0.05,
            group_id="g",
        )
        for i in range(4)
    ]
    return collate(rows, 0, CPU)


def gradients(loss: Tensor, model: PreTrainedModel) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_whole_logits(name: str) -> None:
    model, batch = make_model(name), make_batch()
    assert (plain_head(model) is not None) == MODELS[name][2]
    old_BT = batch.sampler_logprobs_BT + 0.1
    for temperature in (1.0, 0.7):
        output = rollout_loss(model, batch, PRESETS["dapo"], temperature, old_BT)
        logits_BTV = target_logits(model, batch) / temperature
        plain = policy_loss(target_logprobs(logits_BTV, batch), old_BT, batch, PRESETS["dapo"])
        assert float(output.loss.detach()) == pytest.approx(float(plain.loss.detach()), abs=1e-6)
        entropy = float((target_entropy(logits_BTV) * batch.loss_mask_BT).sum())
        assert float(output.sums["entropy"]) == pytest.approx(entropy, rel=1e-5)
        theirs = gradients(plain.loss, model)
        for one, other in zip(gradients(output.loss, model), theirs, strict=True):
            assert torch.allclose(one, other, atol=1e-5 * max(1.0, float(other.abs().max())))
    # Canary: the temperature that is left out is far outside of the tolerance.
    warm = rollout_loss(model, batch, PRESETS["dapo"], 1.0, old_BT)
    assert abs(float(warm.loss.detach()) - float(plain.loss.detach())) > 1e-4


@pytest.mark.parametrize("name", ["dense, tied", "soft cap"])
def test_supervised_loss_and_log_probabilities(name: str) -> None:
    model, batch = make_model(name), make_batch()
    mask_BT = batch.loss_mask_BT
    now_BT = target_logprobs(target_logits(model, batch), batch)
    plain = supervised_loss(now_BT, mask_BT, 9.0)
    output = demonstration_loss(model, batch, 9.0)
    assert float(output.loss.detach()) == pytest.approx(float(plain.loss.detach()), abs=1e-5)
    for one, other in zip(gradients(output.loss, model), gradients(plain.loss, model), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    logs_BT = torch.log_softmax(target_logits(model, batch).double() / 0.5, dim=-1)
    picked_BT = logs_BT.gather(-1, batch.targets_BT.unsqueeze(-1)).squeeze(-1)
    found_BT = loss_logprobs(model, batch, temperature=0.5)
    assert torch.allclose(found_BT.double(), picked_BT * mask_BT, atol=1e-5)
    assert not torch.allclose(loss_logprobs(model, batch).double(), picked_BT * mask_BT, atol=1e-3)  # canary


def test_asking_for_the_head_changes_nothing() -> None:
    model = make_model("experts").train()
    before = target_logits(model, make_batch())
    assert plain_head(model) is not None
    assert model.training
    assert torch.equal(target_logits(model, make_batch()), before)


def test_padding_changes_no_log_probability() -> None:
    model = make_model("experts")
    short, long = supervised_row((8, 9, 10, 11), (0, 1, 1, 1)), supervised_row(range(3, 17), [1] * 14)
    alone = loss_logprobs(model, collate([short], 0, CPU))[0]
    padded = loss_logprobs(model, collate([short, long], 0, CPU))[0, : len(alone)]
    assert torch.allclose(alone, padded, atol=1e-6)


def test_no_loss_token_is_a_zero_with_a_gradient() -> None:
    model, batch = make_model("dense, tied"), make_batch()
    empty = replace(batch, loss_mask_BT=torch.zeros_like(batch.loss_mask_BT))
    output = rollout_loss(model, empty, PRESETS["grpo"], 1.0)
    assert float(output.loss.detach()) == 0.0
    assert not any(grad.any() for grad in gradients(output.loss, model))

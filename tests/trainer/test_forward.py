"""Forward pass and loss of real models: the fused head where it is plain, whole logits where it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.loss import policy_loss, supervised_loss
from rlreason.objective.presets import PRESETS
from rlreason.policy.attention import ATTENTION
from rlreason.policy.batch import collate, make_batches, pack, rollout_sample, supervised_sample
from rlreason.policy.logprobs import plain_head, takes_packed, target_entropy, target_logits, target_logprobs
from rlreason.trainer.forward import CrossEntropyLoss, PolicyGradientLoss, loss_logprobs
from rlreason.trainer.protocol import Models
from rlreason.types import Completion, TrainingSample

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
    "mixture, no query compression": (
        "deepseek_v3",
        {
            **MIXTURE,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": None,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "head_dim": 8,
            "num_key_value_heads": 2,
        },
        True,
    ),
    "soft cap": (
        "gemma2",
        {"final_logit_softcapping": 5.0, "attn_logit_softcapping": None, "query_pre_attn_scalar": 16},
        False,
    ),
    "scaled": ("granite", {"logits_scaling": 4.0}, False),
    "biased": ("phi", {}, False),
}


def make_model(name: str) -> PreTrainedModel:
    kind, extra, _ = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **{**SHAPE, **extra}), attn_implementation=ATTENTION
        )


def make_batch() -> Batch:
    rows = [
        rollout_sample(
            Completion(
                prompt_ids=tuple(range(3, 5 + i)),
                token_ids=tuple(10 + (7 * i * t) % 29 for t in range(3 + i)),
                sampler_logprobs=tuple(-3.0 - 0.1 * t for t in range(3 + i)),
                text="",
                finish_reason="stop",
            ),
            advantages=(-1.0) ** i * (1 + i),
            weights=0.05,
            group_id="g",
        )
        for i in range(4)
    ]
    return collate(rows, 0, CPU)


def rollout_loss(
    model: PreTrainedModel, batch: Batch, preset: str, temperature: float, old_BT: Tensor | None = None
) -> LossOutput:
    loss = PolicyGradientLoss(spec=PRESETS[preset], temperature=temperature)
    return loss(Models(policy=model), replace(batch, old_logprobs_BT=old_BT))


def gradients(loss: Tensor, model: PreTrainedModel) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_whole_logits(name: str) -> None:
    model, batch = make_model(name), make_batch()
    assert (plain_head(model) is not None) == MODELS[name][2]
    old_BT = batch.sampler_logprobs_BT + 0.1
    for temperature in (1.0, 0.7):
        output = rollout_loss(model, batch, "dapo", temperature, old_BT)
        logits_BTV = target_logits(model, batch) / temperature
        plain = policy_loss(target_logprobs(logits_BTV, batch), old_BT, batch, PRESETS["dapo"])
        assert float(output.loss.detach()) == pytest.approx(float(plain.loss.detach()), abs=1e-6)
        entropy = float((target_entropy(logits_BTV.detach()) * batch.loss_mask_BT).sum())
        assert float(output.sums["entropy"]) == pytest.approx(entropy, rel=1e-5)
        theirs = gradients(plain.loss, model)
        for one, other in zip(gradients(output.loss, model), theirs, strict=True):
            assert torch.allclose(one, other, atol=1e-5 * max(1.0, float(other.abs().max())))
    # Canary: the temperature that is left out is far outside of the tolerance.
    warm = rollout_loss(model, batch, "dapo", 1.0, old_BT)
    assert abs(float(warm.loss.detach()) - float(plain.loss.detach())) > 1e-4


@pytest.mark.parametrize("name", ["dense, tied", "soft cap"])
def test_supervised_loss_and_log_probabilities(name: str) -> None:
    model, batch = make_model(name), make_batch()
    mask_BT = batch.loss_mask_BT
    now_BT = target_logprobs(target_logits(model, batch), batch)
    plain = supervised_loss(now_BT, mask_BT, 9.0)
    output = CrossEntropyLoss(denominator=9.0)(Models(policy=model), batch)
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
    short, long = supervised_sample((8, 9, 10, 11), (0, 1, 1, 1)), supervised_sample(range(3, 17), [1] * 14)
    alone = loss_logprobs(model, collate([short], 0, CPU))[0]
    padded = loss_logprobs(model, collate([short, long], 0, CPU))[0, : len(alone)]
    assert torch.allclose(alone, padded, atol=1e-6)


def test_no_loss_token_is_a_zero_with_a_gradient() -> None:
    model, batch = make_model("dense, tied"), make_batch()
    empty = replace(batch, loss_mask_BT=torch.zeros_like(batch.loss_mask_BT), loss_rows_R=None)
    output = rollout_loss(model, empty, "grpo", 1.0)
    assert float(output.loss.detach()) == 0.0
    assert not any(grad.any() for grad in gradients(output.loss, model))


def rollouts(prompts: list[int], completions: list[int]) -> list[TrainingSample]:
    """Rows of ``prompts`` tokens before ``completions`` tokens; rows of one prompt length have one prompt."""
    rows = []
    for i, (prompt, length) in enumerate(zip(prompts, completions, strict=True)):
        rows.append(
            rollout_sample(
                Completion(
                    prompt_ids=tuple(3 + (prompt * t) % 31 for t in range(prompt)),
                    token_ids=tuple(3 + (5 * i + 7 * t) % 35 for t in range(length)),
                    sampler_logprobs=tuple(-3.0 - 0.1 * t for t in range(length)),
                    text="",
                    finish_reason="stop",
                ),
                advantages=(-1.0) ** i * (1 + i),
                weights=0.05,
                group_id=f"g{prompt}",
            )
        )
    return rows


RAGGED = rollouts([5, 5, 9, 5, 9, 9], [4, 1, 6, 3, 2, 6])
EVEN = rollouts([5, 5, 5, 5], [4, 1, 6, 3])
SHORT = rollouts([5, 5, 9, 9], [1, 1, 1, 1])
#: Several turns: every third token is not the policy's, and every token has an advantage of its own.
TURNS = [
    replace(
        row,
        loss_mask=row.loss_mask & (np.arange(len(row.token_ids)) % 3 != 1),
        advantages=row.advantages * np.arange(len(row.token_ids)),
    )
    for row in RAGGED
]


def of_step(model: PreTrainedModel, batches: list[Batch], preset: str) -> list[Tensor]:
    """Loss and gradients of a step, π_old a little off."""
    total = []
    for batch in batches:
        output = rollout_loss(model, batch, preset, 0.9, batch.sampler_logprobs_BT + 0.1)
        total.append([output.loss.detach(), *gradients(output.loss, model)])
    return [torch.stack(parts).sum(0) for parts in zip(*total, strict=True)]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1.0)) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("rows", [RAGGED, EVEN, SHORT, TURNS], ids=["ragged", "even", "one token", "turns"])
@pytest.mark.parametrize("name", ["dense, tied", "experts", "mixture, no query compression"])
def test_packed_rows_have_the_loss_and_gradient_of_whole_ones(name: str, rows: list[TrainingSample]) -> None:
    model = make_model(name)
    assert takes_packed(model)
    for preset in ("dapo", "gspo"):
        whole = of_step(model, make_batches(rows, 10**6, 0, CPU), preset)
        for budget in (10**6, 20):
            batches = make_batches(rows, budget, 0, CPU, packed=True)
            assert all(batch.packing is not None for batch in batches)
            assert apart(of_step(model, batches, preset), whole) < 1e-5
    # Canaries: rows that continue another row's prompt; a key too many; a state one token off.
    batch = pack(RAGGED, 0, CPU)
    assert batch.packing is not None
    right = of_step(model, [batch], "dapo")
    for change in (
        {"prompt_of_B": 1 - batch.packing.prompt_of_B},
        {"prompt_lengths_G": batch.packing.prompt_lengths_G + 1 - batch.packing.prompt_lengths_G // 9},
        {"source_BT": batch.packing.source_BT.roll(1, dims=1)},
        {"positions_L": batch.packing.positions_L + (batch.packing.positions_L > 6)},
    ):
        wrong = replace(batch, packing=replace(batch.packing, **change))
        assert apart(of_step(model, [wrong], "dapo"), right) > 1e-3, change


def test_our_attention_is_sdpa_where_nothing_is_packed() -> None:
    for kind in ("dense, tied", "soft cap"):
        ours, batch = make_model(kind), make_batch()
        theirs = make_model(kind)
        theirs.set_attn_implementation("sdpa")
        padded = (batch.token_ids_BT != 0).long()
        for mask in (None, padded, padded.flip(1)):
            found = [model(input_ids=batch.token_ids_BT, attention_mask=mask).logits for model in (ours, theirs)]
            assert torch.equal(*found)


def test_only_models_with_our_attention_and_a_plain_head_are_packed() -> None:
    assert not takes_packed(make_model("soft cap"))  # a head that needs the model's own forward
    for kind, extra in (("mistral", {"sliding_window": 4}), ("gpt2", {"n_embd": 32, "n_head": 2, "n_layer": 2})):
        config = AutoConfig.for_model(kind, **SHAPE, **extra)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
        assert takes_packed(model)
    assert not takes_packed(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"))


def test_the_packing_by_hand() -> None:
    rows = [
        supervised_sample(ids, [0] * prompt + [1] * (len(ids) - prompt))
        for prompt, ids in ((2, (5, 6, 10, 11, 12)), (2, (5, 6, 13, 14, 15)), (1, (7, 16)))
    ]
    batch = pack(rows, 0, CPU)
    packing = batch.packing
    assert packing is not None
    assert batch.token_ids_BT.tolist() == [[5, 6, 7, 10, 11, 13, 14]]
    assert batch.targets_BT.tolist() == [[10, 11, 12], [13, 14, 15], [16, 0, 0]]
    assert packing.positions_L.tolist() == [0, 1, 0, 2, 3, 2, 3]
    assert packing.prompt_at_GP.tolist() == [[0, 1], [2, 0]]
    assert packing.prompt_of_B.tolist() == [0, 0, 1]
    assert packing.row_at_BS.tolist() == [[3, 4], [5, 6], [0, 0]]
    assert packing.source_BT.tolist() == [[1, 3, 4], [1, 5, 6], [2, 0, 0]]
    assert packing.back_L.tolist() == [0, 1, 2, 4, 5, 6, 7]  # behind 2 · 2 places of prompts, rows of 2


@pytest.mark.parametrize("packed", [True, False])
def test_every_row_is_in_one_batch_within_the_budget(packed: bool) -> None:
    rows = rollouts([5] * 8 + [9] * 8 + [3] * 8, [1 + (7 * i) % 11 for i in range(24)])
    for budget in (12, 40, 100, 10**6):
        batches = make_batches(rows, budget, 0, CPU, packed=packed)
        assert sorted(place for batch in batches for place in batch.places) == list(range(24))
        for batch in batches:
            assert len(batch.places) == 1 or batch.token_ids_BT.numel() <= budget
            for place, targets, mask in zip(batch.places, batch.targets_BT, batch.loss_mask_BT, strict=True):
                row = rows[place]
                assert targets[mask > 0].tolist() == row.token_ids[row.prompt_length :].tolist()
    sizes = [batch.token_ids_BT.numel() for batch in make_batches(rows, 100, 0, CPU, packed=packed)]
    assert len(sizes) > 1
    assert min(sizes) > max(sizes) / 2  # about the same work


def test_rows_without_a_prompt_are_not_packed() -> None:
    rows = [supervised_sample((5, 6, 7), (1, 1, 1)), supervised_sample((5, 6, 7), (0, 1, 1))]
    assert all(batch.packing is None for batch in make_batches(rows, 100, 0, CPU, packed=True))


@pytest.mark.parametrize("packed", [True, False])
def test_loss_rows_are_known_without_asking_the_device(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """``nonzero`` of a CUDA tensor waits for the device, once in every micro-batch: whoever makes it knows the rows."""
    model, samples = make_model("dense, tied"), RAGGED
    (batch,) = make_batches(samples, 1000, 0, CPU, packed=packed)
    assert batch.loss_rows_R is not None
    assert torch.equal(batch.loss_rows_R, batch.loss_mask_BT.reshape(-1).nonzero()[:, 0])
    losses = (PolicyGradientLoss(spec=PRESETS["dapo"]), CrossEntropyLoss(denominator=7.0))
    asked = replace(batch, loss_rows_R=None)
    wanted = [float(loss(Models(policy=model), asked).loss.detach()) for loss in losses]
    logprobs_BT = loss_logprobs(model, asked)

    def refused(_: Tensor) -> Tensor:
        raise AssertionError("a host-device sync")

    monkeypatch.setattr(Tensor, "nonzero", refused)
    with pytest.raises(AssertionError, match="sync"):
        losses[0](Models(policy=model), asked)
    assert [float(loss(Models(policy=model), batch).loss.detach()) for loss in losses] == wanted
    assert torch.equal(loss_logprobs(model, batch), logprobs_BT)

"""Precision: what learns with bfloat16 compute, what is accumulated how, and what is saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import rollout_sample, supervised_sample
from rlreason.policy.model import cast_parameters
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.trainer.forward import CrossEntropyLoss, PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.masters import Masters
from rlreason.trainer.options import TrainerOptions
from rlreason.trainer.protocol import Loss
from rlreason.types import Completion, TrainingSample

CPU = torch.device("cpu")
MODEL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": True,
}
STEPS = 100
#: How far weights may move apart from float32 in 100 steps, relative.
TOLERANCE = 0.05
Kind = Literal["sft", "grpo"]


def policy(model_type: str = "qwen3_moe") -> Policy:
    return fresh_policy(PolicyConfig(model_type=model_type, model=MODEL), "0123456789", (), 0, CPU)


def trainer(dtype: torch.dtype, lr: float = 1e-6, **options: object) -> LocalTrainer:
    settings = {"optimizer": OptimizerConfig(lr=lr), "total_steps": STEPS, "micro_batch_tokens": 256, **options}
    return LocalTrainer(policy(), TrainerOptions(compute_dtype=dtype, **settings))


def step_of(kind: Kind, step: int, rows: int = 16) -> tuple[list[TrainingSample], Loss]:
    """Samples with something to learn in them: after an even token comes its successor."""
    generator = np.random.default_rng(step)
    samples = []
    for row in range(rows):
        ids = generator.integers(7, 17, size=12)
        ids[1::2] = 7 + (ids[::2] - 6) % 10
        if kind == "sft":
            samples.append(supervised_sample(ids, [0] * 4 + [1] * 8))
            continue
        completion = Completion(
            prompt_ids=ids[:4], token_ids=ids[4:], sampler_logprobs=np.full(8, -2.5), text="", finish_reason="stop"
        )
        samples.append(rollout_sample(completion, 1.0 if row % 2 else -1.0, 1.0 / (8 * rows), f"g{row // 2}"))
    loss: Loss = CrossEntropyLoss(denominator=8.0 * rows)
    return samples, loss if kind == "sft" else PolicyGradientLoss(spec=ObjectiveSpec())


def moves(one: LocalTrainer, kind: Kind) -> dict[str, Tensor]:
    """How far each parameter moved in ``STEPS`` steps."""
    before = {name: parameter.detach().clone() for name, parameter in masters(one).items()}
    for step in range(STEPS):
        samples, loss = step_of(kind, step)
        one.forward_backward(samples, loss)
        stats = one.step(step)
    assert stats.moved > 0.9
    return {name: (parameter.detach() - before[name]).float() for name, parameter in masters(one).items()}


def masters(one: LocalTrainer) -> dict[str, Tensor]:
    held: Masters = one._masters
    return dict(zip(held.names, held.parameters, strict=True))


def mean_move(found: dict[str, Tensor]) -> float:
    return float(torch.cat([one.abs().flatten() for one in found.values()]).mean())


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_bfloat16_compute_moves_weights_as_far_as_float32(kind: Kind) -> None:
    exact, low = moves(trainer(torch.float32), kind), moves(trainer(torch.bfloat16), kind)
    assert mean_move(low) == pytest.approx(mean_move(exact), rel=TOLERANCE)
    # in the same direction, norm weights too
    for part in (lambda one: one.ndim == 2, lambda one: one.ndim == 1):
        left = torch.cat([one.flatten() for name, one in exact.items() if part(one)])
        right = torch.cat([low[name].flatten() for name, one in exact.items() if part(one)])
        assert float(right.abs().mean()) == pytest.approx(float(left.abs().mean()), rel=0.1)
        assert torch.nn.functional.cosine_similarity(left, right, dim=0) > 0.9


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_canary_bfloat16_parameters_hardly_move(kind: Kind) -> None:
    """What every GPU run did before: AdamW on bfloat16 parameters, whose spacing swallows a step of 1e-6."""
    exact = moves(trainer(torch.float32), kind)
    one = trainer(torch.float32)
    model = one.model
    cast_parameters(model, torch.bfloat16)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    before = [parameter.detach().float().clone() for parameter in model.parameters()]
    for step in range(STEPS):
        samples, loss = step_of(kind, step)
        for batch in one._batches(samples):
            loss(one._models, batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
    moved = {
        str(at): parameter.detach().float() - old
        for at, (parameter, old) in enumerate(zip(model.parameters(), before, strict=True))
    }
    assert mean_move(moved) < 0.2 * mean_move(exact)


def gradients(dtype: torch.dtype, kind: Kind, tokens: int) -> Tensor:
    one = trainer(dtype, micro_batch_tokens=tokens)
    samples, loss = step_of(kind, 0, rows=48)
    one.forward_backward(samples, loss)
    return torch.cat([parameter.grad.flatten() for parameter in masters(one).values() if parameter.grad is not None])


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).double().norm() / expected.double().norm())


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_micro_batches_do_not_change_the_gradient(kind: Kind) -> None:
    whole = gradients(torch.float32, kind, 10**6)
    assert apart(gradients(torch.float32, kind, 40), whole) <= 1e-6
    # Canary: one micro-batch of twelve left out of the sum.
    assert apart(whole * 47 / 48, whole) > 1e-3
    # In bfloat16 every micro-batch rounds its own sums: nearer to one another than to float32, never equal.
    low = gradients(torch.bfloat16, kind, 10**6)
    assert apart(gradients(torch.bfloat16, kind, 40), low) < 2e-2
    assert low.dtype == torch.float32


def test_gradients_of_micro_batches_add_up_in_float32() -> None:
    """512 parts of a bfloat16 model's gradient: their sum is that of float64, as sums in bfloat16 are not (2.2 %)."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, bias=False)
    held = Masters(model, torch.bfloat16)
    parts = [torch.randn(64, 64).bfloat16() for _ in range(512)]
    for part in parts:
        model.weight.grad = part.clone()
        held.take_gradients()
        assert model.weight.grad is None
    exact = torch.stack(parts).double().sum(dim=0)
    assert held.parameters[0].grad is not None
    assert apart(held.parameters[0].grad.double(), exact) <= 1e-6
    rounded = torch.zeros(64, 64, dtype=torch.bfloat16)
    for part in parts:
        rounded += part
    assert apart(rounded.double(), exact) > 1e-3  # canary


def test_checkpoints_have_the_dtype_asked_for_and_the_weights_of_the_masters(tmp_path: Path) -> None:
    for asked, expected in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        one = trainer(torch.bfloat16, lr=1e-3, checkpoint_dtype=asked)
        samples, loss = step_of("sft", 0)
        one.forward_backward(samples, loss)
        one.step(0)
        folder = tmp_path / str(expected)
        one.save(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
        saved = dict(loaded.named_parameters())
        for name, master in masters(one).items():
            assert torch.equal(saved[name], master.detach().to(expected)), name
        # and the model computes on as before
        assert {parameter.dtype for parameter in one.model.parameters()} == {torch.bfloat16}
        drawn = dict(one.weights())
        assert all(torch.equal(drawn[name], master.detach().bfloat16()) for name, master in masters(one).items())


def test_states_bring_back_every_bit(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        one, other = trainer(dtype, lr=1e-3), trainer(dtype, lr=1e-3)
        folder = tmp_path / str(dtype)
        folder.mkdir()
        _steps(one, range(3))
        one.save_state(folder)
        other.load_state(folder)
        _steps(one, range(3, 6))
        _steps(other, range(3, 6))
        for name, master in masters(one).items():
            assert torch.equal(master, masters(other)[name]), name
        without = trainer(dtype, lr=1e-3)  # canary: without the moments it would be another run
        without.load_state(folder)
        without._optimizer.load_state({})
        _steps(without, range(3, 6))
        assert not all(torch.equal(master, masters(without)[name]) for name, master in masters(one).items())


def _steps(one: LocalTrainer, steps: Sequence[int]) -> None:
    for step in steps:
        samples, loss = step_of("grpo", step)
        one.forward_backward(samples, loss)
        one.step(step)


def test_log_probabilities_belong_to_their_tokens() -> None:
    """Packed and padded alike: entry t is token t's, 0 where it carries no loss."""
    one = trainer(torch.float32)
    samples, _ = step_of("grpo", 0)
    found = one.logprobs(samples, temperature=0.7)
    for sample, logprobs_T in zip(samples, found, strict=True):
        ids = torch.from_numpy(sample.token_ids).long()
        with torch.no_grad():
            logits_TV = one.model(input_ids=ids.unsqueeze(0)).logits[0, :-1] / 0.7
        expected_T = torch.log_softmax(logits_TV, dim=-1).gather(1, ids[1:].unsqueeze(1)).squeeze(1)
        expected_T = np.concatenate([[0.0], expected_T.numpy()]) * sample.loss_mask
        assert np.abs(logprobs_T - expected_T).max() < 1e-5
    assert any(np.abs(one).max() > 0.1 for one in found)

"""Masters of float16 or dequantised weights: many lie exactly between two bfloat16 numbers, and a first step of any
size would move each by half a spacing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.policy.batch import supervised_sample
from rlreason.policy.model import cast_parameters
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.trainer import masters
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions

MODEL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 128,
}  # fmt: skip
BF16 = torch.bfloat16


def policy(dtype: torch.dtype) -> Policy:
    """Random weights, of which only what ``dtype`` holds is left."""
    one = fresh_policy(PolicyConfig(model_type="qwen3", model=MODEL), "0123456789", (), 0, torch.device("cpu"))
    cast_parameters(one.model, dtype)
    cast_parameters(one.model, torch.float32)
    return one


def trainer(dtype: torch.dtype, compute: torch.dtype = BF16) -> LocalTrainer:
    optimizer = OptimizerConfig(lr=1e-9, weight_decay=0.0)
    return LocalTrainer(policy(dtype), TrainerOptions(optimizer=optimizer, total_steps=1, compute_dtype=compute))


def held(one: LocalTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in one._masters.parameters])


def computed(one: LocalTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in one.model.parameters()]).clone()


def changed_by_a_step(one: LocalTrainer) -> float:
    """Share of the weights that the model computes with which a step of 1e-9 changes."""
    before = computed(one)
    rows = np.random.default_rng(0).integers(2, 12, (8, 12))
    samples = [supervised_sample(row, [0] * 4 + [1] * 8) for row in rows]
    one.forward_backward(samples, CrossEntropyLoss(denominator=64.0))
    assert one.step(0).grad_norm > 0
    return float((computed(one) != before).float().mean())


def test_a_tiny_step_moves_no_weight_of_a_float16_model(monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(torch.float16)
    assert one.rounded == pytest.approx(1 / 8, abs=0.01)  # three bits are cut, and 100 is one of their eight values
    assert torch.equal(held(one), held(one).to(BF16).float())
    monkeypatch.setattr(masters, "TIES", 1.0)  # canary: as it would be
    left = trainer(torch.float16)
    assert left.rounded == 0.0
    assert torch.equal(computed(one), computed(left))  # before the step they are one model
    assert changed_by_a_step(one) < 1e-3  # those of some 1e-7 have a spacing that small
    assert changed_by_a_step(left) > 0.03  # half of the ties were rounded uphill


def test_masters_with_all_their_bits_stay() -> None:
    for stored, compute in ((torch.float32, BF16), (BF16, BF16), (torch.float16, torch.float32)):
        one = trainer(stored, compute)
        expected = policy(stored)
        assert one.rounded == 0.0
        assert torch.equal(held(one), torch.cat([each.detach().flatten() for each in expected.model.parameters()]))

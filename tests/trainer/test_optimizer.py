"""The optimizer: schedules, clipping, and the guard against gradients that are not finite."""

from __future__ import annotations

import pytest
import torch

from rlreason.config import OptimizerConfig
from rlreason.trainer.masters import Masters
from rlreason.trainer.optimizer import PolicyOptimizer, learning_rate
from rlreason.trainer.protocol import NonFiniteError


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.55, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.55, 0.1]),
    ],
)
def test_schedules_by_hand(schedule: str, expected: list[float]) -> None:
    # 2 warm-up steps of 5, then 3 steps from 1 to 0.1, which the last one has
    config = OptimizerConfig(lr=1.0, warmup_steps=2, schedule=schedule, final_lr_ratio=0.1)
    assert [learning_rate(config, step, 5) for step in range(5)] == pytest.approx(expected)


def test_gradients_are_clipped_to_the_norm() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    model.weight.grad = torch.tensor([[30.0, 40.0]])
    stats = PolicyOptimizer(Masters(model, torch.float32), OptimizerConfig(lr=0.1, max_grad_norm=1.0), 10).step(0)
    assert (stats.grad_norm, stats.learning_rate, stats.moved) == (50.0, 0.1, 1.0)
    assert model.weight.grad is None
    # Adam's first step is lr in the direction of the sign, whatever the norm
    assert model.weight.detach()[0].tolist() == pytest.approx([-0.1, -0.1], rel=1e-4)


def optimizer(lr: float = 0.1, max_skipped: int = 3) -> tuple[torch.nn.Linear, PolicyOptimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    return model, PolicyOptimizer(Masters(model, torch.float32), OptimizerConfig(lr=lr), 10, max_skipped)


def test_a_step_with_a_nan_gradient_changes_nothing_and_is_counted() -> None:
    """Before, one NaN element made every weight NaN: clipping multiplies by a norm that is NaN."""
    model, steps = optimizer()
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    for bad in (float("nan"), float("inf")):
        for one in model.parameters():
            one.grad = torch.ones_like(one)
        model.weight.grad[1, 2] = bad
        stats = steps.step(0)
        assert (stats.skipped, stats.moved) == (True, 0.0)
        assert not torch.isfinite(torch.tensor(stats.grad_norm))
        assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
        assert all(one.grad is None for one in model.parameters())
    assert steps.skipped_in_a_row == 2
    for one in model.parameters():
        one.grad = torch.ones_like(one)
    assert not steps.step(0).skipped
    assert steps.skipped_in_a_row == 0
    assert not torch.equal(model.weight, before["weight"])


def test_many_skipped_steps_in_a_row_end_the_run_and_name_the_tensor() -> None:
    model, steps = optimizer(max_skipped=2)
    for attempt in range(2):
        for one in model.parameters():
            one.grad = torch.ones_like(one)
        model.bias.grad[0] = float("nan")
        if attempt == 0:
            steps.step(attempt)
            continue
        with pytest.raises(NonFiniteError, match=r"2 steps in a row .* nan .* first tensor .*: bias\."):
            steps.step(attempt)


def test_a_learning_rate_that_makes_weights_infinite_ends_the_run_at_once() -> None:
    """lr = 1e39 is no float32; the gradient is finite, the weights would not be."""
    model, steps = optimizer(lr=1e39)
    for one in model.parameters():
        one.grad = torch.ones_like(one)
    with pytest.raises(NonFiniteError, match=r"weights that are not finite, weight first, .* 1e\+39: lower it"):
        steps.step(0)

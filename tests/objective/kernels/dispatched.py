"""What ``objective.dispatch`` hands to the kernels. Run by ``tests/objective/test_kernels.py``, or alone on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import group_advantage
import linear_head
import policy_loss
import pytest
import torch
from kernel_cases import DEVICE, INTERPRETED

from rlreason.objective import dispatch
from rlreason.objective.kernels import advantage, linear, loss
from rlreason.objective.presets import PRESETS

SPEC = PRESETS["grpo"]


@pytest.fixture(autouse=True)
def _kernels_run(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setattr(dispatch, "uses_triton", lambda device: True)


def test_advantages_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, called = group_advantage.step(SPEC), []
    made = advantage.step_advantages
    monkeypatch.setattr(advantage, "step_advantages", lambda *given: called.append(1) or made(*given))
    found = dispatch.step_advantages(scores, DEVICE)
    assert called
    assert found.dtype == torch.float32
    assert torch.equal(found, group_advantage.on_kernels(scores, torch.float32))


def test_token_loss() -> None:
    now_BT, tokens = policy_loss.make(torch.float32)
    one, two = (module.evaluate(now_BT, tokens, SPEC) for module in (dispatch, loss))
    assert torch.equal(one.grad_logprobs_BT, two.grad_logprobs_BT)
    batch = linear_head.Case(torch.float32).batch
    now_BT = -torch.ones_like(batch.loss_mask_BT)
    three, four = (module.policy_loss(now_BT, now_BT - 0.1, batch, SPEC, now_BT - 0.2) for module in (dispatch, loss))
    assert torch.equal(three.loss, four.loss)
    assert three.sums.keys() == four.sums.keys()


@pytest.mark.parametrize(
    ("name", "more"),
    [("linear_policy_loss", (SPEC,)), ("linear_supervised_loss", (7.0,)), ("linear_logprobs", ())],
)
def test_head(name: str, more: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    chosen: Callable[..., Any] = getattr(linear, name)

    def watched(*arguments: Any) -> Any:
        called.append(name)
        return chosen(*arguments)

    monkeypatch.setattr(linear, name, watched)
    case = linear_head.Case(torch.float32)
    getattr(dispatch, name)(case.hidden, case.weight, case.batch, *more)
    assert called == [name]

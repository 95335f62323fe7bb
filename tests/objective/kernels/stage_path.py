"""The way of a GRPO step through the kernels: scored groups, samples, packed micro-batches, advantages (K1), forward
pass, head with the loss in it (K3), gradients. Against the torch path; and between two launches nothing reads a number
of the device.

Run by ``tests/objective/test_kernels.py``, or alone on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, INTERPRETED, difference
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from rlreason.config import GrpoStage, OptimizerConfig, PolicyConfig
from rlreason.objective import dispatch, loss
from rlreason.objective.batch import Batch
from rlreason.objective.kernels import advantage as kernel
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import StepScores, with_advantages
from rlreason.policy.policies import fresh_policy
from rlreason.stages.grpo import earn, learn
from rlreason.trainer import local
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.microbatches import in_turn
from rlreason.trainer.options import TrainerOptions
from rlreason.trainer.protocol import Loss, LossSums, StepStats
from rlreason.types import Completion, Group, Problem, RewardResult, TrainingSample, Verdict

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip


class NoReads(TorchDispatchMode):
    """Fails where a number of a tensor, or how many there are, is asked for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        assert not any(name in str(func) for name in ("local_scalar_dense", "nonzero")), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched. The interpreter is the device here: what it reads is no read."""
    launched: list[str] = []
    if INTERPRETED:
        from triton.runtime import interpreter

        call = interpreter.GridExecutor.__call__

        def outside(self: Any, *arguments: Any, **named: Any) -> Any:
            launched.append(self.fn.__name__)
            with _disable_current_modes():
                return call(self, *arguments, **named)

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", outside)
    return launched


class Stops(Exception):
    """Where the optimizer begins."""


class Trainer(LocalTrainer):
    watched = False

    def forward_backward(self, samples: Any, loss: Loss) -> LossSums:
        self.seen: list[TrainingSample] = list(samples)
        if not self.watched:
            self.summed = super().forward_backward(samples, loss)
            return self.summed
        with NoReads():
            self.summed = super().forward_backward(samples, loss)
        return self.summed

    def step(self, step: int) -> StepStats:
        raise Stops


def groups_of(ids_of: torch.Generator) -> list[Group]:
    problem = Problem(id="p", prompt="", verifier="math", reference="1")
    groups = []
    for at, row in enumerate([[1.0, 0.0, None, 0.5], [0.0, 1.0, 1.0]]):
        prompt = torch.randint(5, 15, (3,), generator=ids_of).tolist()
        completions = []
        for length in range(2, 2 + len(row)):
            ids = torch.randint(5, 15, (length,), generator=ids_of).tolist()
            logprobs = (-3.0 * torch.rand(length, generator=ids_of)).tolist()
            completions.append(
                Completion(prompt_ids=prompt, token_ids=ids, sampler_logprobs=logprobs, text="", finish_reason="stop")
            )
        rewards = [
            RewardResult(score=s, verdict=Verdict.CORRECT, parts={} if s is None else {"accuracy": s}) for s in row
        ]
        groups.append(
            Group(group_id=f"g{at}", problem=problem, completions_G=tuple(completions), rewards_G=tuple(rewards))
        )
    return groups


@dataclass
class Taken:
    """What a step did: loss and metrics, the gradient of all parameters, and the advantages of its micro-batches."""

    scalars: dict[str, float]
    gradient: Tensor
    advantages: Tensor


def step_of(preset: str, monkeypatch: pytest.MonkeyPatch, *, kernels: bool) -> Taken:
    monkeypatch.setattr(dispatch, "uses_triton", lambda device: kernels)
    read: list[Tensor] = []

    def noted(batch: Batch, advantages_N: Tensor) -> Batch:
        given = with_advantages(batch, advantages_N)
        read.append(given.advantages_BT.flatten())
        return given

    monkeypatch.setattr(local, "with_advantages", noted)
    if INTERPRETED:  # as on an accelerator: micro-batches one after the other, and no look at the outer gradient
        monkeypatch.setattr(loss, "_is_one", lambda grad_output: False)
        monkeypatch.setattr(
            local, "accumulate_gradients", lambda model, masters, batches, of, threads: in_turn(masters, batches, of)
        )
    policy = fresh_policy(PolicyConfig(model_type="qwen3", model=SHAPE), "0123456789", (), 0, DEVICE)
    trainer = Trainer(policy, TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, micro_batch_tokens=12))
    trainer.logprobs([_sample()])  # asks the model what its head is, once
    trainer.watched = kernels
    sizes = {"steps": 1, "problems_per_step": 2, "samples_per_problem": 4, "max_tokens": 8}
    # The log-probabilities are made up, so all sequences are further away than a trust region allows.
    wide = {"sequence_kl_max": 9.0} if PRESETS[preset].sequence_kl_max else {}
    stage = GrpoStage(kind="grpo", name="rl", **sizes, objective={"preset": preset, **wide}, temperature=0.75)
    groups = groups_of(torch.Generator().manual_seed(1))
    with pytest.raises(Stops):
        learn(0, groups, earn(groups, stage, trainer), stage, trainer, lambda: None)
    assert len(trainer.summed.losses) > 1
    gradients = [one.grad.flatten() for one in trainer._masters.parameters if one.grad is not None]
    return Taken(trainer.summed.read(1.0), torch.cat(gradients), torch.cat(read))


def _sample() -> TrainingSample:
    return TrainingSample(token_ids=[5, 6, 7], loss_mask=[False, True, True])


@pytest.mark.parametrize("preset", [name for name, spec in PRESETS.items() if not spec.kl_coef])
def test_the_step_is_that_of_the_torch_path_and_reads_nothing(
    preset: str, launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = step_of(preset, monkeypatch, kernels=False)
    assert not launches
    found = step_of(preset, monkeypatch, kernels=True)
    if INTERPRETED:
        _, first, *others = launches  # behind the pass that asked the model what its head is
        assert first == "one_launch_kernel"  # all advantages of the step, then its micro-batches
        assert "row_kernel" in others
        assert "one_launch_kernel" not in others
    assert found.scalars.keys() == wanted.scalars.keys()
    assert found.scalars == pytest.approx(wanted.scalars, rel=1e-5, abs=1e-6)
    assert difference(found.advantages, wanted.advantages) < 1e-6
    assert difference(found.advantages * 1.00001, wanted.advantages) > 1e-6  # canary
    assert int((wanted.advantages != 0).sum()) > 10
    slow, fast = wanted.gradient, found.gradient
    scale = float(slow.abs().max())
    assert difference(fast / scale, slow / scale) < 1e-5
    assert difference(fast / scale * 1.0001, slow / scale) > 1e-5  # canary
    assert scale > 1e-4


def test_advantages_that_are_off_by_the_deviation_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = step_of("dapo", monkeypatch, kernels=False)
    made = kernel.step_advantages

    def off(scores: StepScores, *more: Any) -> Tensor:
        return made(replace(scores, spec=replace(scores.spec, scale="none")), *more)

    monkeypatch.setattr(kernel, "step_advantages", off)
    found = step_of("dapo", monkeypatch, kernels=True)
    assert difference(found.advantages, wanted.advantages) > 0.1
    assert difference(found.gradient / found.gradient.abs().max(), wanted.gradient / found.gradient.abs().max()) > 0.1


@pytest.mark.skipif(not INTERPRETED, reason="a GPU's reads are not seen by a dispatch mode alone")
def test_a_read_of_the_advantages_is_seen(launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = kernel.step_advantages

    def reading(*given: Any) -> Tensor:
        found = made(*given)
        assert float(found.sum()) < 9.0
        return found

    monkeypatch.setattr(kernel, "step_advantages", reading)
    with pytest.raises(AssertionError, match="waits for the device"):
        step_of("dapo", monkeypatch, kernels=True)


@pytest.mark.skipif(not INTERPRETED, reason="a GPU's reads are not seen by a dispatch mode alone")
def test_a_read_between_launches_is_seen(launches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rlreason.objective.kernels import linear

    run = linear._Head.run

    def reading(self: Any, plan: Any) -> None:
        run(self, plan)
        float(self.outputs.partials.sum())

    monkeypatch.setattr(linear._Head, "run", reading)
    with pytest.raises(AssertionError, match="waits for the device"):
        step_of("dapo", monkeypatch, kernels=True)

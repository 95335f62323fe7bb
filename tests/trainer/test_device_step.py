"""A GRPO step on tensors without numbers (torch's meta device): from the scores to the optimizer step nothing is read.

Whatever would make a host wait for its device needs a number and fails here: ``.item()``, ``float``, ``.cpu()``,
``nonzero``, indexing by a mask. The way through the kernels is tests/objective/kernels/stage_path.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlreason.config import GrpoStage, OptimizerConfig, PolicyConfig
from rlreason.objective import linear
from rlreason.objective import loss as losses
from rlreason.objective.dispatch import step_advantages
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import with_advantages
from rlreason.policy.batch import make_batches
from rlreason.policy.logprobs import plain_head, takes_packed
from rlreason.policy.policies import fresh_policy
from rlreason.stages.credit import credit_of, samples_of
from rlreason.stages.grpo import earn, learn
from rlreason.trainer import local
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.masters import Masters
from rlreason.trainer.optimizer import PolicyOptimizer
from rlreason.trainer.options import TrainerOptions
from rlreason.trainer.protocol import Loss, LossSums, StepStats
from rlreason.types import Completion, Group, Problem, RewardResult, TokenSets, TrainingSample, Verdict

CPU, DEVICE = torch.device("cpu"), torch.device("meta")
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip


class OptimizerBegins(Exception):
    """The gradients are there. What follows reads the norm, to know whether it is finite."""


class DeviceTrainer(LocalTrainer):
    """A trainer whose model lies on the simulated device, and that stops where the optimizer begins."""

    def __init__(self) -> None:
        policy = fresh_policy(PolicyConfig(model_type="qwen3", model=SHAPE), "0123456789", (), 0, CPU)
        super().__init__(policy, TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, micro_batch_tokens=8))
        assert plain_head(self.model) is not None  # asked while there are numbers, as on a GPU before the first step
        assert takes_packed(self.model)
        self.model.to(DEVICE)
        self._masters = Masters(self.model, torch.float32)
        self.micro_batches = 0

    def forward_backward(self, samples: Sequence[TrainingSample], loss: Loss) -> LossSums:
        found = super().forward_backward(samples, loss)
        self.micro_batches += len(found.losses)
        return found

    def step(self, step: int) -> StepStats:
        assert all(one.grad is not None and one.grad.device == DEVICE for one in self._masters.parameters)
        raise OptimizerBegins


def groups_of(sets: TokenSets | None = None) -> list[Group]:
    one = Completion(
        prompt_ids=[5, 6, 7],
        token_ids=[8, 9, 10, 11],
        sampler_logprobs=[-1.0] * 4,
        text="",
        finish_reason="stop",
        sampled_from=sets,
    )
    problem = Problem(id="p", prompt="", verifier="math", reference="1")
    rewards = [[1.0, 0.0, None], [0.0, 1.0, 1.0]]
    return [
        Group(
            group_id=f"g{at}",
            problem=problem,
            completions_G=(one,) * len(row),
            rewards_G=tuple(
                RewardResult(score=s, verdict=Verdict.CORRECT, parts={} if s is None else {"accuracy": s}) for s in row
            ),
        )
        for at, row in enumerate(rewards)
    ]


def whole_sets() -> TokenSets:
    """Each token was drawn from the whole vocabulary, whose log-probabilities are known."""
    vocabulary = 20
    return TokenSets(
        ends=[vocabulary * (at + 1) for at in range(4)],
        ids=list(range(vocabulary)) * 4,
        logprobs=[-math.log(vocabulary)] * (4 * vocabulary),
        whole=True,
    )


def take_a_step(sets: TokenSets | None = None, **changes: Any) -> int:
    """From scored groups to the optimizer; how many micro-batches it took."""
    sizes = {"steps": 1, "problems_per_step": 2, "samples_per_problem": 3, "max_tokens": 8}
    stage, trainer = GrpoStage(kind="grpo", name="rl", **sizes, **changes), DeviceTrainer()
    groups = groups_of(sets)
    with pytest.raises(OptimizerBegins):
        learn(0, groups, earn(groups, stage, trainer), stage, trainer, lambda: None)
    return trainer.micro_batches


#: A reference model is another pass, whose log-probabilities are kept on the host before the step.
WITHOUT_REFERENCE = [name for name, spec in PRESETS.items() if not spec.kl_coef]


@pytest.mark.parametrize("preset", WITHOUT_REFERENCE)
def test_from_the_scores_to_the_optimizer_nothing_is_read(preset: str) -> None:
    assert take_a_step(objective=preset) > 1


@pytest.mark.parametrize("centering", ["exact", "top_k"])
def test_nor_with_centering(centering: str) -> None:
    assert take_a_step(whole_sets(), objective={"centering": centering}) > 1


def test_nor_with_an_entropy_bonus() -> None:
    assert take_a_step(objective={"preset": "gspo", "entropy_coef": 0.1}) > 1


def test_nor_with_truncated_draws() -> None:
    assert take_a_step(whole_sets(), top_k=20) > 1


@pytest.mark.parametrize("preset", ["dapo", "gdpo", "lite_ppo", "maxrl"])
def test_nor_where_the_advantages_are_made_on_the_device(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K1's own host code, on the way to its launch (which itself is the interpreter's: kernels/stage_path.py)."""
    pytest.importorskip("triton")
    from rlreason.objective.kernels import advantage

    launched: list[tuple[object, ...]] = []
    monkeypatch.setattr(advantage, "one_launch_kernel", {(1,): lambda *given, num_warps: launched.append(given)})
    monkeypatch.setattr(local, "step_advantages", advantage.step_advantages)
    assert take_a_step(objective=preset) > 1
    ((inputs, advantages_N, scratch, *_),) = launched  # once, for all micro-batches
    assert isinstance(inputs, tuple)
    assert isinstance(scratch, tuple)
    assert isinstance(advantages_N, torch.Tensor)
    assert {one.device for one in (*inputs, *scratch, advantages_N)} == {DEVICE}
    assert advantages_N.shape == (6,)  # of all completions, whether or not they are computed


#: Every baseline with every scale that a recipe may give it, GDPO's parts, and every rule for truncated completions.
CREDITS: list[dict[str, Any]] = [
    {"preset": "gdpo"},
    {"preset": "maxrl"},
    *(
        {"baseline": baseline, "scale": scale}
        for baseline in ("mean", "leave_one_out", "length_weighted", "batch", "none")
        for scale in ("group_std", "batch_std", "batch_whiten", "none")
        if (baseline, scale) != ("leave_one_out", "group_std")
    ),
    *({"overlong": overlong} for overlong in ("mask", "mask_from_baseline", "soft_penalty")),
]


@pytest.mark.parametrize("objective", CREDITS, ids=lambda one: "-".join(one.values()))
def test_no_choice_of_advantages_reads_the_device(objective: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From scores to the micro-batch: what the host decides, it decides from the scores that it has."""
    pytest.importorskip("triton")
    from rlreason.objective.kernels import advantage

    monkeypatch.setattr(advantage, "one_launch_kernel", {(1,): lambda *given, num_warps: None})
    sizes = {"steps": 1, "problems_per_step": 2, "samples_per_problem": 3, "max_tokens": 8}
    stage, groups = GrpoStage(kind="grpo", name="rl", **sizes, objective=objective), groups_of()
    credit = credit_of(groups, stage, weights={"accuracy": 1.0})
    advantages_N = advantage.step_advantages(credit.scores, DEVICE)
    (samples,) = samples_of(groups, credit, stage)
    for batch in make_batches(samples, 8, 0, DEVICE, packed=True):
        given = with_advantages(batch, advantages_N)
        assert given.advantages_BT.device == DEVICE


def test_one_read_of_an_advantage_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(*given: Any) -> torch.Tensor:
        found = step_advantages(*given)
        assert float(found.max())
        return found

    monkeypatch.setattr(local, "step_advantages", reading)
    with pytest.raises(RuntimeError, match="item"):
        take_a_step(objective="dapo")


def test_one_read_of_the_loss_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = losses.evaluate

    def reading(*arguments: Any) -> Any:
        done = evaluate(*arguments)
        done.loss.item()
        return done

    monkeypatch.setattr(linear, "evaluate", reading)
    with pytest.raises(RuntimeError, match="item"):
        take_a_step(objective="dapo")


def test_a_row_index_that_the_device_must_count_fails() -> None:
    """``HeadOptions.rows_R`` is known to the host; found from the mask, it had to be waited for."""
    mask_BT = torch.ones(2, 3, device=DEVICE)
    with pytest.raises(NotImplementedError, match="nonzero"):
        mask_BT.reshape(-1).nonzero()


class CountsReads(TorchDispatchMode):
    """Counts what a device would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.reads += "local_scalar_dense" in str(func) or "nonzero" in str(func)
        return func(*args, **(kwargs or {}))


def test_the_optimizer_reads_the_norm_and_the_metrics_are_one_read_more() -> None:
    weight = torch.nn.Linear(4, 4)
    weight.weight.grad, weight.bias.grad = torch.ones(4, 4), torch.ones(4)
    optimizer = PolicyOptimizer(Masters(weight, torch.float32), OptimizerConfig(), 1)
    with CountsReads() as counted:
        optimizer.step(0)
    # AdamW's fused kernel wants numbers of a CPU's step counts alone; the sampled weights are read by tolist(), whole.
    assert counted.reads == 1

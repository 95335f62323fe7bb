"""The reward's part of an opd step is GRPO's own loss of the same draws, at the temperature that they were drawn at."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlreason.config import OpdStage, PolicyConfig
from rlreason.policy.batch import collate, rollout_sample
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.stages.opd import OpdWork
from rlreason.stages.replay import loss_of
from rlreason.trainer.forward import PolicyGradientLoss, loss_logprobs
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.trainer.protocol import LossSums
from rlreason.types import Completion, Group, Problem, RewardResult, TrainingSample, Verdict

CPU = torch.device("cpu")
SMALL = PolicyConfig(
    model_type="qwen3",
    model={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "initializer_range": 0.5,
    },
)


class Watched:
    """A trainer that keeps what it was asked and what came out."""

    def __init__(self, policy: Policy, stage: OpdStage) -> None:
        options = TrainerOptions(optimizer=stage.optimizer, total_steps=1, micro_batch_tokens=stage.micro_batch)
        self._trainer = LocalTrainer(policy, options)
        self.losses: list[PolicyGradientLoss] = []
        self.sums = LossSums()

    def forward_backward(self, samples: list[TrainingSample], loss: PolicyGradientLoss) -> LossSums:
        self.losses.append(loss)
        self.sums = self._trainer.forward_backward(samples, loss)
        return self.sums


def group_of(policy: Policy, temperature: float) -> Group:
    """A right and a wrong answer with their log-probabilities under softmax(logits / temperature)."""
    drawn = []
    for tokens in ((5, 6, 7, 8), (9, 10, 11)):
        blank = Completion(
            prompt_ids=(5, 7, 9), token_ids=tokens, sampler_logprobs=(0.0,) * len(tokens), text="", finish_reason="stop"
        )
        batch = collate([rollout_sample(blank)], 0, CPU)
        found = loss_logprobs(policy.model, batch, temperature)[0, -len(tokens) :].tolist()
        drawn.append(
            Completion(prompt_ids=(5, 7, 9), token_ids=tokens, sampler_logprobs=found, text="", finish_reason="stop")
        )
    return Group(
        group_id="g",
        problem=Problem(id="p", prompt="", verifier="math", reference="1"),
        completions_G=tuple(drawn),
        rewards_G=(
            RewardResult(score=1.0, verdict=Verdict.CORRECT),
            RewardResult(score=0.0, verdict=Verdict.WRONG),
        ),
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_rewards_part_is_at_the_temperature_of_the_draws(temperature: float) -> None:
    """Of tokens that the policy itself drew at T, the trainer's log-probabilities are the sampler's."""
    stage = OpdStage(
        kind="opd", name="opd", steps=1, problems_per_step=1, samples_per_problem=2, max_tokens=8,
        temperature=temperature, reward_weight=0.5,
    )  # fmt: skip
    policy = fresh_policy(SMALL, "0123456789", (), 0, CPU)
    trainer = Watched(policy, stage)
    group = group_of(policy, temperature)
    work: Any = SimpleNamespace(stage=stage, trainer=trainer)
    found = OpdWork._reward(work, [group])
    (loss,) = trainer.losses
    assert loss == loss_of(stage.grpo(), loss.scores)
    assert loss.temperature == temperature
    assert trainer.sums.read(1.0)["mismatch/max"] < 1e-5
    assert found["loss/reward"] == pytest.approx(_by_hand(), abs=1e-6)


def _by_hand() -> float:
    """Scores 1 and 0: their mean is 0.5 and their deviation (with n − 1) sqrt(0.5); all ratios are 1.

    Of 7 tokens 4 have A = 0.5 / sqrt(0.5) and 3 its opposite; the loss is minus their mean, times the weight 0.5.
    """
    advantage = 0.5 / math.sqrt(0.5)
    return -0.5 * (4 * advantage - 3 * advantage) / 7

"""One GRPO update on a real model: every preset moves it, and what should not matter does not."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rlreason.config import GrpoStage, OptimizerConfig, PolicyConfig
from rlreason.objective.presets import PRESETS
from rlreason.policy.batch import collate, rollout_sample
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.stages.credit import useful_groups
from rlreason.stages.grpo import learn
from rlreason.trainer.forward import loss_logprobs
from rlreason.trainer.local import LocalTrainer, TrainerOptions
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict

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
    },
)


def policy_of(seed: int) -> Policy:
    return fresh_policy(SMALL, "0123456789", (), seed, CPU)


def groups_of(policy: Policy) -> list[Group]:
    """Groups of 4, 3 and 2 completions with log-probabilities of the policy, one without a score, one truncated."""
    rng, groups = random.Random(3), []
    scores: list[list[float | None]] = [[1.0, 0.0, None, 0.5], [0.0, 1.0, 1.0], [0.3, 0.9]]
    for number, members in enumerate(scores):
        completions = []
        for score in members:
            prompt = tuple(rng.randrange(5, 12) for _ in range(3))
            tokens = tuple(rng.randrange(5, 12) for _ in range(rng.randrange(2, 8)))
            blank = Completion(
                prompt_ids=prompt,
                token_ids=tokens,
                sampler_logprobs=(0.0,) * len(tokens),
                text="",
                finish_reason="length" if score == 0.5 else "stop",
            )
            logprobs = logprobs_of(policy.model, blank)
            completions.append(
                Completion(
                    prompt_ids=prompt,
                    token_ids=tokens,
                    sampler_logprobs=logprobs,
                    text="",
                    finish_reason=blank.finish_reason,
                )
            )
        groups.append(
            Group(
                group_id=f"g{number}",
                problem=Problem(id=f"p{number}", prompt="", verifier="math", reference="1"),
                completions_G=tuple(completions),
                rewards_G=tuple(RewardResult(score=score, verdict=Verdict.CORRECT) for score in members),
            )
        )
    return groups


def logprobs_of(model: PreTrainedModel, completion: Completion) -> list[float]:
    batch = collate([rollout_sample(completion)], 0, CPU)
    return loss_logprobs(model, batch)[0, -len(completion.token_ids) :].tolist()


def stage_of(**changes: Any) -> GrpoStage:
    return GrpoStage(
        **{
            "kind": "grpo",
            "name": "grpo",
            "steps": 4,
            "problems_per_step": 3,
            "samples_per_problem": 4,
            "max_tokens": 8,
            "micro_batch_tokens": 4096,
            "optimizer": OptimizerConfig(lr=1e-3, warmup_steps=0),
            **changes,
        }
    )


def learned(
    step: int, groups: list[Group], policy: Policy, reference: Policy | None = None, **changes: Any
) -> dict[str, float]:
    """One step of a stage on ``policy``; ``reference``: another policy than the one that the trainer began with."""
    stage = stage_of(**changes)
    options = TrainerOptions(
        optimizer=stage.optimizer, total_steps=stage.steps, micro_batch_tokens=stage.micro_batch_tokens
    )
    trainer = LocalTrainer(policy, options)
    trainer._reference = None if reference is None else reference.freeze()
    committed: list[int] = []
    scalars = learn(step, groups, stage, trainer, lambda: committed.append(step))
    assert committed == [step]  # once, before the first thing that lasts
    return scalars


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_a_step(preset: str, updates: int) -> None:
    policy = policy_of(0)
    if updates > 1 and PRESETS[preset].ratio == "on_policy":
        with pytest.raises(ValueError, match="one update per step"):
            stage_of(objective=preset, updates_per_step=updates)
        return
    reference = policy_of(1) if PRESETS[preset].kl_coef else None
    groups, before = groups_of(policy), weights_of(policy)
    scalars = learned(1, groups, policy, reference, objective=preset, updates_per_step=updates)
    assert scalars["grad_norm"] > 0.0
    assert scalars["mismatch/max"] < (1e-5 if updates == 1 else 1.0)
    assert bool(weights_of(policy).isfinite().all())
    assert not torch.equal(weights_of(policy), before)


@pytest.mark.parametrize("preset", ["dapo", "gspo", "rloo", "reinforce_pp_baseline"])
def test_how_a_step_is_cut_does_not_matter(preset: str) -> None:
    steps = []
    for tokens in (4096, 1):  # one micro-batch, or one for each completion
        policy = policy_of(0)
        groups = groups_of(policy)
        steps.append(learned(1, groups, policy, policy_of(1), objective=preset, micro_batch_tokens=tokens))
    assert steps[1] == pytest.approx(steps[0], rel=1e-4, abs=1e-6)
    assert steps[0]["loss"] == pytest.approx(steps[1]["loss"], abs=1e-6)


def test_kl_in_the_reward_is_the_sum_over_the_sequence() -> None:
    policy, other = policy_of(0), policy_of(1)
    groups = groups_of(policy)
    wanted = []
    for group in groups:
        for completion in group.completions_G:
            now, reference = (logprobs_of(one.model, completion) for one in (policy, other))
            wanted.append(0.05 * sum(a - b for a, b in zip(now, reference, strict=True)))
    scalars = learned(1, groups, policy, other, objective="rloo")
    assert scalars["kl/penalty"] == pytest.approx(sum(wanted) / len(wanted), abs=1e-6)
    assert abs(scalars["kl/penalty"]) > 1e-4


def test_a_step_without_a_difference_leaves_the_policy_as_it_is() -> None:
    policy = policy_of(0)
    same = [
        Group(
            group_id=group.group_id,
            problem=group.problem,
            completions_G=group.completions_G,
            rewards_G=tuple(RewardResult(score=1.0, verdict=Verdict.CORRECT) for _ in group.completions_G),
        )
        for group in groups_of(policy)
    ]
    before = weights_of(policy)
    assert learned(1, useful_groups(same, stage_of()), policy) == {}
    assert torch.equal(weights_of(policy), before)
    for preset in PRESETS:
        reference = policy_of(1) if PRESETS[preset].kl_coef else None
        assert learned(1, [], policy, reference, objective=preset) == {}, preset
    # Without a group's baseline equal rewards still say something.
    assert useful_groups(same, stage_of(objective="reinforce_pp")) == same

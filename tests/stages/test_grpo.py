"""One GRPO update on a real model: every preset moves it, and what should not matter does not."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from rlreason.config import GrpoStage, OptimizerConfig, PolicyConfig
from rlreason.objective.presets import PRESETS
from rlreason.policy.batch import collate, rollout_row
from rlreason.policy.optimizer import PolicyOptimizer
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.stages.context import Context
from rlreason.stages.credit import useful_groups
from rlreason.stages.grpo import GrpoRun, learn
from rlreason.stages.losses import loss_logprobs
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
                logprobs_T=(0.0,) * len(tokens),
                text="",
                finish_reason="length" if score == 0.5 else "stop",
            )
            logprobs = logprobs_of(policy.model, blank)
            completions.append(
                Completion(
                    prompt_ids=prompt,
                    token_ids=tokens,
                    logprobs_T=tuple(logprobs),
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
    batch = collate([rollout_row(completion, 0.0, 0.0, "")], 0, CPU)
    return loss_logprobs(model, batch)[0, -len(completion.token_ids) :].tolist()


def run_of(policy: Policy, reference: PreTrainedModel | None = None, **changes: Any) -> GrpoRun:
    stage = GrpoStage(
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
    context = cast(Context, SimpleNamespace(threads=1, device=CPU))
    optimizer = PolicyOptimizer(policy.model, stage.optimizer, stage.steps)
    return GrpoRun(stage=stage, context=context, policy=policy, optimizer=optimizer, reference=reference)


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_a_step(preset: str, updates: int) -> None:
    policy = policy_of(0)
    if updates > 1 and PRESETS[preset].ratio == "on_policy":
        with pytest.raises(ValueError, match="one update per step"):
            run_of(policy, objective=preset, updates_per_step=updates)
        return
    reference = policy_of(1).model if PRESETS[preset].kl_coef else None
    groups, before = groups_of(policy), weights_of(policy)
    scalars = learn(1, groups, run_of(policy, reference, objective=preset, updates_per_step=updates))
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
        reference = policy_of(1).model
        steps.append(learn(1, groups, run_of(policy, reference, objective=preset, micro_batch_tokens=tokens)))
    assert steps[1] == pytest.approx(steps[0], rel=1e-4, abs=1e-6)
    assert steps[0]["loss"] == pytest.approx(steps[1]["loss"], abs=1e-6)


def test_kl_in_the_reward_is_the_sum_over_the_sequence() -> None:
    policy, other = policy_of(0), policy_of(1)
    groups = groups_of(policy)
    run = run_of(policy, other.model, objective="rloo")
    wanted = []
    for group in groups:
        for completion in group.completions_G:
            now, reference = (logprobs_of(one.model, completion) for one in (policy, other))
            wanted.append(0.05 * sum(a - b for a, b in zip(now, reference, strict=True)))
    scalars = learn(1, groups, run)
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
    run, before = run_of(policy), weights_of(policy)
    assert learn(1, useful_groups(same, run.stage), run) == {}
    assert torch.equal(weights_of(policy), before)
    for preset in PRESETS:
        reference = policy_of(1).model if PRESETS[preset].kl_coef else None
        assert learn(1, [], run_of(policy, reference, objective=preset)) == {}, preset
    # Without a group's baseline equal rewards still say something.
    free = run_of(policy, policy_of(1).model, objective="reinforce_pp")
    assert useful_groups(same, free.stage) == same

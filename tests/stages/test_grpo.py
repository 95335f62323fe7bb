"""One GRPO update on a real model: every preset moves it, and what should not matter does not."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rlreason.config import GrpoStage, OptimizerConfig, PolicyConfig
from rlreason.errors import UsageError
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import step_advantages
from rlreason.policy.batch import collate, rollout_sample
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.stages.credit import computed_groups, credit_of, full_batch, is_mixed, samples_of
from rlreason.stages.grpo import earn, learn
from rlreason.trainer.forward import loss_logprobs
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
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
                rewards_G=tuple(rewarded(score) for score in members),
            )
        )
    return groups


def rewarded(score: float | None) -> RewardResult:
    """A score that is the recipe's one part, as objectives that keep parts apart want to know."""
    return RewardResult(score=score, verdict=Verdict.CORRECT, parts={} if score is None else {"accuracy": score})


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
    options = TrainerOptions(optimizer=stage.optimizer, total_steps=stage.steps, micro_batch_tokens=stage.micro_batch)
    trainer = LocalTrainer(policy, options)
    trainer._reference = None if reference is None else reference.freeze()
    committed: list[int] = []
    earned = earn(groups, stage, trainer)
    scalars = learn(step, groups, earned, stage, trainer, lambda: committed.append(step))
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


def scored(groups: list[Group], scores: list[float]) -> list[Group]:
    """The same completions, each group's with one of ``scores``, cut to as many."""
    return [
        replace(
            group,
            rewards_G=tuple(rewarded(score) for _ in group.completions_G),
        )
        for group, score in zip(groups, scores, strict=True)
    ]


def test_a_step_without_a_difference_leaves_the_policy_as_it_is() -> None:
    policy = policy_of(0)
    same = scored(groups_of(policy), [1.0, 1.0, 1.0])
    before = weights_of(policy)
    assert learned(1, same, policy) == {}
    assert torch.equal(weights_of(policy), before)
    for preset in PRESETS:
        reference = policy_of(1) if PRESETS[preset].kl_coef else None
        assert learned(1, [], policy, reference, objective=preset) == {}, preset


@pytest.mark.parametrize("overlong", ["keep", "mask", "mask_from_baseline", "soft_penalty"])
@pytest.mark.parametrize("preset", ["dapo", "grpo", "rloo"])
def test_every_treatment_of_truncated_ones_on_a_step_without_a_useful_group(preset: str, overlong: str) -> None:
    """``mask`` raised TypeError where no group was left."""
    for groups in ([], scored(groups_of(policy_of(0)), [0.0, 0.0, 0.0])):
        policy = policy_of(0)
        scalars = learned(1, groups, policy, policy_of(1), objective={"preset": preset, "overlong": overlong})
        assert all(math.isfinite(value) for value in scalars.values())
        assert bool(weights_of(policy).isfinite().all())


def test_which_groups_are_computed() -> None:
    policy = policy_of(0)
    groups = groups_of(policy)
    groups[1:] = scored(groups[1:], [1.0, 0.0])

    def names(**changes: Any) -> list[str]:
        stage = stage_of(**changes)
        return [one.group_id for one in computed_groups(groups, credit_of(groups, stage), stage)]

    assert names() == names(objective="rloo") == ["g0"]
    assert names(filter_zero_variance=False) == ["g0", "g1", "g2"]
    # With a KL in the loss, and without a group's baseline, groups of equal rewards still say something.
    assert names(objective="grpo") == names(objective="reinforce_pp") == ["g0", "g1", "g2"]


def test_with_a_kl_in_the_reward_the_filter_looks_at_scores_after_the_penalty() -> None:
    policy, other = policy_of(0), policy_of(1)
    same = scored(groups_of(policy), [1.0, 1.0, 1.0])
    before = weights_of(policy)
    scalars = learned(1, same, policy, other, objective="rloo")
    assert scalars["trained_tokens"] > 0
    assert not torch.equal(weights_of(policy), before)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_filter_saves_time_and_changes_nothing(preset: str) -> None:
    """One useful group of three: loss and weights with the filter are those without."""
    results = []
    for kept in (True, False):
        policy = policy_of(0)
        groups = groups_of(policy)
        groups[1:] = scored(groups[1:], [1.0, 0.0])
        scalars = learned(1, groups, policy, policy_of(1), objective=preset, filter_zero_variance=kept)
        results.append((scalars["loss"], scalars["grad_norm"], weights_of(policy), scalars["trained_tokens"]))
    filtered, whole = results
    assert filtered[:2] == pytest.approx(whole[:2], rel=1e-5, abs=1e-8)
    # Adam's first step has the size of the learning rate where a gradient is mere rounding: a few weights may differ.
    assert float(((filtered[2] - whole[2]).abs() > 2e-6).float().mean()) < 0.01
    all_needed = (PRESETS[preset].kl_in == "loss" and PRESETS[preset].kl_coef > 0) or preset in (
        "reinforce_pp",
        "flash_reinforce",
    )
    assert (filtered[3] == whole[3]) is (all_needed or preset == "rloo")


def test_maxrl_refuses_a_reward_below_zero_at_the_first_such_step() -> None:
    groups = groups_of(policy_of(0))
    rewards = list(groups[1].rewards_G)
    rewards[2] = RewardResult(score=-0.5, verdict=Verdict.WRONG)
    groups[1] = replace(groups[1], rewards_G=tuple(rewards))
    with pytest.raises(UsageError, match=r"stage.grpo.objective: MaxRL .* sample 2 of g1 has -0.5"):
        learned(1, groups, policy_of(0), objective="maxrl")


def test_loss_and_gradient_norm_of_several_updates_are_means() -> None:
    """With U updates ``loss`` was the sum of U normalised losses, ``grad_norm`` that of the last. Equal rewards, a KL
    and a learning rate of next to nothing: each update is what its own group would be alone."""
    changes = {"objective": {"kl_coef": 5.0, "kl_estimator": "k2"}, "optimizer": OptimizerConfig(lr=1e-12)}
    groups = scored(groups_of(policy_of(0)), [1.0, 1.0, 1.0])
    alone = [learned(1, [group], policy_of(0), policy_of(1), **changes) for group in groups]
    together = learned(1, groups, policy_of(0), policy_of(1), updates_per_step=3, **changes)
    for key, of in {"loss": statistics.fmean, "grad_norm": statistics.fmean}.items():
        assert together[key] == pytest.approx(of(one[key] for one in alone), rel=1e-4)
    assert together["grad_norm/max"] == pytest.approx(max(one["grad_norm"] for one in alone), rel=1e-4)
    assert min(one["loss"] for one in alone) > 0.01


def test_updates_split_all_scored_groups_and_share_the_batch_s_statistics() -> None:
    """Three groups, one of them without a difference: it stays in the split, so no other update takes its place; the
    deviation is the whole batch's, the denominators each update's."""
    groups = groups_of(policy_of(0))
    groups[1:2] = scored(groups[1:2], [1.0])
    stage = stage_of(objective="lite_ppo", updates_per_step=3)
    earned = credit_of(groups, stage)
    updates = samples_of(groups, earned, stage)
    assert [{one.group_id for one in samples} for samples in updates] == [{"g0"}, {"g2"}]
    scores = [1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 0.3, 0.9]  # None is in no statistic
    deviation = statistics.stdev(scores) + 1e-6
    last = updates[-1]
    advantages_N = step_advantages(earned.scores, CPU)
    assert [float(advantages_N[one.score_at]) for one in last] == pytest.approx(
        [-0.3 / deviation, 0.3 / deviation], rel=1e-6
    )
    tokens = sum(int(one.loss_mask.sum()) for one in last)
    assert all(float(one.weights.max()) == pytest.approx(1 / tokens, rel=1e-6) for one in last)


def test_old_log_probabilities_of_the_sampler_let_the_clip_act_on_stale_rollouts() -> None:
    """π_old of the trainer is read anew for a single update: its ratio is 1, however old the rollout is."""
    drew, policy = policy_of(1), policy_of(0)
    groups = groups_of(drew)
    by_trainer = learned(1, groups, policy, objective={"preset": "dapo"})
    assert (by_trainer["ratio/max"], by_trainer["clip_fraction"]) == (1.0, 0.0)
    policy = policy_of(0)
    by_sampler = learned(1, groups, policy, objective={"preset": "dapo", "old": "sampler", "correction": "none"})
    assert by_sampler["ratio/max"] > 1.0
    assert by_sampler["clip_fraction"] > 0.0
    # The distance from the sampler is measured all the same.
    assert by_sampler["mismatch/max"] == pytest.approx(by_trainer["mismatch/max"], rel=1e-5)
    assert by_sampler["mismatch/k3"] == pytest.approx(by_trainer["mismatch/k3"], rel=1e-4)


def test_dynamic_sampling_keeps_groups_with_correct_and_wrong_completions() -> None:
    groups = groups_of(policy_of(0))

    def judged(group: Group, *verdicts: Verdict) -> Group:
        return replace(
            group, rewards_G=tuple(RewardResult(score=float(at), verdict=v) for at, v in enumerate(verdicts))
        )

    right, wrong, broken = Verdict.CORRECT, Verdict.WRONG, Verdict.BROKEN
    solved = judged(groups[2], right, right)  # the scores differ, as by a length penalty: DAPO leaves it out
    failed = judged(groups[2], wrong, Verdict.UNPARSED)
    mixed = judged(groups[2], wrong, right)
    assert [is_mixed(one) for one in (solved, failed, mixed, judged(groups[2], broken, right))] == [
        False, False, True, False,
    ]  # fmt: skip
    assert full_batch([solved, mixed, failed, mixed], 2) == [mixed, mixed]
    assert full_batch([solved, mixed, failed], 2) == [solved, mixed]  # too few: filled up, in order

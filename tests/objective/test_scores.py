"""The scores of a step: what they say without an advantage, and what the trainer's loss reads of them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from kernel_cases import GROUP_SPECS
from torch import Tensor

from rlreason.config import GrpoStage
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import Rollouts, StepScores, step_advantages, with_advantages
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import make_batches
from rlreason.stages.credit import credit_of, samples_of
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict

CPU = torch.device("cpu")


def scores_of(spec: ObjectiveSpec, seed: int, choices: tuple[float, ...] = (0.0, 0.0, 1.0)) -> StepScores:
    """Small groups whose scores are often all equal; some rollouts are truncated, some have no score or no token."""
    rng = random.Random(seed)
    sizes = tuple(rng.randrange(1, 5) for _ in range(rng.randrange(1, 5)))
    count = sum(sizes)
    values = [float("nan") if rng.random() < 0.1 else rng.choice(choices) for _ in range(count)]
    return StepScores(
        spec=spec,
        max_tokens=10,
        scores_N=torch.tensor(values, dtype=torch.float64),
        sizes_G=sizes,
        lengths_N=torch.tensor([rng.choice([0, 3, 3, 3, 9]) for _ in range(count)]),
        truncated_N=torch.tensor([rng.random() < 0.2 for _ in range(count)]),
    )


@pytest.mark.parametrize("name", GROUP_SPECS)
def test_a_silent_rollout_has_no_advantage_and_of_two_scores_all_such_are_silent(name: str) -> None:
    spec = GROUP_SPECS[name]
    silent = heard = 0
    for seed in range(60):
        scores = scores_of(spec, seed)
        advantages_N, silent_N, kept_N = step_advantages(scores, CPU, torch.float64), scores.silent_N, scores.kept_N
        assert not advantages_N[silent_N].any()
        assert not advantages_N[~kept_N].any()
        silent, heard = silent + int((silent_N & kept_N).sum()), heard + int(advantages_N.count_nonzero())
        # Of two different values none is their mean; with lengths as weights, or in the score, one may be.
        if spec.overlong != "soft_penalty" and spec.scale != "batch_whiten" and spec.baseline != "length_weighted":
            assert bool((advantages_N[kept_N & ~silent_N] != 0.0).all())
    assert heard > 50
    assert silent > 10 or spec.scale == "batch_whiten" or spec.overlong == "soft_penalty"


def test_what_merely_meets_its_baseline_is_not_looked_for() -> None:
    scores = StepScores(
        spec=ObjectiveSpec(),
        max_tokens=9,
        scores_N=torch.tensor([1.0, 0.0, 0.5, 1.0, 1.0], dtype=torch.float64),
        sizes_G=(3, 2),
        lengths_N=torch.ones(5, dtype=torch.long),
        truncated_N=torch.zeros(5, dtype=torch.bool),
    )
    assert step_advantages(scores, CPU).tolist() == [
        pytest.approx(1.0, abs=1e-5),
        pytest.approx(-1.0, abs=1e-5),
        0,
        0,
        0,
    ]
    assert scores.silent_N.tolist() == [False, False, False, True, True]


def test_rollouts_lie_group_by_group_whatever_their_order() -> None:
    found = Rollouts.of(torch.tensor([7, 2, 7, 2, 2]), torch.tensor([0, 1, 0, 3, 1]))
    assert found.sizes_G == (2, 1)
    assert found.at_N.tolist() == [2, 0, 2, 1, 0]
    assert found.total(torch.tensor([1, 2, 3, 4, 5])).tolist() == [7.0, 4.0, 4.0]
    nan = float("nan")
    assert found.mean(torch.tensor([nan, 0.1, nan, 0.4, 0.3], dtype=torch.float64)).tolist()[:2] == [0.2, 0.4]
    assert found.mean(torch.tensor([nan, 0.1, nan, 0.4, 0.3], dtype=torch.float64)).isnan().tolist() == [False] * 2 + [
        True
    ]


def groups() -> list[Group]:
    rng, found = random.Random(4), []
    problem = Problem(id="p", prompt="", verifier="math", reference="")
    for at in range(4):
        rows = [rng.randrange(1, 6) for _ in range(4)]
        completions = [
            Completion(
                prompt_ids=[1, at], token_ids=[5] * row, sampler_logprobs=[-0.1] * row, text="", finish_reason="stop"
            )
            for row in rows
        ]
        scores = [rng.choice([0.0, 0.3, 1.0]) for _ in rows]
        rewards = [RewardResult(score=one, verdict=Verdict.CORRECT, parts={"accuracy": one}) for one in scores]
        split = (0, 1, 1, 2) if at == 1 else ()
        found.append(
            Group(
                group_id=f"g{at}",
                problem=problem,
                completions_G=tuple(completions),
                rewards_G=tuple(rewards),
                rollouts_G=split,
            )
        )
    return found


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_micro_batches_have_the_advantages_of_their_samples_bit_for_bit(name: str, packed: bool) -> None:
    """Those that people read of a step, rounded to float32 once, on loss tokens and nowhere else."""
    sizes = {"steps": 1, "problems_per_step": 4, "samples_per_problem": 4, "max_tokens": 8}
    if PRESETS[name].baseline == "batch":
        sizes |= {"problems_per_step": 16, "samples_per_problem": 1}
    stage = GrpoStage(kind="grpo", name="rl", **sizes, objective=name, filter_zero_variance=False)
    credit = credit_of(groups(), stage, weights={"accuracy": 1.0})
    (samples,) = samples_of(groups(), credit, stage)
    assert len(samples) == 16
    wanted_N = credit.advantages_N.float()
    advantages_N = step_advantages(credit.scores, CPU)
    batches = make_batches(samples, 12, 0, CPU, packed=packed)
    assert len(batches) > 1
    for batch in (with_advantages(one, advantages_N) for one in batches):
        for row, place in enumerate(batch.places):
            mask_T = batch.loss_mask_BT[row] > 0
            assert int(mask_T.sum()) == int(samples[place].loss_mask.sum())
            assert batch.advantages_BT[row][mask_T].eq(wanted_N[place]).all()
            assert not batch.advantages_BT[row][~mask_T].any()
    assert distinct(wanted_N) > 3


def distinct(values: Tensor) -> int:
    return len(set(values.tolist()))


def test_a_sample_that_says_of_no_score_that_it_is_its_own_is_refused() -> None:
    stage = GrpoStage(
        kind="grpo", name="rl", steps=1, problems_per_step=4, samples_per_problem=4, max_tokens=8, objective="dapo"
    )
    credit = credit_of(groups(), stage)
    (samples,) = samples_of(groups(), credit, stage)
    (batch,) = make_batches([replace(samples[0], score_at=None), *samples[1:]], 999, 0, CPU)
    with pytest.raises(AssertionError, match="says of none"):
        with_advantages(batch, step_advantages(credit.scores, CPU))

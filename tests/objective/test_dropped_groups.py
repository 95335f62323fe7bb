"""Groups that need no computing stay in every denominator and statistic: A·w is the published formula's."""

from __future__ import annotations

import random
from dataclasses import replace

import oracle
import pytest
import torch

from rlreason.config import GrpoStage
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import step_advantages
from rlreason.objective.spec import ObjectiveSpec
from rlreason.stages.credit import StepCredit, credit_of, samples_of
from rlreason.types import Completion, Group, Problem, RewardResult, TrainingSample, Verdict

GROUPS, SIZE, MAX_TOKENS = 8, 4, 12


class Step:
    """Eight groups of four completions of 2 to 9 tokens; only the third has rewards that differ."""

    def __init__(self) -> None:
        rng = random.Random(8)
        self.lengths = [rng.randrange(2, 10) for _ in range(GROUPS * SIZE)]
        self.rewards = [float(group % 2) for group in range(GROUPS) for _ in range(SIZE)]
        self.rewards[8:12] = [1.0, 0.0, 1.0, 1.0]
        self.numbers = [group for group in range(GROUPS) for _ in range(SIZE)]

    def groups(self) -> list[Group]:
        return [
            Group(
                group_id=f"g{number}",
                problem=Problem(id=f"p{number}", prompt="", verifier="math", reference="1"),
                completions_G=tuple(self.completion(number * SIZE + sample) for sample in range(SIZE)),
                rewards_G=tuple(
                    RewardResult(score=self.rewards[number * SIZE + sample], verdict=Verdict.CORRECT)
                    for sample in range(SIZE)
                ),
            )
            for number in range(GROUPS)
        ]

    def completion(self, at: int) -> Completion:
        tokens = (at, *range(1, self.lengths[at]))  # the first says which it is
        return Completion(
            prompt_ids=(1, 2),
            token_ids=tokens,
            sampler_logprobs=(-0.5,) * len(tokens),
            text="",
            finish_reason="stop",
        )

    def published(self, spec: ObjectiveSpec) -> list[float]:
        """A·w of each completion by the oracle, over all of them."""
        rows = [[-0.5] * length for length in self.lengths]
        problem = oracle.Problem(
            rewards=list(self.rewards),
            groups=self.numbers,
            truncated=[False] * len(self.lengths),
            baselines=[0.0] * len(self.lengths),
            now=rows,
            old=rows,
            sampler=rows,
            reference=rows,
            max_tokens=MAX_TOKENS,
        )
        a, kept = oracle.advantages(problem, spec)
        return [a[at] * oracle.weight(problem, spec, kept, at) for at in range(len(a))]


def stage_of(spec: ObjectiveSpec, updates: int = 1) -> GrpoStage:
    return GrpoStage(
        kind="grpo",
        name="grpo",
        steps=1,
        problems_per_step=GROUPS,
        samples_per_problem=SIZE,
        max_tokens=MAX_TOKENS,
        updates_per_step=updates,
        objective=spec,
    )


def trained(samples: list[TrainingSample], credit: StepCredit) -> dict[int, float]:
    """A·w of the completions that are computed."""
    found, advantages_N = {}, step_advantages(credit.scores, torch.device("cpu"))
    for one in samples:
        first = one.prompt_length
        assert one.score_at is not None
        found[int(one.token_ids[first])] = float(advantages_N[one.score_at]) * float(one.weights[first])
    return found


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "gdpo"])  # which has no one reward: test_apart
def test_with_one_useful_group_of_eight_a_preset_is_its_formula(name: str) -> None:
    """dr_grpo, grpo, dapo and rloo were 8 times their formula, lite_ppo 4.7, reinforce_pp_baseline 2.8 times."""
    spec, step = PRESETS[name], Step()
    stage = stage_of(spec)
    credit = credit_of(step.groups(), stage)
    (samples,) = samples_of(step.groups(), credit, stage)
    found, wanted = trained(samples, credit), step.published(spec)
    largest = max(map(abs, wanted))
    assert found == pytest.approx({at: wanted[at] for at in found}, rel=2e-7, abs=1e-7 * largest)
    # What is not computed has a share of exactly 0.
    assert not any(value for at, value in enumerate(wanted) if at not in found)
    filtered = spec.has_group_baseline and spec.scale != "batch_whiten" and not (spec.kl_coef and spec.kl_in == "loss")
    assert len(found) == (SIZE if filtered else GROUPS * SIZE)
    # Canary: the useful group alone, as it was computed before, is seen.
    alone = step.groups()[2:3]
    credit = credit_of(alone, stage)
    (few,) = samples_of(alone, credit, stage)
    before = trained(few, credit)
    assert max(abs(before[at] - wanted[at]) for at in before) > 1e-3 * largest


@pytest.mark.parametrize("aggregation", ["token", "sequence", "sequence_sum", "group_token"])
def test_each_update_has_its_own_denominators_of_all_its_completions(aggregation: str) -> None:
    """Two updates: groups 0, 2, 4, 6 and 1, 3, 5, 7. The second has no sample, and none moves over to it."""
    spec = ObjectiveSpec(scale="none", aggregation=aggregation)  # type: ignore[arg-type]
    step = Step()
    stage = stage_of(spec, updates=2)
    credit = credit_of(step.groups(), stage)
    updates = samples_of(step.groups(), credit, stage)
    assert len(updates) == 1
    half = Step()
    even = [at for at, group in enumerate(step.numbers) if group % 2 == 0]
    half.lengths, half.rewards, half.numbers = (
        [values[at] for at in even] for values in (step.lengths, step.rewards, step.numbers)
    )
    wanted = dict(zip(even, half.published(spec), strict=True))
    found = trained(updates[0], credit)
    assert found == pytest.approx({at: wanted[at] for at in found}, rel=2e-7)
    assert sorted(found) == [8, 9, 10, 11]
    # Canary: weights of both updates together are half as large.
    whole = stage.model_copy(update={"updates_per_step": 1})
    (together,) = samples_of(step.groups(), credit, whole)
    assert max(abs(trained(together, credit)[at] - found[at]) for at in found) > 0.3 * max(map(abs, found.values()))


def test_a_score_that_is_missing_is_in_no_denominator() -> None:
    """A broken check is not a completion with advantage 0: two of 32 leave 30 in the mean over sequences."""
    step, spec = Step(), PRESETS["grpo"]
    groups = step.groups()
    blank = RewardResult(score=None, verdict=Verdict.BROKEN)
    groups[0] = replace(groups[0], rewards_G=(blank, blank, *groups[0].rewards_G[2:]))
    stage = stage_of(replace(spec, kl_coef=0.0))
    earned = credit_of(groups, stage)
    assert int(earned.kept_N.sum()) == 30
    (samples,) = samples_of(groups, earned, stage)
    assert [round(1 / (float(one.weights.max()) * int(one.loss_mask.sum())), 3) for one in samples] == [30.0] * 4

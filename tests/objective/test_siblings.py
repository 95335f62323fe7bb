"""Rollouts that were split into siblings: each counts once, so that how it was split changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlreason.config import GrpoStage
from rlreason.objective.advantage import group_advantage, rollout_weights
from rlreason.objective.presets import PRESETS
from rlreason.objective.scores import Rollouts, StepScores, step_advantages
from rlreason.objective.spec import ObjectiveSpec
from rlreason.stages.credit import credit_of, samples_of
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict

MAX_TOKENS = 20
SPECS = {
    **{name: spec for name, spec in PRESETS.items() if spec.rewards == "sum"},
    **{f"aggregation {name}": ObjectiveSpec(aggregation=name) for name in ("token", "sequence", "group_token")},  # type: ignore[arg-type]
    "masked": ObjectiveSpec(overlong="mask"),
    "out of the baseline": ObjectiveSpec(overlong="mask_from_baseline"),
    "opo": ObjectiveSpec(baseline="length_weighted", scale="none"),
}


class Split:
    """Nine rollouts of three groups, one without a score and one truncated, and each cut into one to three pieces."""

    def __init__(self) -> None:
        rng = random.Random(1)
        self.groups = [0, 0, 0, 1, 1, 1, 1, 2, 2]
        self.rewards = [1.0, 0.0, 0.5, 0.2, float("nan"), 0.9, 0.4, 0.7, 0.1]
        self.pieces = [[rng.randrange(1, 6) for _ in range(rng.randrange(1, 4))] for _ in self.groups]
        self.truncated = [at == 5 for at in range(9)]
        self.rollout = [at for at, cut in enumerate(self.pieces) for _ in cut]
        self.lengths = [length for cut in self.pieces for length in cut]


def of_siblings(
    rewards_N: Tensor, group_N: Tensor, lengths_N: Tensor, rollout_N: Tensor, spec: ObjectiveSpec, truncated_N: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(advantages, weights, kept) of completions, as a stage makes them."""
    rollouts = Rollouts.of(group_N, rollout_N)
    scores = StepScores(
        spec=spec,
        max_tokens=MAX_TOKENS,
        scores_N=rollouts.mean(rewards_N),
        sizes_G=rollouts.sizes_G,
        lengths_N=rollouts.total(lengths_N).long(),
        truncated_N=rollouts.total(truncated_N) > 0,
    )
    kept_N = scores.kept_N[rollouts.at_N]
    weights_N = rollout_weights((lengths_N, kept_N, group_N, rollouts.at_N), spec, MAX_TOKENS, torch.float64)
    return step_advantages(scores, torch.device("cpu"), torch.float64)[rollouts.at_N], weights_N, kept_N


@pytest.mark.parametrize("name", SPECS)
def test_each_token_has_what_it_would_have_in_the_whole(name: str) -> None:
    some, spec = Split(), SPECS[name]
    whole = group_advantage(
        torch.tensor(some.rewards, dtype=torch.float64),
        torch.tensor(some.groups),
        torch.tensor([sum(cut) for cut in some.pieces]),
        spec,
        max_tokens=MAX_TOKENS,
        truncated_N=torch.tensor(some.truncated),
    )
    order = random.Random(2).sample(range(len(some.rollout)), len(some.rollout))
    rollout = [some.rollout[at] for at in order]
    last = {one: max(at for at in order if some.rollout[at] == one) for one in rollout}
    advantages_N, weights_N, kept_N = of_siblings(
        torch.tensor([some.rewards[one] for one in rollout], dtype=torch.float64),
        torch.tensor([some.groups[one] for one in rollout]),
        torch.tensor([some.lengths[at] for at in order]),
        torch.tensor(rollout) * 7 - 3,
        spec,
        torch.tensor([some.truncated[some.rollout[at]] and last[some.rollout[at]] == at for at in order]),
    )
    assert advantages_N.tolist() == pytest.approx(whole.advantages_N[rollout].tolist(), abs=1e-14)
    assert weights_N.tolist() == pytest.approx(whole.weights_N[rollout].tolist(), abs=1e-14)
    assert kept_N.tolist() == whole.kept_N[rollout].tolist()


def test_a_rollout_in_three_pieces_counts_once_by_hand() -> None:
    """miles #2378: 1 in three pieces beside 0 in one has the mean 1/2, not 3/4."""
    step = (
        torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64),
        torch.zeros(4, dtype=torch.long),
        torch.tensor([1, 2, 1, 2]),
    )
    spec = ObjectiveSpec(scale="none", aggregation="sequence")
    none = torch.zeros(4, dtype=torch.bool)
    advantages_N, weights_N, _ = of_siblings(*step, torch.tensor([0, 0, 0, 1]), spec, none)
    assert advantages_N.tolist() == [0.5, 0.5, 0.5, -0.5]
    assert weights_N.tolist() == [1 / 8, 1 / 8, 1 / 8, 1 / 4]  # 4 and 2 tokens of two rollouts
    tenths = torch.full((4,), 0.1, dtype=torch.float64)
    same_N, *_ = of_siblings(tenths, *step[1:], torch.tensor([0, 0, 0, 1]), ObjectiveSpec(), none)
    assert not same_N.any()  # 0.1 + 0.1 + 0.1 is not 0.3: equal rewards stay equal
    thrice = group_advantage(*step, spec, max_tokens=9)  # canary
    assert thrice.advantages_N.tolist() == [0.25, 0.25, 0.25, -0.75]


def groups_of(split: bool) -> list[Group]:
    """Two groups; in the first a rollout of six tokens, whole or in two pieces."""
    problem = Problem(id="p", prompt="", verifier="math", reference="")

    def group(name: str, rows: list[tuple[int, int, float]]) -> Group:
        completions = [
            Completion(prompt_ids=[1], token_ids=[5] * length, sampler_logprobs=[-0.1] * length, text="",
                       finish_reason="stop")
            for _, length, _ in rows
        ]  # fmt: skip
        rewards = [RewardResult(score=score, verdict=Verdict.CORRECT, parts={"accuracy": score}) for *_, score in rows]
        return Group(
            group_id=name,
            problem=problem,
            completions_G=tuple(completions),
            rewards_G=tuple(rewards),
            rollouts_G=tuple(rollout for rollout, *_ in rows) if split and name == "a" else (),
        )

    first = [(0, 2, 1.0), (0, 4, 1.0)] if split else [(0, 6, 1.0)]
    return [group("a", [*first, (1, 3, 0.0), (2, 2, 0.25)]), group("b", [(0, 4, 0.5), (1, 2, 0.0)])]


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("name", ["dapo", "dr_grpo", "grpo", "rloo", "reinforce_pp_baseline", "gdpo"])
def test_the_samples_of_a_stage(name: str, updates: int) -> None:
    objective = replace(PRESETS[name], ratio="token") if updates > 1 else PRESETS[name]
    stage = GrpoStage(
        kind="grpo", name="rl", steps=1, problems_per_step=2, samples_per_problem=3, max_tokens=20,
        updates_per_step=updates, objective=objective,
    )  # fmt: skip
    found = []
    for split in (False, True):
        groups = groups_of(split)
        credit = credit_of(groups, stage, weights={"accuracy": 1.0})
        advantages_N = step_advantages(credit.scores, torch.device("cpu"))
        found.append(
            [
                [(float(advantages_N[one.score_at]), float(w)) for one in samples for w in one.weights if w]
                for samples in samples_of(groups, credit, stage)
            ]
        )
    whole, split_ = found
    assert len(whole) == len(split_) == updates
    for one, other in zip(whole, split_, strict=True):
        assert len(one) == len(other)
        assert [value for pair in other for value in pair] == pytest.approx([v for pair in one for v in pair], rel=1e-6)

"""Rollouts that were split into siblings: each counts once, so that how it was split changes nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from rlreason.config import GrpoStage
from rlreason.objective.advantage import group_advantage, rollout_advantage
from rlreason.objective.presets import PRESETS
from rlreason.objective.spec import ObjectiveSpec
from rlreason.stages.credit import advantages_of, samples_of
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict

MAX_TOKENS = 20
SPECS = {
    **{name: spec for name, spec in PRESETS.items() if spec.rewards == "sum"},
    **{f"aggregation {name}": ObjectiveSpec(aggregation=name) for name in ("token", "sequence", "group_token")},  # type: ignore[arg-type]
    "masked": ObjectiveSpec(overlong="mask"),
    "out of the baseline": ObjectiveSpec(overlong="mask_from_baseline"),
    "opo": ObjectiveSpec(baseline="length_weighted", scale="none"),
}


class Rollouts:
    """Nine rollouts of three groups, one without a score and one truncated, and each cut into one to three pieces."""

    def __init__(self) -> None:
        rng = random.Random(1)
        self.groups = [0, 0, 0, 1, 1, 1, 1, 2, 2]
        self.rewards = [1.0, 0.0, 0.5, 0.2, float("nan"), 0.9, 0.4, 0.7, 0.1]
        self.pieces = [[rng.randrange(1, 6) for _ in range(rng.randrange(1, 4))] for _ in self.groups]
        self.truncated = [at == 5 for at in range(9)]
        self.rollout = [at for at, cut in enumerate(self.pieces) for _ in cut]
        self.lengths = [length for cut in self.pieces for length in cut]


@pytest.mark.parametrize("name", SPECS)
def test_each_token_has_what_it_would_have_in_the_whole(name: str) -> None:
    some, spec = Rollouts(), SPECS[name]
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
    split = rollout_advantage(
        torch.tensor([some.rewards[one] for one in rollout], dtype=torch.float64),
        torch.tensor([some.groups[one] for one in rollout]),
        torch.tensor([some.lengths[at] for at in order]),
        torch.tensor(rollout) * 7 - 3,
        spec,
        max_tokens=MAX_TOKENS,
        truncated_N=torch.tensor([some.truncated[some.rollout[at]] and last[some.rollout[at]] == at for at in order]),
    )
    assert split.advantages_N.tolist() == pytest.approx(whole.advantages_N[rollout].tolist(), abs=1e-14)
    assert split.weights_N.tolist() == pytest.approx(whole.weights_N[rollout].tolist(), abs=1e-14)
    assert split.kept_N.tolist() == whole.kept_N[rollout].tolist()
    assert torch.equal(split.statistics_G6, whole.statistics_G6)


def test_a_rollout_in_three_pieces_counts_once_by_hand() -> None:
    """miles #2378: 1 in three pieces beside 0 in one has the mean 1/2, not 3/4."""
    step = (
        torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64),
        torch.zeros(4, dtype=torch.long),
        torch.tensor([1, 2, 1, 2]),
    )
    spec = ObjectiveSpec(scale="none", aggregation="sequence")
    once = rollout_advantage(*step, torch.tensor([0, 0, 0, 1]), spec, max_tokens=9)
    assert once.advantages_N.tolist() == [0.5, 0.5, 0.5, -0.5]
    assert once.weights_N.tolist() == [1 / 8, 1 / 8, 1 / 8, 1 / 4]  # 4 and 2 tokens of two rollouts
    tenths = torch.full((4,), 0.1, dtype=torch.float64)
    same = rollout_advantage(tenths, *step[1:], torch.tensor([0, 0, 0, 1]), ObjectiveSpec(), max_tokens=9)
    assert not same.advantages_N.any()  # 0.1 + 0.1 + 0.1 is not 0.3: equal rewards stay equal
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
        earned = advantages_of(groups, stage, weights={"accuracy": 1.0})
        found.append(
            [
                [(float(a), float(w)) for one in samples for a, w in zip(one.advantages, one.weights, strict=True) if w]
                for samples in samples_of(groups, earned, stage)
            ]
        )
    whole, split_ = found
    assert len(whole) == len(split_) == updates
    for one, other in zip(whole, split_, strict=True):
        assert len(one) == len(other)
        assert [value for pair in other for value in pair] == pytest.approx([v for pair in one for v in pair], rel=1e-6)

"""Several rewards kept apart (GDPO, arXiv 2601.05242) against Python floats; what order and missing scores change."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, stdev
from types import MappingProxyType

import pytest

from rlreason.config import GrpoStage
from rlreason.errors import UsageError
from rlreason.objective.presets import PRESETS
from rlreason.stages.credit import credit_of, weights_of
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict

WEIGHTS = {"accuracy": 1.0, "format": 0.25}
STAGE = GrpoStage(
    kind="grpo", name="rl", steps=1, problems_per_step=3, samples_per_problem=4, max_tokens=8, objective=PRESETS["gdpo"]
)


def scored(parts: list[tuple[float, float] | None]) -> list[RewardResult]:
    """What a mix says: the weighted sum, and its parts; None where the check gave nothing."""
    found = []
    for one in parts:
        if one is None:
            found.append(RewardResult(score=None, verdict=Verdict.BROKEN))
            continue
        named = dict(zip(WEIGHTS, one, strict=True))
        score = sum(WEIGHTS[name] * value for name, value in named.items())
        named["accuracy/inner"] = 7.0  # a part's own parts are no rewards
        found.append(RewardResult(score=score, verdict=Verdict.CORRECT, parts=MappingProxyType(named)))
    return found


def groups_of(table: list[list[tuple[float, float] | None]]) -> list[Group]:
    ids = list(range(5))
    one = Completion(prompt_ids=[1], token_ids=ids, sampler_logprobs=[0.0] * 5, text="", finish_reason="stop")
    problem = Problem(id="p", prompt="", verifier="math", reference="")
    return [
        Group(group_id=str(at), problem=problem, completions_G=(one,) * len(row), rewards_G=tuple(scored(row)))
        for at, row in enumerate(table)
    ]


def by_hand(table: list[list[tuple[float, float] | None]]) -> list[float]:
    """Number after number, from the formula."""
    epsilon = STAGE.objective.std_epsilon
    sums: list[float | None] = []
    for row in table:
        for one in row:
            if one is None:
                sums.append(None)
                continue
            total = 0.0
            for at, weight in enumerate(WEIGHTS.values()):
                column = [other[at] for other in row if other is not None]
                spread = stdev(column) if len(column) > 1 and max(column) > min(column) else 0.0
                total += weight * ((one[at] - fmean(column)) / (spread + epsilon) if spread else 0.0)
            sums.append(total)
    known = [x for x in sums if x is not None]
    return [0.0 if x is None else (x - fmean(known)) / (stdev(known) + epsilon) for x in sums]


def table(seed: int = 0) -> list[list[tuple[float, float] | None]]:
    rng = random.Random(seed)
    rows: list[list[tuple[float, float] | None]] = [
        [(float(rng.random() < 0.5), rng.random()) for _ in range(4)] for _ in range(3)
    ]
    rows[1][2] = None
    rows[2] = [(1.0, one[1]) for one in rows[2] if one is not None]  # nothing tells these apart but their format
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_each_part_is_normalised_in_its_group_and_their_sum_over_the_batch(seed: int) -> None:
    found = credit_of(groups_of(table(seed)), STAGE, weights=WEIGHTS).advantages_N.tolist()
    assert found == pytest.approx(by_hand(table(seed)), abs=1e-12)
    assert math.isclose(sum(found), 0.0, abs_tol=1e-12)


def test_the_comparison_sees_a_small_error() -> None:
    rows = table()
    first = rows[0][0]
    assert first is not None
    moved = [[(first[0], first[1] + 1e-9), *rows[0][1:]], *rows[1:]]
    found = credit_of(groups_of(moved), STAGE, weights=WEIGHTS).advantages_N.tolist()
    assert max(abs(a - b) for a, b in zip(found, by_hand(rows), strict=True)) > 1e-12


def test_a_completion_that_no_part_tells_from_its_group_earns_exactly_nothing() -> None:
    """The batch's mean, which is 0 but for rounding, left 1e-17 to it, and so a forward pass."""
    rows = table()
    rows[2] = [(1.0, 0.3)] * 3
    found = credit_of(groups_of(rows), STAGE, weights=WEIGHTS).advantages_N.tolist()
    assert found[-3:] == [0.0] * 3
    assert found == pytest.approx(by_hand(rows), abs=1e-12)


def test_a_step_without_any_score_is_no_mistake_of_the_recipe() -> None:
    found = credit_of(groups_of([[None, None], [None]]), STAGE, weights=WEIGHTS)
    assert not found.advantages_N.any()
    assert not found.kept_N.any()


def test_a_masked_completion_stays_in_the_statistics() -> None:
    """overlong = "mask": no loss of its own, and the others earn what they would beside it."""
    groups = groups_of(table())
    cut = replace(groups[0].completions_G[0], finish_reason="length")
    groups[0] = replace(groups[0], completions_G=(cut, *groups[0].completions_G[1:]))
    stage = STAGE.model_copy(update={"objective": replace(STAGE.objective, overlong="mask")})
    whole = credit_of(groups, STAGE, weights=WEIGHTS).advantages_N.tolist()
    masked = credit_of(groups, stage, weights=WEIGHTS).advantages_N.tolist()
    assert masked == pytest.approx([0.0, *whole[1:]], abs=1e-14)
    assert abs(whole[0]) > 0.1


def test_a_rare_reward_is_not_drowned_by_a_wide_one() -> None:
    """What the paper is about: in the sum of 0/100 and 0/1, both right and one right are the same but for 1 %."""
    rows: list[list[tuple[float, float] | None]] = [[(100.0, 1.0), (100.0, 0.0), (0.0, 1.0), (0.0, 0.0)]]
    apart = credit_of(groups_of(rows), STAGE, weights={"accuracy": 1.0, "format": 1.0}).advantages_N
    assert apart.tolist() == pytest.approx([1.2247, 0.0, 0.0, -1.2247], abs=1e-4)


def test_the_order_of_groups_and_completions_changes_nothing() -> None:
    rows = table()
    forth = credit_of(groups_of(rows), STAGE, weights=WEIGHTS).advantages_N.tolist()
    back = credit_of(groups_of([row[::-1] for row in rows[::-1]]), STAGE, weights=WEIGHTS).advantages_N.tolist()
    assert back[::-1] == pytest.approx(forth, abs=1e-14)


def test_weights_are_the_recipes_and_what_has_no_single_one_is_refused() -> None:
    assert weights_of({"accuracy": 1.0, "folder/judge.py:judge": {"weight": 0.5}, "format": {"style": "boxed"}}) == {
        "accuracy": 1.0,
        "judge.py:judge": 0.5,
        "format": 1.0,
    }
    with pytest.raises(UsageError, match=r"reward.format: .* gate and schedule"):
        weights_of({"format": {"gate": "accuracy"}})
    with pytest.raises(UsageError, match="none of other gave a score"):
        credit_of(groups_of(table()), STAGE, weights={"other": 1.0})

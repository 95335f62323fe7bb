"""Group advantages: values by hand, invariances, and the cases that other frameworks get wrong."""

from __future__ import annotations

import math
import random

import pytest
import torch

from rlreason.objective.advantage import Advantages, dense_groups, group_advantage, is_informative, overlong_penalty
from rlreason.objective.spec import ObjectiveSpec

CENTRED = ObjectiveSpec(scale="none")


def one_group(
    scores: list[float | None], spec: ObjectiveSpec = CENTRED, lengths: list[int] | None = None
) -> Advantages:
    rewards_N = torch.tensor([math.nan if score is None else score for score in scores], dtype=torch.float64)
    lengths_N = torch.tensor(lengths or [4] * len(scores))
    return group_advantage(rewards_N, torch.zeros(len(scores), dtype=torch.long), lengths_N, spec, max_tokens=10)


def values(scores: list[float | None], spec: ObjectiveSpec = CENTRED, lengths: list[int] | None = None) -> list[float]:
    return one_group(scores, spec, lengths).advantages_N.tolist()


def test_centred_values_by_hand() -> None:
    assert values([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]


def test_scaled_values_by_hand() -> None:
    # mean 0.25; variance (0.75² + 3·0.25²)/3 = 0.25; std 0.5
    expected = [0.75 / (0.5 + 1e-6), *[-0.25 / (0.5 + 1e-6)] * 3]
    assert values([1.0, 0.0, 0.0, 0.0], ObjectiveSpec()) == pytest.approx(expected, rel=1e-12)
    # MaxRL: over the mean of 0.25
    assert values([1.0, 0.0, 0.0, 0.0], ObjectiveSpec(scale="group_mean")) == [3.0, -1.0, -1.0, -1.0]


def test_maxrl_never_reinforces_the_worse_completion() -> None:
    """(r − mean)/mean of rewards (−1, 0) was (+1, −1); of (−1, 1.001), whose mean is near 0, ±2001."""
    maxrl = ObjectiveSpec(scale="group_mean")
    for scores in ([-1.0, 0.0], [-1.0, 1.001], [1.0, -1.0], [-2.0, -1.0], [0.0, 0.0]):
        assert values(scores, maxrl) == [0.0, 0.0]
    assert values([0.0, 1e-9], maxrl) == pytest.approx([-1.0, 1.0], rel=1e-12)  # bounded by the group's size


@pytest.mark.parametrize("baseline", ["mean", "length_weighted", "batch", "given", "none"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_equal_rewards_over_their_deviation_are_exactly_zero_with_every_baseline(baseline: str, epsilon: float) -> None:
    """1 over a deviation of 0 plus 1e-6 was 1e6."""
    out = group_advantage(
        torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64),
        torch.tensor([0, 0, 0, 1, 1]),
        torch.ones(5, dtype=torch.long),
        ObjectiveSpec(baseline=baseline, std_epsilon=epsilon),  # type: ignore[arg-type]
        max_tokens=3,
        baseline_N=torch.full((5,), 0.5, dtype=torch.float64),
    )
    assert out.advantages_N[:3].tolist() == [0.0, 0.0, 0.0]
    assert out.advantages_N[3:].any()
    assert float(out.advantages_N.abs().max()) < 2.0


def test_baselines_by_hand() -> None:
    # The others' means: 0, 0.5, 0.5
    out = values([1.0, 0.0, 0.0], ObjectiveSpec(baseline="leave_one_out", scale="none"))
    assert out == pytest.approx([1.0, -0.5, -0.5], abs=1e-15)
    # OPO: (6·1 + 2·0) / 8 = 0.75
    assert values([1.0, 0.0], ObjectiveSpec(baseline="length_weighted", scale="none"), [6, 2]) == [0.25, -0.75]


def test_a_reward_that_is_missing_is_in_no_statistic_and_no_loss() -> None:
    credit = one_group([1.0, None, 0.0, 0.0], ObjectiveSpec())
    without = values([1.0, 0.0, 0.0], ObjectiveSpec())
    assert credit.advantages_N.tolist() == [without[0], 0.0, *without[1:]]
    assert credit.kept_N.tolist() == [True, False, True, True]
    assert credit.weights_N.tolist() == [1 / 12, 0.0, 1 / 12, 1 / 12]


@pytest.mark.parametrize("scores", [[1.0], [0.3, 0.3, 0.3], [None, 1.0], [None, None]])
@pytest.mark.parametrize("scale", ["group_std", "none", "group_mean", "batch_std"])
def test_no_information_is_exactly_zero(scores: list[float | None], scale: str) -> None:
    # verl gives a singleton its raw reward; NeMo RL gives ±1e6 on near-zero deviation.
    credit = one_group(scores, ObjectiveSpec(scale=scale))  # type: ignore[arg-type]
    assert not credit.advantages_N.any()
    assert not credit.informative_G.any()
    assert not is_informative(scores)


@pytest.mark.parametrize("offset", [0.0, 7428.0, -1e6])
def test_a_common_offset_leaves_no_residue(offset: float) -> None:
    equal = [offset + 0.1 + 0.2] * 3
    assert values(equal, ObjectiveSpec()) == [0.0, 0.0, 0.0]
    assert values([offset + 1, offset, offset], ObjectiveSpec()) == pytest.approx(
        values([1.0, 0.0, 0.0], ObjectiveSpec()), rel=1e-9
    )


def test_float32_rewards_are_centred_in_float64_by_the_batch_too() -> None:
    rewards_N = torch.tensor([7428.0, 7429.0, 7430.0, 7428.0, 7428.0, 7428.0])
    spec = ObjectiveSpec(baseline="batch", scale="none")
    out = group_advantage(rewards_N, torch.arange(6), torch.ones(6, dtype=torch.long), spec, max_tokens=3)
    assert out.advantages_N.tolist() == pytest.approx([-0.5, 0.5, 1.5, -0.5, -0.5, -0.5], abs=1e-7)
    rewards_N[2] = 7429.0  # the mean, 7428 1/3, is no float32 number
    out = group_advantage(rewards_N, torch.arange(6), torch.ones(6, dtype=torch.long), spec, max_tokens=3)
    assert out.advantages_N.tolist() == pytest.approx([-1 / 3, 2 / 3, 2 / 3, -1 / 3, -1 / 3, -1 / 3], abs=1e-7)


@pytest.mark.parametrize("overlong", ["keep", "soft_penalty"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_has_the_dtype_of_the_rewards(overlong: str, dtype: torch.dtype) -> None:
    spec = ObjectiveSpec(overlong=overlong)  # type: ignore[arg-type]
    rewards_N = torch.tensor([1.0, 0.0], dtype=dtype)
    out = group_advantage(rewards_N, torch.zeros(2, dtype=torch.long), torch.tensor([2, 3]), spec, max_tokens=3)
    assert (out.advantages_N.dtype, out.weights_N.dtype) == (dtype, dtype)


def test_groups_are_known_by_their_number_alone() -> None:
    # slime #1414: uneven groups cut by position share a baseline. Groups 5: (1, 0), 2: (1, 1, 0), in any order.
    rewards_N = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
    group_N = torch.tensor([5, 2, 5, 2, 2])
    out = group_advantage(rewards_N, group_N, torch.ones(5, dtype=torch.long), CENTRED, max_tokens=3)
    assert out.advantages_N.tolist() == pytest.approx([0.5, 1 / 3, -0.5, 1 / 3, -2 / 3], abs=1e-7)
    assert out.statistics_G6[:, 4].tolist() == [3.0, 2.0]
    assert dense_groups(["x", "y", "x"]) == [0, 1, 0]


def test_soft_overlong_penalty_by_hand() -> None:
    # max 10, cache 2: free to 8, −1/2 at 9, −1 at 10 and beyond
    out = overlong_penalty(torch.tensor([3, 8, 9, 10, 14]), 10, 0.2)
    assert out.tolist() == pytest.approx([0.0, 0.0, -0.5, -1.0, -1.0], abs=1e-15)


def test_truncated_sequences() -> None:
    def credit(overlong: str) -> Advantages:
        return group_advantage(
            torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
            torch.zeros(3, dtype=torch.long),
            torch.tensor([2, 2, 10]),
            ObjectiveSpec(scale="none", overlong=overlong),  # type: ignore[arg-type]
            max_tokens=10,
            truncated_N=torch.tensor([False, False, True]),
        )

    assert credit("keep").advantages_N.tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3], abs=1e-15)
    assert credit("mask").advantages_N.tolist() == pytest.approx([2 / 3, -1 / 3, 0.0], abs=1e-15)
    assert credit("mask").weights_N.tolist() == [0.25, 0.25, 0.0]
    assert credit("mask_from_baseline").advantages_N.tolist() == [0.5, -0.5, 0.0]


def test_shift_scale_and_permutation() -> None:
    rng = random.Random(0)
    scores: list[float | None] = [rng.random() for _ in range(9)]
    base = values(scores, ObjectiveSpec())
    assert values([s + 3.0 for s in scores if s is not None], ObjectiveSpec()) == pytest.approx(base, rel=1e-9)
    # Not exactly scale free: 1e-6 is added to the deviation.
    assert values([s * 10 for s in scores if s is not None], ObjectiveSpec()) == pytest.approx(base, rel=1e-4)
    order = rng.sample(range(9), 9)
    assert values([scores[i] for i in order], ObjectiveSpec()) == pytest.approx([base[i] for i in order], rel=1e-12)


def test_sum_is_zero_and_the_tolerance_has_a_canary() -> None:
    rng = random.Random(1)
    advantages = values([rng.random() for _ in range(64)], ObjectiveSpec())
    assert abs(math.fsum(advantages)) < 1e-9
    assert not abs(math.fsum([*advantages[1:], advantages[0] + 1e-8])) < 1e-9


def test_a_baseline_that_is_asked_for_and_not_given() -> None:
    with pytest.raises(ValueError, match="pass baseline_N"):
        one_group([1.0, 0.0], ObjectiveSpec(baseline="given"))


@pytest.mark.parametrize("offset", [0.0, 7428.0, 1e6])
def test_groups_of_thousands_and_a_common_offset_leave_no_residue(offset: float) -> None:
    """What GPU kernels of groups fall over: more than 1,024 members, and float32 rewards whose variance cancels."""
    rng = random.Random(2)
    groups = [[rng.random() < 0.3 for _ in range(3000)], [rng.random() < 0.9 for _ in range(2)], [True] * 1500]
    rewards_N = torch.tensor([offset + value for group in groups for value in group], dtype=torch.float32)
    group_N = torch.tensor([at for at, group in enumerate(groups) for _ in group])
    order_N = torch.randperm(len(group_N), generator=torch.Generator().manual_seed(0))
    ones_N = torch.ones(len(group_N), dtype=torch.long)
    out = group_advantage(rewards_N[order_N], group_N[order_N], ones_N, ObjectiveSpec(), max_tokens=3)
    wanted = []
    for group in groups:
        mean = math.fsum(group) / len(group)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in group) / (len(group) - 1))
        wanted += [(value - mean) / (std + 1e-6) if std else 0.0 for value in group]
    wanted_N = torch.tensor(wanted, dtype=torch.float64)[order_N]
    assert float((out.advantages_N - wanted_N).abs().max()) < 1e-6
    assert not out.advantages_N[group_N[order_N] == 2].any()
    one_pass = (rewards_N.square().mean() - rewards_N.mean().square()).clamp(min=0).sqrt()  # the way that cancels
    assert (abs(float(one_pass) - float(rewards_N.double().std())) > 1e-3) is (offset > 0)

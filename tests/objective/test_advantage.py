"""Group advantages: values by hand, invariances, and the cases that other frameworks get wrong."""

from __future__ import annotations

import math
import random

import pytest

from rlreason.objective.advantage import group_advantages, is_informative


def test_centred_values_by_hand() -> None:
    # mean 0.5
    assert group_advantages([1.0, 0.0, 0.0, 1.0], "none") == [0.5, -0.5, -0.5, 0.5]


def test_scaled_values_by_hand() -> None:
    # mean 0.25; variance (0.75² + 3·0.25²)/3 = 0.25; std 0.5
    expected = [0.75 / (0.5 + 1e-6), *[-0.25 / (0.5 + 1e-6)] * 3]
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == pytest.approx(expected, rel=1e-12)


def test_none_is_excluded_from_mean_and_deviation() -> None:
    with_none = group_advantages([1.0, None, 0.0, 0.0])
    without = group_advantages([1.0, 0.0, 0.0])
    assert with_none == [without[0], None, *without[1:]]


@pytest.mark.parametrize("scores", [[1.0], [0.3, 0.3, 0.3], [None, 1.0], [None, None], []])
def test_no_information_is_exactly_zero(scores: list[float | None]) -> None:
    # verl gives a singleton its raw reward; NeMo RL gives ±1e6 on near-zero deviation.
    assert all(advantage in (0.0, None) for advantage in group_advantages(scores))
    assert not is_informative(scores)


def test_equal_scores_with_rounding_residue_are_zero() -> None:
    assert group_advantages([0.1 + 0.2, 0.1 + 0.2, 0.1 + 0.2]) == [0.0, 0.0, 0.0]


def test_shift_scale_and_permutation() -> None:
    rng = random.Random(0)
    scores = [rng.random() for _ in range(9)]
    base = group_advantages(scores)
    assert group_advantages([score + 3.0 for score in scores]) == pytest.approx(base, rel=1e-9)
    # Not exactly scale free: 1e-6 is added to the deviation.
    assert group_advantages([score * 10 for score in scores]) == pytest.approx(base, rel=1e-4)
    order = list(range(9))
    rng.shuffle(order)
    assert group_advantages([scores[i] for i in order]) == pytest.approx([base[i] for i in order], rel=1e-12)


def test_sum_is_zero_and_the_tolerance_has_a_canary() -> None:
    rng = random.Random(1)
    advantages = [a for a in group_advantages([rng.random() for _ in range(64)]) if a is not None]
    assert abs(math.fsum(advantages)) < 1e-9
    assert not abs(math.fsum([*advantages[1:], advantages[0] + 1e-8])) < 1e-9

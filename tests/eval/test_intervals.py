"""Intervals and pass@k against published or hand-derived numbers."""

from __future__ import annotations

from itertools import combinations

import pytest

from rlreason.eval.intervals import pass_at_k, wilson


def test_wilson_by_hand() -> None:
    # 81 of 263 (Newcombe 1998, Table I, method 3): 0.2553 to 0.3662
    interval = wilson(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20).low == 0.0  # Newcombe: 0.0000 to 0.1611
    assert wilson(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert wilson(1, 29).value == pytest.approx(1 / 29)


def test_nothing_observed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


@pytest.mark.parametrize(("samples", "correct"), [(5, 0), (5, 1), (6, 3), (6, 6)])
def test_pass_at_k_is_the_share_of_draws_with_a_success(samples: int, correct: int) -> None:
    outcomes = [True] * correct + [False] * (samples - correct)
    for k in range(1, samples + 1):
        draws = list(combinations(outcomes, k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


@pytest.mark.parametrize("k", [0, 6])
def test_impossible_k_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and"):
        pass_at_k(5, 2, k)

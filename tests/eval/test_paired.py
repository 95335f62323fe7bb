"""Paired comparison: against enumeration, against scipy's numbers, and by simulation under the null and off it."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from rlreason.eval import paired
from rlreason.eval.intervals import mean_share, sampling_deviation, t_quantile
from rlreason.eval.paired import compare, holm, sign_flips

Counts = dict[str, tuple[int, int]]


def counts(correct: np.ndarray | list[int], of: int) -> Counts:
    return {str(place): (int(right), of) for place, right in enumerate(correct)}


def enumerated(differences: list[Fraction]) -> float:
    seen = abs(sum(differences))
    signed = product((1, -1), repeat=len(differences))
    return sum(abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= seen for signs in signed) / 2 ** len(
        differences
    )


@pytest.mark.parametrize(
    "differences",
    [
        [Fraction(1)] * 6,
        [Fraction(1), Fraction(1), Fraction(-1), Fraction(0), Fraction(1)],
        [Fraction(1, 4), Fraction(-3, 4), Fraction(1, 2), Fraction(1, 2), Fraction(1, 4)],
        [Fraction(1, 3), Fraction(1, 4), Fraction(-1, 12), Fraction(2, 3)],
        [Fraction(1), Fraction(-1)],
    ],
)
def test_the_test_is_the_share_of_all_sign_flips(differences: list[Fraction]) -> None:
    assert sign_flips(differences) == pytest.approx(enumerated(differences), abs=1e-12)


@pytest.mark.parametrize(("better", "worse", "p"), [(15, 5, 0.04138946533203125), (40, 20, 0.01348929373119186)])
def test_with_one_sample_it_is_mcnemars_exact_test(better: int, worse: int, p: float) -> None:
    """scipy 1.17.1: ``binomtest(5, 20).pvalue``, ``binomtest(20, 60).pvalue``; statsmodels' exact mcnemar likewise."""
    first = counts([0] * better + [1] * worse + [1] * 30, 1)
    second = counts([1] * better + [0] * worse + [1] * 30, 1)
    found = compare(first, second)
    assert found.p == pytest.approx(p, rel=1e-12)
    assert (found.better, found.worse, found.problems) == (better, worse, better + worse + 30)
    assert found.gain.value == pytest.approx((better - worse) / found.problems)


def test_signs_are_drawn_where_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = [Fraction(k % 11 - 4, 7) for k in range(40)]
    exact = sign_flips(differences)
    monkeypatch.setattr(paired, "_WIDEST", 1)
    assert 0.01 < exact < 0.5
    assert sign_flips(differences) == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.706204736174694), (2, 4.302652729749462), (3, 3.1824463052837078), (29, 2.045229642132703)],
)
def test_students_quantiles(degrees: int, quantile: float) -> None:
    """scipy 1.17.1: ``stats.t.ppf(0.975, degrees)``."""
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, abs=1e-11)
    assert t_quantile(0.975, 1000) == pytest.approx(1.9623390808264083, abs=1e-7)
    assert t_quantile(0.975, 200) == pytest.approx(1.9718962236339088, abs=1e-6)


def test_holm_by_hand() -> None:
    # 4 · 0.01; 3 · 0.02; 2 · 0.03 stays at the 0.06 before it; 0.5
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def drawn(generator: np.random.Generator, problems: int, samples: int, shift: float) -> tuple[Counts, Counts]:
    """Two models on problems of very different difficulty; the second solves ``shift`` of what is left more often."""
    first, other = generator.beta(1, 1, problems), generator.beta(1, 1, problems)
    second = np.where(generator.random(problems) < 0.5, first, other)
    second = second + (1 - second) * shift
    return (
        counts(generator.binomial(samples, first), samples),
        counts(generator.binomial(samples, second), samples),
    )


@pytest.mark.parametrize(("problems", "samples"), [(150, 1), (60, 4)])
def test_under_the_null_one_in_twenty_is_called_and_the_interval_covers(problems: int, samples: int) -> None:
    generator, runs = np.random.default_rng(7), 1500
    found = [compare(*drawn(generator, problems, samples, 0.0)) for _ in range(runs)]
    called = sum(one.p < 0.05 for one in found) / runs
    covered = sum(one.gain.low <= 0 <= one.gain.high for one in found) / runs
    assert 0.025 < called < 0.062  # exact: never above 5 % but for the 1,500 draws; steps of p keep it a little below
    assert 0.93 < covered < 0.97


def test_the_interval_covers_a_true_difference_and_the_detectable_one_is_detected() -> None:
    """A shift of a tenth of what is left is 5 points; ``detectable`` is what 80 % of such comparisons call."""
    generator, runs, samples = np.random.default_rng(8), 500, 4
    found = [compare(*drawn(generator, 200, samples, 0.1)) for _ in range(runs)]
    assert 0.93 < sum(one.gain.low <= 0.05 <= one.gain.high for one in found) / runs < 0.97
    detectable = float(np.mean([one.detectable for one in found]))
    calls = [compare(*drawn(generator, 200, samples, 2 * detectable)).p < 0.05 for _ in range(runs)]
    assert 0.74 < sum(calls) / runs < 0.86


def test_holm_keeps_the_chance_of_any_false_call() -> None:
    """Three suites without a difference: uncorrected, one in seven evaluations would find one."""
    generator, runs = np.random.default_rng(9), 600
    families = [[compare(*drawn(generator, 60, 4, 0.0)).p for _ in range(3)] for _ in range(runs)]
    assert sum(min(holm(family)) < 0.05 for family in families) / runs < 0.068
    assert sum(min(family) < 0.05 for family in families) / runs > 0.09  # what the correction is for


@pytest.mark.parametrize(("problems", "samples", "shape"), [(100, 1, (1, 1)), (30, 4, (1, 1)), (30, 16, (2, 6))])
def test_intervals_of_accuracies_cover_what_they_say(problems: int, samples: int, shape: tuple[int, int]) -> None:
    generator, runs = np.random.default_rng(3), 2000
    true = shape[0] / sum(shape)
    hits = naive = 0
    for _ in range(runs):
        right = generator.binomial(samples, generator.beta(*shape, problems))
        found = mean_share((right / samples).tolist(), [samples] * problems)
        hits += found.low <= true <= found.high
        flat = paired.fmean(right / samples)
        half = 1.96 * math.sqrt(flat * (1 - flat) / (problems * samples))
        naive += abs(flat - true) <= half
    assert 0.93 < hits / runs < 0.97
    if samples > 1:
        assert naive / runs < 0.88  # k samples of a problem taken for k problems: what must not be done


def test_the_deviation_between_reruns_is_that_of_reruns() -> None:
    generator = np.random.default_rng(5)
    chances = generator.beta(1, 1, 30)
    reruns = generator.binomial(1, chances, (4000, 30)).mean(axis=1)
    found = [sampling_deviation(generator.binomial(8, chances).tolist(), [8] * 30) for _ in range(300)]
    squares = [one**2 for one in found if one is not None]
    assert float(np.mean(squares)) == pytest.approx(float(reruns.var()), rel=0.05)
    assert sampling_deviation([1, 0], [1, 1]) is None


def test_few_problems_say_little_and_say_so() -> None:
    """30 problems, one sample each: no exact test calls fewer than 6 of them, all in one direction."""
    same = counts([1] * 10 + [0] * 20, 1)
    found = compare(same, same)
    assert found.p == 1.0
    assert found.gain.low < 0 < found.gain.high
    assert found.detectable == pytest.approx(max(6 / 30, found.detectable))
    five = counts([1] * 15 + [0] * 15, 1)
    assert compare(same, five).p == pytest.approx(2 / 2**5)


def test_problems_that_only_one_has_are_left_out() -> None:
    found = compare({"a": (1, 1), "b": (0, 1), "c": (0, 0)}, {"b": (1, 1), "c": (1, 1), "d": (1, 1)})
    assert (found.problems, found.first, found.second) == (1, 0.0, 1.0)
    with pytest.raises(ValueError, match="no problem"):
        compare({"a": (0, 0)}, {"a": (1, 1)})

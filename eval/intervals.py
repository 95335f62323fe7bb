"""Intervals for accuracies, also where a problem was asked several times, and the unbiased pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean

from rlreason.proportion import Z95, score_interval, wilson
from rlreason.types import Interval

__all__ = ["mean_share", "pass_at_k", "sampling_deviation", "t_quantile", "wilson"]

#: From here on the expansion in 1/degrees below is exact to seven digits.
_MANY = 200


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement is correct (arXiv 2107.03374).

    1 − C(samples − correct, k) / C(samples, k). Raises ValueError when k is not within 1..samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} must be between 1 and the {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_share(shares: Sequence[float], samples: Sequence[int]) -> Interval:
    """Mean over problems of each one's share of correct samples, with its 95 % interval for problems of this kind.

    Problems are what was drawn independently; k samples of one problem are not k problems. With one sample each this is
    Wilson's interval. With more it is Wilson's at the effective number of observations that the spread between problems
    gives (Korn and Graubard 1998; Dean and Pagano 2015), which Student's t widens for few problems and which is at most
    the number of samples. Raises ValueError without a problem.
    """
    count = len(shares)
    if not count:
        raise ValueError("an interval needs at least one observation")
    mean = fmean(shares)
    if max(samples) == 1 or mean in {0.0, 1.0} or count == 1:
        return wilson(sum(shares), count)
    variance = sum((share - mean) ** 2 for share in shares) / (count - 1) / count
    least = mean * (1 - mean) / sum(samples)
    effective = mean * (1 - mean) / max(variance, least) * (Z95 / t_quantile(0.975, count - 1)) ** 2
    return score_interval(mean, effective, count)


def sampling_deviation(correct: Sequence[int], samples: Sequence[int]) -> float | None:
    """Standard deviation of the accuracy between reruns on the same problems with one new sample of each.

    √(Σ p(1 − p)) / problems, with the unbiased estimate of p(1 − p) of each problem from its own samples: what a rerun
    alone changes, as the problems stay. With k samples each it is 1/√k of it. None where no problem has two samples.
    """
    pairs = [(right, of) for right, of in zip(correct, samples, strict=True) if of > 1]
    if not pairs:
        return None
    mean = fmean(right / of * (1 - right / of) * of / (of - 1) for right, of in pairs)
    return math.sqrt(mean / len(correct))


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t with whole degrees of freedom, for a probability above 1/2.

    By bisection of the closed form of its distribution function (Abramowitz and Stegun 26.7.3 and 26.7.4); from 200
    degrees by its expansion (26.7.5). scipy has it too, but where scipy is installed transformers imports it into every
    process.
    """
    if degrees >= _MANY:
        z = NormalDist().inv_cdf(probability)
        return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    low, high = 0.0, 2.0
    while _t_inside(high, degrees) < 2 * probability - 1:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, degrees) < 2 * probability - 1 else (low, middle)
    return high


def _t_inside(t: float, degrees: int) -> float:
    """Probability that Student's t lies within ±t."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, term, total = math.cos(angle) ** 2, 1.0, 0.0
    odd = degrees % 2
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * (power + 1) / (power + 2)
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)

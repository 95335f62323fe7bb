"""Two models on the same problems: is one better, by how much, and what could have been seen at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist, fmean

from rlreason.eval.intervals import t_quantile
from rlreason.types import Interval

#: A difference is called one below this two-sided p-value.
LEVEL = 0.05
#: Share of reruns that would call a difference of ``Paired.detectable`` one.
POWER = 0.8
#: Widest distribution of a sum that is computed exactly, in steps; beyond it, signs are drawn.
_WIDEST = 400_000
_DRAWS = 20_000
#: Fewest problems that can differ, all in one direction, for an exact test to call it: 2 · 2⁻⁶ < 0.05.
_FEWEST = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The second model minus the first on the problems that both have a verified answer to.

    Example: ``compare({"p1": (1, 1), "p2": (0, 1)}, {"p1": (1, 1), "p2": (1, 1)}).gain.value == 0.5``.
    """

    problems: int
    first: float
    second: float
    #: Mean difference with its 95 % interval.
    gain: Interval
    #: Problems on which the second has the larger share of correct samples, and the smaller.
    better: int
    worse: int
    #: Two-sided, exact: all ways to swap the two models problem by problem. With one sample each it is McNemar's.
    p: float
    #: The smallest difference that 80 % of such comparisons would call one, given how much the two differ by problem.
    detectable: float


def compare(first: Mapping[str, tuple[int, int]], second: Mapping[str, tuple[int, int]]) -> Paired:
    """Compare by problem. Each mapping: problem id -> (correct samples, verified samples); problems without a verified
    answer of both models are left out. Raises ValueError where none is left."""
    common = [name for name, (_, of) in first.items() if of and second.get(name, (0, 0))[1]]
    if not common:
        raise ValueError("no problem has a verified answer of both models")
    shares = [(Fraction(*first[name]), Fraction(*second[name])) for name in common]
    differences = [new - old for old, new in shares]
    step = 1 / min(min(first[name][1], second[name][1]) for name in common)
    gain, deviation = _gain([float(one) for one in differences], step)
    needed = (NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)) * deviation
    return Paired(
        problems=len(common),
        first=fmean(float(old) for old, _ in shares),
        second=fmean(float(new) for _, new in shares),
        gain=gain,
        better=sum(one > 0 for one in differences),
        worse=sum(one < 0 for one in differences),
        p=sign_flips(differences),
        detectable=min(1.0, max(needed, _FEWEST * step / len(common))),
    )


def _gain(differences: Sequence[float], step: float) -> tuple[Interval, float]:
    """Mean difference, its 95 % interval, its standard error.

    Student's interval of the differences and of two more, one step up and one down (Bonett and Price 2012 for one
    sample each, whose step is 1), about the middle that these pull towards 0: it covers as it says also where few
    problems differ, and is never of no width.
    """
    padded = [*differences, step, -step]
    count, middle = len(padded), sum(differences) / len(padded)
    deviation = math.sqrt(sum((one - middle) ** 2 for one in padded) / count / count)
    half = t_quantile(0.975, max(1, len(differences) - 1)) * deviation
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Interval(value=fmean(differences), low=low, high=high, count=len(differences)), deviation


def sign_flips(differences: Sequence[Fraction]) -> float:
    """Two-sided p-value that the differences are symmetric about 0: the share of all ways to choose their signs whose
    sum is at least as far from 0 as the one seen (Fisher 1935), by the exact distribution of the sum.

    With differences of 1 and −1 alone it is the exact test of McNemar (1947). Where samples were lost and their common
    step is too fine for that, 20,000 draws of the signs, always the same ones.
    """
    sizes = [abs(one) for one in differences if one]
    if not sizes:
        return 1.0
    unit = math.lcm(*(one.denominator for one in sizes))
    steps = sorted(int(one * unit) for one in sizes)
    seen, total = abs(sum(int(one * unit) for one in differences)), sum(steps)
    if not seen:
        return 1.0
    if 2 * total + 1 > _WIDEST:
        return _drawn_flips([float(one) for one in sizes], abs(float(sum(differences))))
    import numpy as np  # the report reads verdicts and loads nothing heavy for it

    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for step in steps:
        shifted = np.zeros_like(chances)
        shifted[step:] += chances[: len(chances) - step]
        shifted[: len(chances) - step] += chances[step:]
        chances = shifted / 2
    return float(min(1.0, 2 * chances[total + seen :].sum()))


def _drawn_flips(sizes: Sequence[float], seen: float) -> float:
    import numpy as np

    values, bits = np.asarray(sizes), np.random.Philox(key=0)
    found = 0
    for _ in range(_DRAWS):
        words = np.asarray(bits.random_raw(len(values) // 64 + 1), dtype=np.uint64)
        signs = np.unpackbits(words.view(np.uint8))[: len(values)] * 2.0 - 1.0
        found += abs(float(signs @ values)) >= seen - 1e-9
    return (found + 1) / (_DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value corrected for all of them (Holm 1979): with a rule "below 5 %", the chance of any false call among
    comparisons without a difference stays below 5 %."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        found[place] = highest
    return found

"""The interval of a proportion. Standard library only: rewards and evaluations both count."""

from __future__ import annotations

import math

from rlreason.types import Interval

#: Two-sided 95 % quantile of the normal distribution.
Z95 = 1.959963984540054


def wilson(successes: float, count: int) -> Interval:
    """95 % Wilson score interval of a proportion (Wilson 1927); good also near 0 and 1 and for small counts.

    Raises ValueError when ``count`` is 0.
    """
    if count < 1:
        raise ValueError("an interval needs at least one observation")
    return score_interval(successes / count, count, count)


def score_interval(share: float, effective: float, count: int) -> Interval:
    """The same of a share whose standard error is that of ``effective`` independent observations, of ``count``."""
    spread = Z95**2 / effective
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 * math.sqrt(share * (1 - share) / effective + spread / (4 * effective)) / (1 + spread)
    # At the ends the bound is the end itself; the formula would leave a rounding error such as 5.6e-17 there.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return Interval(value=share, low=low, high=high, count=count)

"""Intervals for proportions and the unbiased pass@k."""

from __future__ import annotations

import math

from rlreason.proportion import wilson

__all__ = ["pass_at_k", "wilson"]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement is correct (arXiv 2107.03374).

    1 − C(samples − correct, k) / C(samples, k). Raises ValueError when k is not within 1..samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k = {k} must be between 1 and the {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)

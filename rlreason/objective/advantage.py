"""Group-relative advantages. Pure Python: a group is a handful of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

#: Added to the standard deviation, as in verl and the GRPO reference code.
STD_EPSILON = 1e-6


def group_advantages(
    scores_G: Sequence[float | None], scale: Literal["group_std", "none"] = "group_std"
) -> list[float | None]:
    """A_i = (r_i − mean) [/ (std + 1e-6)], over the scores that are not None.

    GRPO, arXiv 2402.03300 eq. 3 (outcome supervision); ``scale="none"`` is Dr. GRPO, arXiv 2503.20783. The
    standard deviation is the unbiased one (n − 1), as in verl and TRL. A None score stays None and counts in
    neither mean nor deviation. A single usable score, or equal scores, give exactly 0 by definition.

    Example: ``group_advantages([1.0, 0.0, None], "none") == [0.5, -0.5, None]``.
    """
    usable = [score for score in scores_G if score is not None]
    if len(usable) < 2 or max(usable) == min(usable):
        return [None if score is None else 0.0 for score in scores_G]
    mean = math.fsum(usable) / len(usable)
    divisor = 1.0
    if scale == "group_std":
        variance = math.fsum((score - mean) ** 2 for score in usable) / (len(usable) - 1)
        divisor = math.sqrt(variance) + STD_EPSILON
    return [None if score is None else (score - mean) / divisor for score in scores_G]


def is_informative(scores_G: Sequence[float | None]) -> bool:
    """Whether the group carries any gradient: at least two usable scores that differ (DAPO dynamic sampling)."""
    usable = [score for score in scores_G if score is not None]
    return len(usable) >= 2 and max(usable) != min(usable)

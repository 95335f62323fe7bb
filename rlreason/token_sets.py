"""Which tokens a draw could give, and with what probabilities, of every position of a completion.

E = entries of all sets, T = positions, V = vocabulary. NumPy is imported where arrays are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlreason.arrays import equal_fields, set_arrays

if TYPE_CHECKING:
    from rlreason.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenSets:
    """A set of tokens for each of T positions, one behind the other: that of position t ends before ``ends[t]``.

    Example, of a draw between 4 and 9 and one of 4 alone: ``TokenSets(ends=(2, 3), ids=(4, 9, 4), logprobs=(-0.7, -0.7,
    0.0))``. Raises ValueError where lengths don't fit.
    """

    #: int32 [T], rising: where each set ends. Empty sets belong to tokens that the policy did not write.
    ends: IntArray
    #: int32 [E]. None: every set that is not empty holds the whole vocabulary in order.
    ids: IntArray | None = None
    #: float32 [E]: log-probability of each under the sampling distribution. None: not recorded.
    logprobs: FloatArray | None = None
    #: Nothing outside of a set could be drawn. False: it holds the most probable tokens of more.
    whole: bool = True

    def __post_init__(self) -> None:
        import numpy as np

        count = int(self.ends[-1]) if len(self.ends) else 0
        if self.ids is None and (self.logprobs is None or not self.whole):
            raise ValueError("TokenSets without ids is a whole distribution: it needs logprobs")
        set_arrays(
            self,
            ends=(self.ends, np.int32, None),
            ids=(self.ids, np.int32, count),
            logprobs=(self.logprobs, np.float32, count),
        )

    __eq__ = equal_fields
    __hash__ = None  # type: ignore[assignment]

    def behind(self, count: int) -> TokenSets:
        """The same behind ``count`` positions with empty sets."""
        import numpy as np

        ends = np.concatenate([np.zeros(count, dtype=np.int32), self.ends])
        return TokenSets(ends=ends, ids=self.ids, logprobs=self.logprobs, whole=self.whole)

    def head(self, count: int) -> TokenSets:
        """The first ``count`` positions."""
        last = int(self.ends[count - 1]) if count else 0
        return TokenSets(
            ends=self.ends[:count],
            ids=None if self.ids is None else self.ids[:last],
            logprobs=None if self.logprobs is None else self.logprobs[:last],
            whole=self.whole,
        )

    def entries(self, chosen: BoolArray) -> tuple[Any, Any, FloatArray | None]:
        """(size of the set of each chosen position, ids of all of their entries, log-probabilities of those)."""
        import numpy as np

        sizes = np.diff(self.ends, prepend=0)
        picked = np.repeat(chosen, sizes)
        sizes = sizes[chosen]
        if self.ids is None:
            ids = np.tile(np.arange(sizes.max(initial=0), dtype=np.int32), len(sizes))
        else:
            ids = self.ids[picked]
        return sizes, ids, None if self.logprobs is None else self.logprobs[picked]

    def lacks(self, token_ids: IntArray) -> BoolArray:
        """Of T tokens, those that their position's set, where it has one, does not hold: bool [T]."""
        import numpy as np

        sizes = np.diff(self.ends, prepend=0)
        if self.ids is None:
            return token_ids >= np.where(sizes > 0, sizes, np.iinfo(np.int32).max)
        there = np.zeros(len(self.ends), dtype=np.bool_)
        position = np.repeat(np.arange(len(self.ends)), sizes)
        there[position[self.ids == token_ids[position]]] = True
        return (sizes > 0) & ~there

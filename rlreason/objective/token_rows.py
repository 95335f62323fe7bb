"""The sets that the loss rows of a micro-batch were drawn from, as tensors, and logits cut down to them.

R = loss rows, C = rows of a tile, V = vocabulary, E = entries of all sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: A logit of what can't be drawn: finite, so that it adds exactly 0 to sums of p · z and to gradients.
NEVER = -1e30


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """One set of tokens for each loss row, in the order of ``Batch.loss_rows_R``.

    Example, of two rows drawn between 4 and 9, and from 4 alone: ``TokenRows(row_E=tensor([0, 0, 1]), ids_E=tensor([4,
    9, 4]), ends=(2, 3), whole=True, truncated=True)``.
    """

    #: int64 [E]: the row, and the token, of each entry.
    row_E: Tensor
    ids_E: Tensor
    #: Entries up to and with each row; on the host, so that no tile waits for the device.
    ends: tuple[int, ...]
    #: Whether nothing else could be drawn, and whether anything could not.
    whole: bool
    truncated: bool
    #: Log-probability of each entry under the sampling distribution, where it was recorded.
    logprobs_E: Tensor | None = None

    def part(self, rows: slice) -> TokenRows:
        """The sets of some of the rows."""
        first = self.ends[rows.start - 1] if rows.start else 0
        ends = self.ends[rows]
        inside = slice(first, ends[-1] if ends else first)
        return TokenRows(
            row_E=self.row_E[inside] - rows.start,
            ids_E=self.ids_E[inside],
            ends=tuple(end - first for end in ends),
            whole=self.whole,
            truncated=self.truncated,
            logprobs_E=None if self.logprobs_E is None else self.logprobs_E[inside],
        )

    def cut(self, logits_CV: Tensor) -> None:
        """Where draws were truncated, make log-softmax of the rows that of their sets: all other logits are NEVER."""
        if self.truncated:
            outside_CV = torch.ones(logits_CV.shape, dtype=torch.bool, device=logits_CV.device)
            outside_CV[self.row_E, self.ids_E] = False
            logits_CV.masked_fill_(outside_CV, NEVER)

    def sums(self, values_E: Tensor) -> Tensor:
        """Sum of the entries of each row, [R], added in their order."""
        return values_E.new_zeros(len(self.ends)).index_add_(0, self.row_E, values_E)

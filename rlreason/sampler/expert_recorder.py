"""Which experts the tokens of completions were sent to, as the embedded engine notes it.

R = rows that are decoded, G = prompts, P = positions of the longest, L = layers with experts, K = experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rlreason.sampler.jobs import Job
from rlreason.types import Completion


class ExpertRecorder:
    """The rows of one batch, token by token."""

    def __init__(self, rows: int) -> None:
        self._tokens: list[list[npt.NDArray[np.uint8]]] = [[] for _ in range(rows)]
        self._prompts: list[npt.NDArray[np.uint8]] = []
        self._prompt_of: list[int] = []

    def begin(self, experts_GPLK: Tensor, lengths: Sequence[int], prompt_of_R: Tensor) -> None:
        """Those of left-padded prompts of ``lengths`` tokens. The last token's are of the first one that is drawn."""
        table = experts_GPLK.cpu().numpy()
        width = table.shape[1]
        self._prompts = [one[width - length : -1].copy() for one, length in zip(table, lengths, strict=True)]
        self._prompt_of = prompt_of_R.tolist()

    def add(self, row_R: Tensor, experts_RLK: Tensor | None) -> None:
        """One token more of each row: of the position that predicts it."""
        assert experts_RLK is not None
        for row, experts in zip(row_R.tolist(), experts_RLK.cpu().numpy(), strict=True):
            self._tokens[row].append(experts)

    def completed(self, drawn: Mapping[str, Completion], jobs: Sequence[Job]) -> dict[str, Completion]:
        """The completions of ``jobs``, the batch's rows, with their experts. Rows that ended may have gone on."""
        return {
            job.key: replace(
                drawn[job.key],
                routed_experts=np.stack(self._tokens[row][: len(drawn[job.key].token_ids)]),
                prompt_experts=self._prompts[self._prompt_of[row]],
            )
            for row, job in enumerate(jobs)
        }

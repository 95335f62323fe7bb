"""What tokens were drawn from, as engines record it for the trainer: ids that were kept, log-probabilities with them.

R = rows that are decoded, V = vocabulary, E = entries of one set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.errors import UsageError
from rlreason.types import SamplingParams, TokenSets

#: Tokens that vLLM may be asked for at each position.
MOST_OF_VLLM = 512


class SetRecorder:
    """Sets of the rows of one batch, token by token."""

    def __init__(self, rows: int, params: SamplingParams) -> None:
        self._params = params
        self._ids: list[list[npt.NDArray[np.int32]]] = [[] for _ in range(rows)]
        self._logprobs: list[list[npt.NDArray[np.float32]]] = [[] for _ in range(rows)]

    def add(self, row_R: Tensor, logprobs_RV: Tensor) -> None:
        """One token more of each row; ``logprobs_RV`` is what it is drawn from, −inf where it can't be."""
        params = self._params
        if params.truncated:
            kept_RV = logprobs_RV > -torch.inf
            ids_E = kept_RV.nonzero()[:, 1]
            parts = _split(ids_E, logprobs_RV[kept_RV], kept_RV.sum(dim=1).tolist())
        elif params.record_top:
            values_RK, ids_RK = logprobs_RV.topk(min(params.record_top, logprobs_RV.shape[1]), dim=1)
            parts = _split(ids_RK.flatten(), values_RK.flatten(), [values_RK.shape[1]] * len(values_RK))
        else:
            parts = [(np.zeros(0, dtype=np.int32), row) for row in logprobs_RV.float().cpu().numpy().copy()]
        for row, (ids, logprobs) in zip(row_R.tolist(), parts, strict=True):
            self._ids[row].append(ids)
            self._logprobs[row].append(logprobs)

    def sets(self, row: int, length: int) -> TokenSets:
        """Those of the first ``length`` tokens of a row."""
        return joined(self._ids[row][:length], self._logprobs[row][:length], self._params)


def joined(
    ids: Sequence[npt.NDArray[np.int32]], logprobs: Sequence[npt.NDArray[np.float32]], params: SamplingParams
) -> TokenSets:
    """Sets of a completion's tokens, as ``params`` asked for them."""
    whole = params.truncated or not params.record_top
    everything = whole and not params.truncated
    nothing: npt.NDArray[Any] = np.zeros(0, dtype=np.float32)
    return TokenSets(
        ends=np.cumsum([len(one) for one in logprobs], dtype=np.int32),
        ids=None if everything else np.concatenate([nothing.astype(np.int32), *ids]),
        logprobs=np.concatenate([nothing, *logprobs]) if params.record == "logprobs" else None,
        whole=whole,
    )


def _split(
    ids_E: Tensor, logprobs_E: Tensor, sizes: Sequence[int]
) -> list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
    cuts = np.cumsum(sizes)[:-1]
    ids, logprobs = ids_E.to(torch.int32).cpu().numpy(), logprobs_E.float().cpu().numpy()
    return list(zip(np.split(ids, cuts), np.split(logprobs, cuts), strict=True))


def asked_of_vllm(params: SamplingParams) -> int:
    """How many of the most probable tokens vLLM must give at each position so that none is missing; 0: none.

    Raises UsageError where that has no bound, or too large a one.
    """
    if not params.record:
        return 0
    wanted = params.top_k if params.truncated else params.record_top
    if 0 < wanted <= MOST_OF_VLLM:
        return wanted
    if params.truncated:
        raise UsageError(
            f"top_p = {params.top_p:g}, top_k = {params.top_k}, min_p = {params.min_p:g}: vLLM names at most "
            f"{MOST_OF_VLLM} tokens that a draw was between, so training needs top_k from 1 to {MOST_OF_VLLM} (beside "
            'top_p or min_p), or sampler.engine = "transformers"'
        )
    how = f"objective.centering_top_k = {wanted}" if wanted else 'objective.centering = "exact"'
    raise UsageError(
        f'{how}: vLLM gives at most {MOST_OF_VLLM} tokens of a position. Use centering = "top_k" with '
        f"centering_top_k up to {MOST_OF_VLLM}, a top_k (then what could be drawn is known, and centering over it "
        'exact), or sampler.engine = "transformers"'
    )


def sets_of_vllm(flat: Any, params: SamplingParams) -> tuple[npt.NDArray[np.float32], TokenSets]:
    """(log-probability of each token, its set) from vLLM's ``FlatLogprobs``: at each position the drawn token, then the
    most probable ones; −inf where they could not be drawn."""
    starts = np.asarray(flat.start_indices, dtype=np.int64)
    ids = np.asarray(flat.token_ids, dtype=np.int32)
    logprobs = np.asarray(flat.logprobs, dtype=np.float32)
    position = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(ids)))
    drawn = ids[starts]
    first = np.zeros(len(ids), dtype=np.bool_)
    first[starts] = True
    again = np.zeros(len(starts), dtype=np.bool_)
    again[position[~first & (ids == drawn[position])]] = True
    kept = np.isfinite(logprobs) & ~(first & again[position])
    sizes = np.bincount(position[kept], minlength=len(starts))
    return logprobs[starts], TokenSets(
        ends=np.cumsum(sizes, dtype=np.int32),
        ids=ids[kept],
        logprobs=logprobs[kept] if params.record == "logprobs" else None,
        whole=params.truncated,
    )

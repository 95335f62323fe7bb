"""What training samples were drawn from -> tensors of a micro-batch's loss rows, and whole logits that are cut by them.

R = loss rows, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.objective.batch import Batch
from rlreason.objective.token_rows import TokenRows
from rlreason.types import TrainingSample


def token_rows(
    rows: Sequence[TrainingSample], starts: Sequence[int], mask_BT: npt.NDArray[np.float32], device: torch.device
) -> TokenRows | None:
    """The sets of the loss tokens of ``rows``, whose targets begin at ``starts``; None where no row has any.

    Raises ValueError where one has sets and another none, or a loss token has an empty one.
    """
    known = [row.sampled_from for row in rows if row.sampled_from is not None]
    if not known:
        return None
    first = known[0]
    if len(known) < len(rows) or any(
        (one.whole, one.ids is None, one.logprobs is None) != (first.whole, first.ids is None, first.logprobs is None)
        for one in known
    ):
        raise ValueError("samples of one micro-batch must all say in the same way what their tokens were drawn from")
    sizes, ids, logprobs = [], [], []
    for sets, start, mask_T in zip(known, starts, mask_BT, strict=True):
        chosen = np.zeros(len(sets.ends), dtype=np.bool_)
        chosen[start:] = mask_T[: len(chosen) - start] > 0
        size, tokens, values = sets.entries(chosen)
        sizes.append(size)
        ids.append(tokens)
        logprobs.append(values)
    counts = np.concatenate(sizes)
    if (counts == 0).any():
        raise ValueError("a token that carries loss has no set of tokens that it was drawn from")

    def on_device(values: npt.ArrayLike, dtype: type[np.generic]) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=dtype)).to(device)

    return TokenRows(
        row_E=on_device(np.repeat(np.arange(len(counts)), counts), np.int64),
        ids_E=on_device(np.concatenate(ids), np.int64),
        ends=tuple(np.cumsum(counts).tolist()),
        whole=first.whole,
        truncated=first.whole and first.ids is not None,
        logprobs_E=None if first.logprobs is None else on_device(np.concatenate(logprobs), np.float32),  # type: ignore[arg-type]
    )


def cut_logits(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """Whole logits, where draws were truncated without what could not be drawn: for heads that are no plain product."""
    sets = batch.sampled_from
    if sets is None or not sets.truncated:
        return logits_BTV
    places_R = batch.loss_rows_R
    if places_R is None:
        places_R = batch.loss_mask_BT.reshape(-1).nonzero()[:, 0]
    flat_NV = logits_BTV.flatten(0, 1)
    rows_RV = flat_NV.index_select(0, places_R)
    sets.cut(rows_RV)
    return flat_NV.index_copy(0, places_R, rows_RV).view_as(logits_BTV)

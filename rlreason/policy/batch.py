"""Training samples -> micro-batches. Owns the one-token shift: column t of a batch predicts its target t.

A micro-batch is packed: every prompt once, followed by its completions, without padding (``attention.py``). Models that
cannot do that take a padded table of whole rows. Samples are sorted and cut by a token budget, into parts of about the
same size. Which samples share a micro-batch never changes the loss: every sum is divided by one global count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.objective.batch import Batch, Packing
from rlreason.types import Completion, TrainingSample

#: Trials of smaller budgets.
_HALVINGS = 5
Cut = Callable[[int], list[list[int]]]
Arrays = Sequence[npt.NDArray[Any]]


def make_batches(
    rows: Sequence[TrainingSample], max_tokens: int, pad_id: int, device: torch.device, *, packed: bool = False
) -> list[Batch]:
    """Cut ``rows`` into micro-batches of at most ``max_tokens`` computed positions (one row at least).

    ``packed``: for models that ``logprobs.takes_packed`` approves of; rows need a token before their first loss.
    """
    packed = packed and all(row.prompt_length for row in rows)
    chunks = _balanced(_packed_cut(rows) if packed else _whole_cut(rows), max_tokens)
    make = pack if packed else collate
    return [make([rows[at] for at in chunk], pad_id, device, chunk) for chunk in chunks]


def _balanced(cut: Cut, max_tokens: int) -> list[list[int]]:
    """The cut of fewest micro-batches, with about the smallest budget that needs no more."""
    best = cut(max_tokens)
    low, high = max_tokens // 2, max_tokens
    for _ in range(_HALVINGS if len(best) > 1 else 0):
        middle = (low + high) // 2
        chunks = cut(middle)
        if len(chunks) > len(best):
            low = middle
        else:
            best, high = chunks, middle
    return best


def _whole_cut(rows: Sequence[TrainingSample]) -> Cut:
    """Rows by length; a micro-batch computes all of its rows at the width of the longest."""
    widths = [len(row.token_ids) for row in rows]
    order = sorted(range(len(rows)), key=lambda at: widths[at])

    def cut(budget: int) -> list[list[int]]:
        chunks: list[list[int]] = []
        for at in order:
            if not chunks or widths[at] * (len(chunks[-1]) + 1) > budget:
                chunks.append([])
            chunks[-1].append(at)
        return chunks

    return cut


def _packed_cut(rows: Sequence[TrainingSample]) -> Cut:
    """Rows prompt by prompt, those with short completions first, which keeps the tables of attention narrow."""
    before = [row.prompt_length for row in rows]
    prompt, prompts = _distinct([row.token_ids[:n] for row, n in zip(rows, before, strict=True)])
    # The last token of a completion is predicted, but predicts nothing.
    behind = [len(row.token_ids) - n - 1 for row, n in zip(rows, before, strict=True)]
    longest = [0] * len(prompts)
    for number, length in zip(prompt, behind, strict=True):
        longest[number] = max(length, longest[number])
    order = sorted(range(len(rows)), key=lambda at: (longest[prompt[at]], prompt[at], behind[at]))

    def cut(budget: int) -> list[list[int]]:
        chunks: list[list[int]] = []
        size, last = 0, -1
        for at in order:
            size += behind[at] + (before[at] if prompt[at] != last else 0)
            if not chunks or size > budget:
                chunks.append([])
                size = behind[at] + before[at]
            chunks[-1].append(at)
            last = prompt[at]
        return chunks

    return cut


def collate(rows: Sequence[TrainingSample], pad_id: int, device: torch.device, places: Sequence[int] = ()) -> Batch:
    """Right-pad whole ``rows`` to one length and shift: inputs are tokens 0..T-1, targets tokens 1..T."""
    ids = _padded([row.token_ids for row in rows], pad_id, np.int64)
    inputs = torch.from_numpy(np.ascontiguousarray(ids[:, :-1])).to(device)
    return _batch(rows, [1] * len(rows), inputs, pad_id, None, places)


def pack(rows: Sequence[TrainingSample], pad_id: int, device: torch.device, places: Sequence[int] = ()) -> Batch:
    """Prompts of ``rows``, each once, followed by their completions; the rows of the batch are completions."""
    starts = [row.prompt_length for row in rows]
    prompt_of_B, prompts = _distinct([row.token_ids[:n] for row, n in zip(rows, starts, strict=True)])
    pieces = [*prompts, *(row.token_ids[n:-1] for row, n in zip(rows, starts, strict=True))]
    lengths = [len(piece) for piece in pieces]
    first = [0, *accumulate(lengths)]
    count = len(prompts)
    places_of = [np.arange(start, start + length) for start, length in zip(first[:-1], lengths, strict=True)]
    ends = [first[number] + lengths[number] - 1 for number in prompt_of_B]
    sources = [np.concatenate(([end], own)) for end, own in zip(ends, places_of[count:], strict=True)]
    width, steps = max(lengths[:count]), max(lengths[count:])
    table = [number * width for number in range(count)] + [count * width + b * steps for b in range(len(rows))]
    offsets = [0] * count + starts

    def on_device(values: npt.ArrayLike) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(device)

    def ranges(begins: Sequence[int]) -> Tensor:
        return on_device(np.concatenate([np.arange(at, at + n) for at, n in zip(begins, lengths, strict=True)]))

    packing = Packing(
        positions_L=ranges(offsets),
        prompt_at_GP=on_device(_padded(places_of[:count], 0, np.int64)),
        prompt_lengths_G=on_device(lengths[:count]),
        prompt_of_B=on_device(prompt_of_B),
        row_at_BS=on_device(_padded(places_of[count:], 0, np.int64)),
        back_L=ranges(table),
        source_BT=on_device(_padded(sources, 0, np.int64)),
    )
    return _batch(rows, starts, on_device(np.concatenate(pieces)).unsqueeze(0), pad_id, packing, places)


def _batch(
    rows: Sequence[TrainingSample],
    starts: Sequence[int],
    inputs: Tensor,
    pad_id: int,
    packing: Packing | None,
    places: Sequence[int],
) -> Batch:
    """The tensors of the targets, which begin at ``starts`` of each row."""

    def table(values: Sequence[npt.NDArray[Any] | None], fill: float, dtype: Any = np.float32) -> Tensor | None:
        if any(one is None for one in values):
            return None
        targets = [one[n:] for one, n in zip(values, starts, strict=True) if one is not None]
        return torch.from_numpy(_padded(targets, fill, dtype)).to(inputs.device)

    def filled(values: Sequence[npt.NDArray[Any]], fill: float, dtype: Any = np.float32) -> Tensor:
        found = table(values, fill, dtype)
        assert found is not None
        return found

    mask = _padded([row.loss_mask[n:] for row, n in zip(rows, starts, strict=True)], 0.0, np.float32)
    return Batch(
        token_ids_BT=inputs,
        targets_BT=filled([row.token_ids for row in rows], pad_id, np.int64),
        loss_mask_BT=torch.from_numpy(mask).to(inputs.device),
        sampler_logprobs_BT=filled([row.sampler_logprobs for row in rows], 0.0),
        advantages_BT=filled([row.advantages for row in rows], 0.0),
        weights_BT=filled([row.weights for row in rows], 0.0),
        old_logprobs_BT=table([row.old_logprobs for row in rows], 0.0),
        reference_logprobs_BT=table([row.reference_logprobs for row in rows], 0.0),
        teacher_logprobs_BT=table([row.teacher_logprobs for row in rows], 0.0),
        routed_experts=table([row.routed_experts for row in rows], 255, np.uint8),
        packing=packing,
        loss_rows_R=torch.from_numpy(np.flatnonzero(mask)).to(inputs.device),
        places=tuple(places),
    )


def _distinct(arrays: Arrays) -> tuple[list[int], list[npt.NDArray[Any]]]:
    """(number of each array, the different ones in order of appearance)."""
    numbers: dict[bytes, int] = {}
    different: list[npt.NDArray[Any]] = []
    found = []
    for array in arrays:
        number = numbers.setdefault(array.tobytes(), len(numbers))
        if number == len(different):
            different.append(array)
        found.append(number)
    return found, different


def _padded(arrays: Arrays, fill: float, dtype: Any) -> npt.NDArray[Any]:
    """The arrays as rows of one table, [rows, longest, …]."""
    width = max(len(values) for values in arrays)
    table = np.full((len(arrays), width, *arrays[0].shape[1:]), fill, dtype=dtype)
    for row, values in zip(table, arrays, strict=True):
        row[: len(values)] = values
    return table


def supervised_sample(token_ids: Sequence[int], loss_mask: Sequence[int]) -> TrainingSample:
    """A demonstration as a training sample: no sampler, no advantage."""
    return TrainingSample(token_ids=np.asarray(token_ids), loss_mask=np.asarray(loss_mask))


def rollout_sample(
    completion: Completion, advantages: npt.ArrayLike = 0.0, weights: npt.ArrayLike = 0.0, group_id: str = ""
) -> TrainingSample:
    """A completion as a training sample. ``advantages``, ``weights``: one number for all of its loss tokens, or [T].

    A token whose sampler log-probability is not finite carries no loss: nothing could be said of its ratio.
    Raises ValueError where the engine gave no log-probabilities.
    """
    if completion.sampler_logprobs is None:
        raise ValueError("the completion has no sampler log-probabilities: it can be scored, not trained on")
    before, count = len(completion.prompt_ids), len(completion.token_ids)
    mask_T = trained_tokens(completion)

    def behind_prompt(values: npt.ArrayLike | None, fill: float, dtype: Any) -> Any:
        if values is None:
            return None
        given = np.asarray(values, dtype=dtype)
        whole = np.full((before + count, *given.shape[1:]), fill, dtype=dtype)
        whole[before:] = given
        return whole

    def of_loss_tokens(values: npt.ArrayLike) -> Any:
        return behind_prompt(np.where(mask_T, values, 0.0), 0.0, np.float32)

    return TrainingSample(
        token_ids=np.concatenate([completion.prompt_ids, completion.token_ids]),
        loss_mask=behind_prompt(mask_T, 0, np.bool_),
        sampler_logprobs=of_loss_tokens(completion.sampler_logprobs),
        advantages=of_loss_tokens(advantages),
        weights=of_loss_tokens(weights),
        teacher_logprobs=behind_prompt(completion.teacher_logprobs, 0.0, np.float32),
        routed_experts=behind_prompt(completion.routed_experts, 255, np.uint8),
        group_id=group_id,
    )


def trained_tokens(completion: Completion) -> npt.NDArray[np.bool_]:
    """Tokens of the completion that carry loss, bool [T]: the policy's own, with a finite sampler log-probability."""
    mask_T = completion.loss_mask
    return mask_T if completion.sampler_logprobs is None else mask_T & np.isfinite(completion.sampler_logprobs)

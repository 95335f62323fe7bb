"""Rows -> micro-batches. Owns the one-token shift: column t of a batch predicts its target t.

A micro-batch is packed: every prompt once, every completion behind it, without padding (``attention.py``). Models that
cannot do that take a padded table of whole rows. Rows are sorted and cut by a token budget, into parts of about the
same size. Which rows share a micro-batch never changes the loss: every sum is divided by one global count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from rlreason.types import Batch, Completion, Packing, Row

#: Trials of smaller budgets.
_HALVINGS = 5
Cut = Callable[[int], list[list[int]]]


def make_batches(
    rows: Sequence[Row], max_tokens: int, pad_id: int, device: torch.device, *, packed: bool = False
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


def _whole_cut(rows: Sequence[Row]) -> Cut:
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


def _packed_cut(rows: Sequence[Row]) -> Cut:
    """Rows prompt by prompt, those with short completions first, which keeps the tables of attention narrow."""
    numbers: dict[tuple[int, ...], int] = {}
    before = [row.prompt_length for row in rows]
    prompt = [numbers.setdefault(row.token_ids[:n], len(numbers)) for row, n in zip(rows, before, strict=True)]
    # The last token of a completion is predicted, but predicts nothing.
    behind = [len(row.token_ids) - n - 1 for row, n in zip(rows, before, strict=True)]
    longest = [0] * len(numbers)
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


def collate(rows: Sequence[Row], pad_id: int, device: torch.device, places: Sequence[int] = ()) -> Batch:
    """Right-pad whole ``rows`` to one length and shift: inputs are tokens 0..T-1, targets tokens 1..T."""
    ids = _padded([row.token_ids for row in rows], pad_id, torch.long, device)
    return _batch(
        rows,
        ids[:, :-1].contiguous(),
        ids[:, 1:].contiguous(),
        _padded([row.loss_mask[1:] for row in rows], 0.0, torch.float32, device),
        _padded([row.sampler_logprobs[1:] for row in rows], 0.0, torch.float32, device),
        None,
        places,
    )


def pack(rows: Sequence[Row], pad_id: int, device: torch.device, places: Sequence[int] = ()) -> Batch:
    """Prompts of ``rows``, each once, and their completions behind them; the rows of the batch are completions."""
    starts = [row.prompt_length for row in rows]
    numbers: dict[tuple[int, ...], int] = {}
    prompt_of_B = [numbers.setdefault(row.token_ids[:n], len(numbers)) for row, n in zip(rows, starts, strict=True)]
    pieces = [*numbers, *(row.token_ids[n:-1] for row, n in zip(rows, starts, strict=True))]
    lengths = [len(piece) for piece in pieces]
    first = [0, *accumulate(lengths)]
    count = len(numbers)
    places_of = [tuple(range(start, start + length)) for start, length in zip(first[:-1], lengths, strict=True)]
    ends = [first[number] + lengths[number] - 1 for number in prompt_of_B]
    sources = [(end, *own) for end, own in zip(ends, places_of[count:], strict=True)]
    width, steps = max(lengths[:count]), max(lengths[count:])
    table = [number * width for number in range(count)] + [count * width + b * steps for b in range(len(rows))]
    offsets = [0] * count + starts

    def integers(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    packing = Packing(
        positions_L=integers([at + i for at, n in zip(offsets, lengths, strict=True) for i in range(n)]),
        prompt_at_GP=_padded(places_of[:count], 0, torch.long, device),
        prompt_lengths_G=integers(lengths[:count]),
        prompt_of_B=integers(prompt_of_B),
        row_at_BS=_padded(places_of[count:], 0, torch.long, device),
        back_L=integers([at + i for at, n in zip(table, lengths, strict=True) for i in range(n)]),
        source_BT=_padded(sources, 0, torch.long, device),
    )
    behind = list(zip(rows, starts, strict=True))
    return _batch(
        rows,
        integers([token for piece in pieces for token in piece]).unsqueeze(0),
        _padded([row.token_ids[n:] for row, n in behind], pad_id, torch.long, device),
        _padded([row.loss_mask[n:] for row, n in behind], 0.0, torch.float32, device),
        _padded([row.sampler_logprobs[n:] for row, n in behind], 0.0, torch.float32, device),
        packing,
        places,
    )


def _batch(
    rows: Sequence[Row],
    inputs: Tensor,
    targets_BT: Tensor,
    loss_mask_BT: Tensor,
    sampler_logprobs_BT: Tensor,
    packing: Packing | None,
    places: Sequence[int],
) -> Batch:
    device = targets_BT.device
    return Batch(
        token_ids_BT=inputs,
        targets_BT=targets_BT,
        loss_mask_BT=loss_mask_BT,
        sampler_logprobs_BT=sampler_logprobs_BT,
        advantages_B1=torch.tensor([[row.advantage] for row in rows], dtype=torch.float32, device=device),
        weights_B1=torch.tensor([[row.weight] for row in rows], dtype=torch.float32, device=device),
        packing=packing,
        places=tuple(places),
    )


def _padded(
    lists: Sequence[tuple[int, ...]] | Sequence[tuple[float, ...]],
    fill: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    width = max(len(values) for values in lists)
    table = [[*values, *[fill] * (width - len(values))] for values in lists]
    return torch.tensor(table, dtype=dtype, device=device)


def supervised_row(token_ids: Sequence[int], loss_mask: Sequence[int]) -> Row:
    """A demonstration as a training row: no sampler, no advantage."""
    zeros = (0.0,) * len(token_ids)
    return Row(token_ids=tuple(token_ids), loss_mask=tuple(loss_mask), sampler_logprobs=zeros)


def rollout_row(completion: Completion, advantage: float, weight: float, group_id: str) -> Row:
    """A completion as a training row: all of its tokens carry its advantage, and ``weight`` in the loss."""
    prompt, length = len(completion.prompt_ids), len(completion.token_ids)
    return Row(
        token_ids=completion.prompt_ids + completion.token_ids,
        loss_mask=(0,) * prompt + (1,) * length,
        sampler_logprobs=(0.0,) * prompt + completion.logprobs_T,
        advantage=advantage,
        weight=weight,
        group_id=group_id,
    )

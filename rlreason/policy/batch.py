"""Rows -> padded micro-batches. Owns the one-token shift: column t of a batch predicts its target t.

A micro-batch is a table of whole rows, or one of completions that continue prompts computed once for all their rows
(``pack`` takes what computes fewer positions). Rows are sorted by length and cut by a token budget, so that little is
spent on padding. Which rows share a micro-batch never changes the loss: every sum is divided by one global count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlreason.types import Batch, Completion, Prompts, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Micro-batches as places of rows, and how many positions they compute, padding included."""

    chunks: list[list[int]]
    shared: bool
    positions: int


def pack(
    rows: Sequence[Row], max_tokens: int, pad_id: int, device: torch.device, *, share_prompts: bool = False
) -> list[Batch]:
    """Cut ``rows`` into micro-batches of at most ``max_tokens`` computed positions (one row at least).

    ``share_prompts``: rows of one prompt may share its computation, for models that ``shares_prompts`` approves of.
    """
    layouts = [_whole(rows, max_tokens)]
    prompts = [row.token_ids[: row.prompt_length] for row in rows]
    if share_prompts and len(set(prompts)) < len(rows) and all(prompts):
        lengths = [len(row.token_ids) - len(prompt) for row, prompt in zip(rows, prompts, strict=True)]
        longest: dict[tuple[int, ...], int] = {}
        for prompt, length in zip(prompts, lengths, strict=True):
            longest[prompt] = max(length, longest.get(prompt, 0))
        places = range(len(rows))
        by_length = sorted(places, key=lambda at: lengths[at])
        by_prompt = sorted(places, key=lambda at: (longest[prompts[at]], prompts[at], lengths[at]))
        layouts += [_continued(order, prompts, lengths, max_tokens) for order in (by_length, by_prompt)]
    layout = min(layouts, key=lambda one: one.positions)
    make = continue_prompts if layout.shared else collate
    return [make([rows[at] for at in chunk], pad_id, device, chunk) for chunk in layout.chunks]


def _whole(rows: Sequence[Row], max_tokens: int) -> _Layout:
    """Each row with its prompt."""
    chunks: list[list[int]] = []
    positions = 0
    for at in sorted(range(len(rows)), key=lambda at: len(rows[at].token_ids)):
        if not chunks or len(rows[at].token_ids) * (len(chunks[-1]) + 1) > max_tokens:
            chunks.append([])
        chunks[-1].append(at)
    for chunk in chunks:
        positions += len(chunk) * (len(rows[chunk[-1]].token_ids) - 1)
    return _Layout(chunks=chunks, shared=False, positions=positions)


def _continued(
    order: Iterable[int], prompts: Sequence[tuple[int, ...]], lengths: Sequence[int], max_tokens: int
) -> _Layout:
    """Prompts once per micro-batch. The last token of a completion is predicted, but predicts nothing."""
    chunks: list[list[int]] = []
    total = size = widest = longest = 0
    own: set[tuple[int, ...]] = set()
    for at in order:
        wider, longer = max(widest, len(prompts[at])), max(longest, lengths[at])
        count = len(chunks[-1]) + 1 if chunks else 1
        grown = len(own | {prompts[at]}) * wider + count * (longer - 1)
        if not chunks or grown > max_tokens:
            chunks.append([])
            own, wider, longer, total = set(), len(prompts[at]), lengths[at], total + size
            grown = wider + longer - 1
        chunks[-1].append(at)
        own.add(prompts[at])
        widest, longest, size = wider, longer, grown
    return _Layout(chunks=chunks, shared=True, positions=total + size)


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


def continue_prompts(rows: Sequence[Row], pad_id: int, device: torch.device, places: Sequence[int] = ()) -> Batch:
    """Completions of ``rows`` as a table, each behind its prompt, which is there once."""
    starts = [row.prompt_length for row in rows]
    numbers: dict[tuple[int, ...], int] = {}
    group = [numbers.setdefault(row.token_ids[:start], len(numbers)) for row, start in zip(rows, starts, strict=True)]
    behind = list(zip(rows, starts, strict=True))
    ids = _padded([row.token_ids[start:] for row, start in behind], pad_id, torch.long, device)
    lengths = [len(prompt) for prompt in numbers]
    prompts = Prompts(
        token_ids_GP=_padded(list(numbers), pad_id, torch.long, device),
        lengths_G=torch.tensor(lengths, device=device),
        of_row_B=torch.tensor(group, device=device),
        ragged=min(lengths) != max(lengths),
    )
    return _batch(
        rows,
        ids[:, :-1].contiguous(),
        ids,
        _padded([row.loss_mask[start:] for row, start in behind], 0.0, torch.float32, device),
        _padded([row.sampler_logprobs[start:] for row, start in behind], 0.0, torch.float32, device),
        prompts,
        places,
    )


def _batch(
    rows: Sequence[Row],
    inputs: Tensor,
    targets_BT: Tensor,
    loss_mask_BT: Tensor,
    sampler_logprobs_BT: Tensor,
    prompts: Prompts | None,
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
        prompts=prompts,
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

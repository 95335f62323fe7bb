"""Rows -> padded micro-batches. Owns the one-token shift: column t of a batch predicts its target t.

A micro-batch is a table of whole rows, or one of completions that continue prompts computed once for all their rows
(``pack`` takes what computes fewer positions). Rows are sorted by length and cut by a token budget, so that little is
spent on padding. Which rows share a micro-batch never changes the loss: every sum is divided by one global count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlreason.types import Batch, Completion, Prompts, Row

#: Trials of smaller budgets.
_HALVINGS = 5


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
        layouts += _continued(rows, prompts, max_tokens)
    layout = min(layouts, key=lambda one: one.positions)
    make = continue_prompts if layout.shared else collate
    return [make([rows[at] for at in chunk], pad_id, device, chunk) for chunk in layout.chunks]


def _whole(rows: Sequence[Row], max_tokens: int) -> _Layout:
    """Each row with its prompt."""
    order = sorted(range(len(rows)), key=lambda at: len(rows[at].token_ids))
    widths = [len(row.token_ids) for row in rows]
    chunks, positions = _balanced(order, [0] * len(rows), [0] * len(rows), widths, max_tokens)
    return _Layout(chunks=chunks, shared=False, positions=positions - len(rows))


def _continued(rows: Sequence[Row], prompts: Sequence[tuple[int, ...]], max_tokens: int) -> list[_Layout]:
    """Prompts once per micro-batch; rows by the length of their completions, and prompt by prompt."""
    numbers: dict[tuple[int, ...], int] = {}
    prompt = [numbers.setdefault(tokens, len(numbers)) for tokens in prompts]
    before = [len(tokens) for tokens in prompts]
    # The last token of a completion is predicted, but predicts nothing.
    behind = [len(row.token_ids) - length - 1 for row, length in zip(rows, before, strict=True)]
    longest = [0] * len(numbers)
    for number, length in zip(prompt, behind, strict=True):
        longest[number] = max(length, longest[number])
    by_length = sorted(range(len(rows)), key=lambda at: behind[at])
    by_prompt = sorted(by_length, key=lambda at: (longest[prompt[at]], prompt[at]))
    cuts = [_balanced(order, prompt, before, behind, max_tokens) for order in (by_length, by_prompt)]
    return [_Layout(chunks=chunks, shared=True, positions=positions) for chunks, positions in cuts]


def _balanced(
    order: Sequence[int], prompt: Sequence[int], before: Sequence[int], behind: Sequence[int], max_tokens: int
) -> tuple[list[list[int]], int]:
    """The cut of fewest micro-batches, with about the smallest budget that needs no more: equal work, less padding."""
    best, positions = _cut(order, prompt, before, behind, max_tokens)
    low, high = max_tokens // 2, max_tokens
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        chunks, total = _cut(order, prompt, before, behind, middle)
        if len(chunks) > len(best):
            low = middle
        else:
            best, positions, high = chunks, total, middle
    return best, positions


def _cut(
    order: Sequence[int], prompt: Sequence[int], before: Sequence[int], behind: Sequence[int], budget: int
) -> tuple[list[list[int]], int]:
    """(places of each micro-batch, positions of all): greedily, in order. A micro-batch computes each of its prompts
    at the width of the longest, and every row at that of the longest."""
    chunks: list[list[int]] = []
    own: set[int] = set()
    total = size = widest = longest = 0
    for at in order:
        wider, longer = max(widest, before[at]), max(longest, behind[at])
        grown = (len(own) + (prompt[at] not in own)) * wider + (len(chunks[-1]) + 1 if chunks else 1) * longer
        if not chunks or grown > budget:
            total += size
            chunks.append([])
            own, wider, longer = set(), before[at], behind[at]
            grown = wider + longer
        chunks[-1].append(at)
        own.add(prompt[at])
        widest, longest, size = wider, longer, grown
    return chunks, total + size


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

"""Rows -> padded micro-batches. Owns the one-token shift: column t of a batch predicts its target t.

Rows are sorted by length and cut by a token budget, so that little is spent on padding. Which rows share a
micro-batch never changes the loss: every sum is divided by one global count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlreason.types import Batch, Completion, Row


def pack(rows: Sequence[Row], max_tokens: int, pad_id: int, device: torch.device) -> list[Batch]:
    """Cut ``rows`` into micro-batches of at most ``max_tokens`` padded tokens (one row at least)."""
    batches: list[Batch] = []
    chunk: list[Row] = []
    for row in (rows[at] for at in packing_order(rows)):
        if chunk and len(row.token_ids) * (len(chunk) + 1) > max_tokens:
            batches.append(collate(chunk, pad_id, device))
            chunk = []
        chunk.append(row)
    if chunk:
        batches.append(collate(chunk, pad_id, device))
    return batches


def packing_order(rows: Sequence[Row]) -> list[int]:
    """Place in ``rows`` of each row of ``pack``'s batches, one batch after the other."""
    return sorted(range(len(rows)), key=lambda at: len(rows[at].token_ids))


def collate(rows: Sequence[Row], pad_id: int, device: torch.device) -> Batch:
    """Right-pad ``rows`` to one length and shift: inputs are tokens 0..T-1, targets tokens 1..T."""
    width = max(len(row.token_ids) for row in rows)

    def padded(lists: list[tuple[int, ...]] | list[tuple[float, ...]], fill: float, dtype: torch.dtype) -> torch.Tensor:
        table = [[*values, *[fill] * (width - len(values))] for values in lists]
        return torch.tensor(table, dtype=dtype, device=device)

    ids = padded([row.token_ids for row in rows], pad_id, torch.long)
    present = padded([(1,) * len(row.token_ids) for row in rows], 0, torch.long)
    return Batch(
        token_ids_BT=ids[:, :-1].contiguous(),
        attention_mask_BT=present[:, :-1].contiguous(),
        targets_BT=ids[:, 1:].contiguous(),
        loss_mask_BT=padded([row.loss_mask for row in rows], 0.0, torch.float32)[:, 1:],
        sampler_logprobs_BT=padded([row.sampler_logprobs for row in rows], 0.0, torch.float32)[:, 1:],
        advantages_B1=torch.tensor([[row.advantage] for row in rows], dtype=torch.float32, device=device),
        weights_B1=torch.tensor([[row.weight] for row in rows], dtype=torch.float32, device=device),
    )


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

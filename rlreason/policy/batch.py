"""Training samples -> micro-batches. Owns the one-token shift: column t of a batch predicts its target t.

A micro-batch is packed: every prompt once, followed by its completions, without padding (``attention.py``). Models that
cannot do that take a padded table of whole rows. Samples are sorted and cut by a token budget, into parts of about the
same size. Which samples share a micro-batch never changes the loss: every sum is divided by one global count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.objective.batch import Batch, Packing, TeacherTable
from rlreason.policy.token_rows import token_rows
from rlreason.types import Completion, TeacherScores, TrainingSample

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
    if not all(row.routed_experts is not None for row in rows):  # all of them, or none
        rows = [row if row.routed_experts is None else replace(row, routed_experts=None) for row in rows]
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
    prompt, prompts = _distinct(_prompts(rows, before))
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
    width = inputs.shape[1]
    first = np.array([-1])
    predicted_by = [
        np.concatenate([first, at * width + np.arange(len(row.token_ids) - 1)]) for at, row in enumerate(rows)
    ]
    return _batch(rows, [1] * len(rows), inputs, pad_id, None, places, predicted_by)


def pack(rows: Sequence[TrainingSample], pad_id: int, device: torch.device, places: Sequence[int] = ()) -> Batch:
    """Prompts of ``rows``, each once, followed by their completions; the rows of the batch are completions."""
    starts = [row.prompt_length for row in rows]
    prompt_of_B, different = _distinct(_prompts(rows, starts))
    prompts = [token_ids for token_ids, _ in different]
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
        longest=max(start + behind for start, behind in zip(starts, lengths[count:], strict=True)),
    )
    predicted_by = [
        np.concatenate([[-1], places_of[prompt][:-1], own]) for prompt, own in zip(prompt_of_B, sources, strict=True)
    ]
    inputs = on_device(np.concatenate(pieces)).unsqueeze(0)
    return _batch(rows, starts, inputs, pad_id, packing, places, predicted_by)


def _batch(
    rows: Sequence[TrainingSample],
    starts: Sequence[int],
    inputs: Tensor,
    pad_id: int,
    packing: Packing | None,
    places: Sequence[int],
    predicted_by: Sequence[npt.NDArray[np.int64]],
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
        teacher=_teacher_table([row.teacher for row in rows], table),
        routed_experts_NLK=_routed(rows, inputs, predicted_by),
        packing=packing,
        sampled_from=token_rows(rows, starts, mask, inputs.device),
        loss_rows_R=torch.from_numpy(np.flatnonzero(mask)).to(inputs.device),
        score_at_B=_score_places(rows, inputs.device),
        places=tuple(places),
        predicted_by=tuple(predicted_by),
    )


def _score_places(rows: Sequence[TrainingSample], device: torch.device) -> Tensor | None:
    places = [row.score_at for row in rows if row.score_at is not None]
    return torch.tensor(places).to(device) if len(places) == len(rows) else None


def _teacher_table(scores: Sequence[TeacherScores | None], table: Callable[..., Tensor | None]) -> TeacherTable | None:
    """What teachers elsewhere said of the targets; None where one row has nothing."""
    said = [one for one in scores if one is not None]
    if len(said) < len(scores):
        return None
    return TeacherTable(
        states_BTH=table([one.states for one in said], 0.0),
        ids_BTK=table([one.ids for one in said], 0, np.int64),
        logprobs_BTK=table([one.logprobs for one in said], 0.0),
        log_tail_BT=table([one.log_tail for one in said], 0.0),
    )


def _routed(
    rows: Sequence[TrainingSample], inputs: Tensor, predicted_by: Sequence[npt.NDArray[np.int64]]
) -> Tensor | None:
    """The experts of the rows' tokens at the input tokens that predict them."""
    experts = [row.routed_experts for row in rows if row.routed_experts is not None]
    if len(experts) < len(rows):
        return None
    table = np.full((inputs.numel(), *experts[0].shape[1:]), 255, dtype=np.uint8)
    for one, places in zip(experts, predicted_by, strict=True):
        table[places[1:]] = one[1:]
    return torch.from_numpy(table).to(inputs.device)


Prompt = tuple[npt.NDArray[Any], npt.NDArray[Any] | None]


def _prompts(rows: Sequence[TrainingSample], lengths: Sequence[int]) -> list[Prompt]:
    """The tokens of each prompt, and their experts up to the one that chose the first token behind it."""
    return [
        (row.token_ids[:n], None if row.routed_experts is None else row.routed_experts[1 : n + 1])
        for row, n in zip(rows, lengths, strict=True)
    ]


def _distinct(prompts: Sequence[Prompt]) -> tuple[list[int], list[Prompt]]:
    """(number of each prompt, the different ones in order of appearance). A prompt that was sent to other experts, such
    as by another engine, is another one."""
    numbers: dict[tuple[bytes, bytes], int] = {}
    different: list[Prompt] = []
    found = []
    for one in prompts:
        token_ids, experts = one
        key = token_ids.tobytes(), b"" if experts is None else experts.tobytes()
        number = numbers.setdefault(key, len(numbers))
        if number == len(different):
            different.append(one)
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
    mask_T, sets = trained_tokens(completion), completion.sampled_from
    if sets is not None and sets.whole and sets.lacks(completion.token_ids).any():
        raise ValueError("the engine drew a token that is not among those that it says it could draw")

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
        routed_experts=_experts_of(completion, behind_prompt(completion.routed_experts, 255, np.uint8)),
        sampled_from=None if sets is None else sets.behind(before),
        group_id=group_id,
    )


def _experts_of(completion: Completion, experts: Any) -> Any:
    """``experts`` [P + T, L, K] with the prompt's filled in, where the engine gave them."""
    if experts is not None and completion.prompt_experts is not None:
        experts[1 : len(completion.prompt_ids)] = completion.prompt_experts
    return experts


def trained_tokens(completion: Completion) -> npt.NDArray[np.bool_]:
    """Tokens of the completion that carry loss, bool [T]: the policy's own, with a finite sampler log-probability."""
    mask_T = completion.loss_mask
    return mask_T if completion.sampler_logprobs is None else mask_T & np.isfinite(completion.sampler_logprobs)

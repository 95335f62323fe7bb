"""A teacher outside of the trainer: forward passes over samples, in this process or in a Ray actor.

What it says travels as arrays (``TrainingSample.teacher``): states after the last norm, 4·H bytes a token, whose head
is sent once; or its k most probable words and the mass of all others, 8·k + 4.

T = tokens of a sample, H = the teacher's hidden size, V = its vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.cluster.actor import check_gpus
from rlreason.cluster.actors import ActorGroup, ActorOptions
from rlreason.cluster.places import Reservation
from rlreason.errors import UsageError
from rlreason.objective.batch import Batch
from rlreason.objective.distillation.head import rows_of
from rlreason.objective.distillation.teacher import OutputHead
from rlreason.policy.batch import make_batches
from rlreason.policy.heads import output_head
from rlreason.policy.logprobs import hidden_states, takes_packed
from rlreason.policy.policies import Policy
from rlreason.trainer.options import ModelSource, of_tokens
from rlreason.types import TeacherScores, TrainingSample

Payload = Literal["hidden", "topk", "sampled"]
#: Rows whose logits are made at a time.
_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """A teacher and what it is asked for. Example: ``TeacherSpec(model=..., payload="topk", k=64, shared=151665)``."""

    model: ModelSource
    payload: Payload
    k: int
    #: Ids below it are one word to teacher and student: both are cut there.
    shared: int
    micro_batch_tokens: int


class TeacherScorer:
    """The teacher in this process."""

    def __init__(self, spec: TeacherSpec, device: torch.device) -> None:
        """Raises UsageError for a model whose head can't be named."""
        self._spec = spec
        self._policy: Policy = spec.model.source.load(spec.model.dtype, device)
        self._model = self._policy.freeze()
        head = output_head(self._model)
        if head is None:
            raise UsageError(
                f"{type(self._model).__name__} as a teacher: its head is neither a product nor one with a bias, scale "
                'or soft cap that its config names; say where = "trainer"'
            )
        self._head = head

    def head(self) -> OutputHead:
        """Its head, on the CPU."""
        return self._head.on(torch.device("cpu"))

    @torch.no_grad()
    def score(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with what the teacher says of their loss tokens; log q of the token itself in
        ``teacher_logprobs``, NaN where it has no finite answer."""
        found = list(samples)
        if not samples:
            return found
        batches = make_batches(
            samples,
            self._spec.micro_batch_tokens,
            self._policy.pad_id,
            self._model.device,
            packed=takes_packed(self._model),
        )
        for batch in batches:
            states_BTH = hidden_states(self._model, batch)
            rows_R = rows_of(batch)
            said = self._said(states_BTH.flatten(0, 1).index_select(0, rows_R), batch, rows_R)
            tables = {name: _in_place(values, batch, rows_R) for name, values in said.items()}
            for row, place in enumerate(batch.places):
                sample = samples[place]
                of = {
                    name: _of_tokens(table[row], sample, whole=batch.packing is None) for name, table in tables.items()
                }
                own = of.pop("drawn")
                found[place] = replace(sample, teacher=TeacherScores(**of) if of else None, teacher_logprobs=own)
        return found

    @torch.no_grad()
    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that it finds most probable behind a prompt, one after the other."""
        ids = list(prompt_ids)
        for _ in range(count):
            logits_V = self._model(input_ids=torch.tensor([ids], device=self._model.device)).logits[0, -1]
            ids.append(int(logits_V[: self._spec.shared].argmax()))
        return ids[len(prompt_ids) :]

    def _said(self, states_RH: Tensor, batch: Batch, rows_R: Tensor) -> dict[str, Tensor]:
        targets_R = batch.targets_BT.reshape(-1)[rows_R]
        parts = [
            self._of_rows(states_RH[start : start + _ROWS], targets_R[start : start + _ROWS])
            for start in range(0, len(states_RH), _ROWS)
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _of_rows(self, states_RH: Tensor, targets_R: Tensor) -> dict[str, Tensor]:
        width = self._head.weight_VH.shape[0]
        logits_RV = torch.empty(len(states_RH), width, dtype=torch.float32, device=states_RH.device)
        logq_RV = torch.log_softmax(self._head.logits(states_RH, logits_RV)[:, : self._spec.shared].double(), dim=1)
        known_R = targets_R < logq_RV.shape[1]
        drawn_R = logq_RV.gather(1, torch.where(known_R, targets_R, 0).unsqueeze(1)).squeeze(1)
        drawn = {"drawn": torch.where(known_R, drawn_R, torch.nan)}
        if self._spec.payload == "sampled":
            return drawn
        if self._spec.payload == "hidden":
            return {**drawn, "states": states_RH}
        top = logq_RV.topk(min(self._spec.k, logq_RV.shape[1]), dim=1)
        tail_R = logq_RV.scatter(1, top.indices, -torch.inf).logsumexp(dim=1)
        return {**drawn, "ids": top.indices, "logprobs": top.values, "log_tail": tail_R}

    def close(self) -> None:
        """Nothing outside of this process."""


def _in_place(values: Tensor, batch: Batch, rows_R: Tensor) -> npt.NDArray[Any]:
    """Values of the loss rows where they belong, [B, T, …]; 0 elsewhere."""
    shape = batch.targets_BT.shape
    table = values.new_zeros((shape.numel(), *values.shape[1:])).index_copy_(0, rows_R, values)
    if not table.is_floating_point():
        return table.view(*shape, *values.shape[1:]).cpu().numpy()
    return table.view(*shape, *values.shape[1:]).float().cpu().numpy()


def _of_tokens(values_T: npt.NDArray[Any], sample: TrainingSample, *, whole: bool) -> npt.NDArray[Any]:
    if values_T.ndim == 1 and values_T.dtype == np.float32:
        return of_tokens(values_T, sample, whole=whole)
    start, count = 1 if whole else sample.prompt_length, len(sample.token_ids)
    found = np.zeros((count, *values_T.shape[1:]), dtype=values_T.dtype)
    found[start:] = values_T[: count - start]
    return found


class TeacherActor:
    """A ``TeacherScorer`` as a Ray actor."""

    def __init__(self, rank: int, count: int, spec: TeacherSpec) -> None:
        check_gpus()
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self._scorer = TeacherScorer(spec, device)

    def head(self) -> OutputHead:
        """See ``TeacherScorer.head``."""
        return self._scorer.head()

    def score(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """See ``TeacherScorer.score``."""
        return self._scorer.score(samples)

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """See ``TeacherScorer.greedy``."""
        return self._scorer.greedy(prompt_ids, count)


class RemoteTeacher:
    """A teacher in a process of its own: ``kind`` is its actor's class (``TeacherActor``, or one that scores as it
    does), made with ``spec``."""

    def __init__(self, kind: type, spec: object, options: ActorOptions, places: Reservation | None = None) -> None:
        """``places``: one place of the run's plan. Raises UsageError as ``ActorGroup`` and the teacher do, and where
        Ray gave it a GPU that torch does not see."""
        self._actors = ActorGroup(kind, 1, options, spec, places=places)

    def head(self) -> OutputHead | None:
        """See ``TeacherScorer.head``; None of a teacher that sends no states."""
        found: OutputHead | None = self._actors.ask_one(0, "head")
        return found

    def score(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """See ``TeacherScorer.score``."""
        found: list[TrainingSample] = self._actors.ask_one(0, "score", list(samples))
        return found

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """See ``TeacherScorer.greedy``."""
        found: list[int] = self._actors.ask_one(0, "greedy", list(prompt_ids), count)
        return found

    def close(self) -> None:
        """End the process."""
        self._actors.close()

"""The teachers of an ``opd`` stage: opened, asked, and watched for saying nothing or noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from rlreason.cluster.actors import ActorOptions
from rlreason.cluster.plan import teacher_kind
from rlreason.config import OpdStage, TeacherConfig
from rlreason.errors import HealthStop, UsageError
from rlreason.objective.distillation.teacher import OutputHead
from rlreason.sampler.vllm_teacher import VllmTeacherActor, VllmTeacherSpec
from rlreason.stages.context import Context
from rlreason.stages.vocabularies import shared_words
from rlreason.trainer.options import ModelSource
from rlreason.trainer.protocol import Trainer
from rlreason.trainer.teachers import RemoteTeacher, TeacherActor, TeacherScorer, TeacherSpec
from rlreason.types import TeacherScores, TrainingSample

#: Steps between canaries of teachers elsewhere, and the share of the signal that their noise may be.
CANARY_EVERY, MOST_NOISE = 50, 0.3
#: Tokens of a teacher's own text that its answers are tried on, at most.
MOST_OWN = 16


class TeacherElsewhere(Protocol):
    """A teacher outside of the trainer, in whatever process."""

    def head(self) -> OutputHead | None:
        """Of one that sends states."""
        ...

    def score(self, samples: Sequence[TrainingSample]) -> list[TrainingSample]:
        """The samples with what it says of their loss tokens."""
        ...

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """What it would say itself."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """One of the stage's. ``place``: among the trainer's models, or of an ``elsewhere`` among its heads."""

    name: str
    place: int
    #: Ids below it are one word to it and the student.
    shared: int
    elsewhere: TeacherElsewhere | None = None
    weight: float = 1.0


def open_teachers(
    stage: OpdStage,
    context: Context,
    trainer: Trainer,
    tables: Mapping[str, TeacherConfig],
    sources: Mapping[str, ModelSource],
) -> list[Teacher]:
    """The stage's teachers; who asks for them closes those elsewhere. Raises UsageError for a vocabulary that does not
    fit, and for a head that can't be sent."""
    found: list[Teacher] = []
    places = {"trainer": 0, "worker": 0, "vllm": 0}
    try:
        for name, table in tables.items():
            model = sources[name]
            shared = shared_words(model.source.inspect().tokenizer, trainer.tokenizer, f"stage {stage.name!r}")
            elsewhere = None if table.where == "trainer" else _opened(name, table, stage, context, (model, shared))
            weight = stage.weights.get(name, 1.0)  # of the user's own names
            place = places[table.where]
            places[table.where] += 1
            found.append(Teacher(name=name, place=place, shared=shared, elsewhere=elsewhere, weight=weight))
    except BaseException:
        for one in found:
            if one.elsewhere is not None:
                one.elsewhere.close()
        raise
    return found


def _opened(
    name: str, table: TeacherConfig, stage: OpdStage, context: Context, known: tuple[ModelSource, int]
) -> TeacherElsewhere:
    """``known``: the model, and its words that the student has too."""
    model, shared = known
    places, kind = context.trainers.places, teacher_kind(name)
    options = ActorOptions(name=kind, setting=f"teacher.{name}")
    planned = any(one.kind == kind for one in places.plan.teachers)
    if table.where == "vllm":
        if not planned:
            raise UsageError(
                f'teacher.{name}: where = "vllm" is an engine in a Ray actor, and this run has no Ray or no vLLM: '
                'install them (docs/cluster.md), or say where = "worker"'
            )
        sampler = context.recipe.sampler
        engine = VllmTeacherSpec(
            source=model.source,
            dtype=model.dtype,
            payload="topk" if table.payload == "topk" else "sampled",
            k=stage.k,
            shared=shared,
            max_length=sampler.max_length,
            kv_cache_bytes=None if sampler.kv_cache_gib is None else int(sampler.kv_cache_gib * 2**30),
        )
        return RemoteTeacher(VllmTeacherActor, engine, options, places.take(kind))
    spec = TeacherSpec(
        model=model, payload=table.payload, k=stage.k, shared=shared, micro_batch_tokens=stage.micro_batch
    )
    if not planned:
        return TeacherScorer(spec, context.device)
    return RemoteTeacher(TeacherActor, spec, options, places.take(kind))


def with_finite(sample: TrainingSample, floor: float | None = None) -> tuple[TrainingSample, int]:
    """The sample without the loss of tokens that the teacher has no finite answer for, and how many those are. With a
    ``floor`` probability 0 of the token is an answer: the loss takes the floor for its log."""
    assert sample.teacher_logprobs is not None
    wrong = ~np.isfinite(sample.teacher_logprobs)
    if floor is not None:
        wrong &= ~np.isneginf(sample.teacher_logprobs)
    said = sample.teacher
    if said is not None:
        for values in (said.states, said.logprobs):
            if values is not None:
                wrong |= np.isnan(values).any(axis=1) | np.isposinf(values).any(axis=1)
    wrong &= sample.loss_mask
    if not wrong.any():
        return sample, 0
    return replace(sample, loss_mask=sample.loss_mask & ~wrong), int(wrong.sum())


def check_noise(teacher: Teacher, samples: Sequence[TrainingSample], stage: str) -> None:
    """A teacher that disagrees with itself by a third of what it disagrees with the student by teaches noise."""
    assert teacher.elsewhere is not None
    first = samples[0]
    alone = teacher.elsewhere.score([first])[0].teacher_logprobs
    beside = teacher.elsewhere.score([first, *samples[1:8]])[0].teacher_logprobs
    assert alone is not None
    assert beside is not None
    mask = first.loss_mask & np.isfinite(alone) & np.isfinite(beside)
    if not mask.any():
        return
    noise = float(np.abs(alone - beside)[mask].mean())
    signal = float(np.abs(alone - first.sampler_logprobs)[mask].mean())
    if noise > MOST_NOISE * signal and noise > 1e-4:
        raise HealthStop(
            f"stage {stage!r}: the teacher {teacher.name!r} scores the same row {noise:.2g} nats a token apart, alone "
            f"and in a batch, and differs from the student by {signal:.2g}: its signal is noise. Say "
            'where = "trainer"'
        )


def check_places(teacher: Teacher, head: OutputHead | None, prompt: Sequence[int], count: int, stage: str) -> None:
    """On its own greedy text a teacher's most probable word is the token that follows; of answers that came out a place
    too early or too late it would be the token before or behind. Nothing can be said of a teacher that names no words.

    ``head``: of a teacher that sends states. ``count``: tokens of that text.
    """
    assert teacher.elsewhere is not None
    ids = np.asarray([*prompt, *teacher.elsewhere.greedy(prompt, count)], np.int32)
    (said,) = teacher.elsewhere.score([TrainingSample(token_ids=ids, loss_mask=np.arange(len(ids)) >= len(prompt))])
    first_T = None if said.teacher is None else _first_words(said.teacher, head, teacher.shared, count)
    if first_T is None or count < MOST_OWN // 4:
        return
    own_T = ids[len(prompt) :]
    hits = {shift: float((first_T[1 + shift : count - 1 + shift] == own_T[1:-1]).mean()) for shift in (-1, 0, 1)}
    if hits[0] < max(hits[-1], hits[1]):
        raise HealthStop(
            f"stage {stage!r}: what the teacher {teacher.name!r} says is of other places: on its own text its most "
            f"probable word is the token itself in {hits[0]:.0%} of the places, and the one beside it in "
            f'{max(hits[-1], hits[1]):.0%}. This is a fault of rlreason: please report it, and say where = "trainer"'
        )


def _first_words(said: TeacherScores, head: OutputHead | None, shared: int, count: int) -> npt.NDArray[np.int64]:
    """The most probable word before each of the last ``count`` tokens."""
    if said.ids is not None:
        return said.ids[-count:, 0].astype(np.int64)
    assert said.states is not None
    assert head is not None
    states_TH = torch.from_numpy(said.states[-count:].copy())  # of a Ray object, it may not be written to
    logits_TV = head.logits(states_TH, torch.empty(count, head.weight_VH.shape[0]))
    return logits_TV[:, :shared].argmax(dim=1).numpy()

"""The teachers of an ``opd`` stage: opened, asked, and watched for saying nothing or noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlreason.cluster.actors import ActorOptions
from rlreason.cluster.plan import teacher_kind
from rlreason.config import OpdStage, TeacherConfig
from rlreason.errors import HealthStop
from rlreason.stages.context import Context
from rlreason.stages.vocabularies import shared_words
from rlreason.trainer.options import ModelSource
from rlreason.trainer.protocol import Trainer
from rlreason.trainer.teachers import RemoteTeacher, TeacherScorer, TeacherSpec
from rlreason.types import TrainingSample

#: Steps between canaries of teachers elsewhere, and the share of the signal that their noise may be.
CANARY_EVERY, MOST_NOISE = 50, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """One of the stage's. ``place``: among the trainer's models, or of an ``elsewhere`` among its heads."""

    name: str
    place: int
    #: Ids below it are one word to it and the student.
    shared: int
    elsewhere: TeacherScorer | RemoteTeacher | None = None
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
    places = {"trainer": 0, "worker": 0}
    try:
        for name, table in tables.items():
            model = sources[name]
            shared = shared_words(model.source.inspect().tokenizer, trainer.tokenizer, f"stage {stage.name!r}")
            elsewhere: TeacherScorer | RemoteTeacher | None = None
            if table.where == "worker":
                spec = TeacherSpec(
                    model=model,
                    payload=table.payload,
                    k=stage.k,
                    shared=shared,
                    micro_batch_tokens=stage.micro_batch,
                )
                elsewhere = _opened(name, spec, context)
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


def _opened(name: str, spec: TeacherSpec, context: Context) -> TeacherScorer | RemoteTeacher:
    places, kind = context.trainers.places, teacher_kind(name)
    if all(one.kind != kind for one in places.plan.teachers):
        return TeacherScorer(spec, context.device)
    return RemoteTeacher(spec, ActorOptions(name=kind, setting=f"teacher.{name}"), places.take(kind))


def with_finite(sample: TrainingSample) -> tuple[TrainingSample, int]:
    """The sample without the loss of tokens that the teacher has no finite answer for, and how many those are."""
    assert sample.teacher_logprobs is not None
    wrong = ~np.isfinite(sample.teacher_logprobs)
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
    noise = teacher.elsewhere.noise(first, samples[1:8])
    scored = teacher.elsewhere.score([first])[0].teacher_logprobs
    assert scored is not None
    gaps = np.abs(scored - first.sampler_logprobs)[first.loss_mask & np.isfinite(scored)]
    signal = float(gaps.mean()) if len(gaps) else 0.0
    if noise > MOST_NOISE * signal and noise > 1e-4:
        raise HealthStop(
            f"stage {stage!r}: the teacher {teacher.name!r} scores the same row {noise:.2g} nats a token apart, alone "
            f"and in a batch, and differs from the student by {signal:.2g}: its signal is noise. Say "
            'where = "trainer"'
        )

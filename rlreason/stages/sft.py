"""Supervised training on demonstrations or traces: the cold start, and the sequence part of distillation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import JsonValue

from rlreason.config import DistillStage, SftStage
from rlreason.objective.distillation.spec import FORWARD
from rlreason.policy.batch import supervised_sample
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.stages.context import Context, Recorder
from rlreason.stages.epochs import demonstrations_of
from rlreason.stages.loop import Commit, Heldout, StepLoop
from rlreason.stages.replay import record_experts
from rlreason.streams import permutation
from rlreason.trainer.distilling import DistillationLoss
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.protocol import Loss, Trainer
from rlreason.types import Problem, TrainingSample

#: Step number (from 0) -> the samples to train on.
SampleSource = Callable[[int], list[TrainingSample]]
#: Loss tokens of a step -> its loss.
LossOfStep = Callable[[float], Loss]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedWork:
    """One supervised step (``stages.loop.Work``). ``sampler``: where the stage asks for held-out evaluations."""

    stage: SftStage | DistillStage
    context: Context
    trainer: Trainer
    recorder: Recorder
    samples: SampleSource
    loss: LossOfStep
    sampler: PoolSampler | None

    def train(self, step: int, commit: Commit) -> dict[str, float]:
        """One optimizer step; every micro-batch is divided by the same global token count."""
        samples = self.samples(step)
        tokens = float(sum(int(sample.loss_mask.sum()) for sample in samples))
        sums = self.trainer.forward_backward(samples, self.loss(tokens))
        self.recorder.meter.taught(samples)
        commit()
        stats = self.trainer.step(step)
        self.recorder.entry.trained_tokens += int(tokens)
        experts = record_experts(self.context.run, self.stage.name, step, sums)
        return sums.read(tokens) | stats.scalars() | experts | {"tokens": tokens}

    def publish(self, version: int) -> None:
        """Nobody draws but for an evaluation, which takes the newest weights itself."""

    def heldout(self) -> Heldout:
        """See ``Work.heldout``."""
        stage, sampler = self.stage, self.sampler
        assert sampler is not None
        version = self.recorder.progress.done + 1
        if sampler.version != version:
            expected = self.trainer.expectations(sampler.probes)
            if self.context.samplers.colocated:
                self.trainer.rest()
            sampler.publish(self.trainer.weights(), version, expected)
        draw = self.context.draw_with(sampler)
        groups = draw(*self.context.heldout_asked(stage.name, stage.eval_problems, stage.longest_evaluated))
        self.context.samplers.rest()
        return lambda: self.recorder.heldout(groups)

    def closing(self, scalars: dict[str, float]) -> dict[str, float]:
        """Nothing more."""
        return scalars

    def position(self) -> dict[str, JsonValue]:
        """Samples are a function of the step."""
        return {}


def cross_entropy(tokens: float) -> Loss:
    """Mean over the step's loss tokens."""
    return CrossEntropyLoss(denominator=tokens)


def with_teacher(teacher_kl: float, vocabulary: int) -> LossOfStep:
    """The same mixed with KL(teacher || policy) over the ``vocabulary`` tokens that both have."""
    return lambda tokens: DistillationLoss(spec=FORWARD, weight=teacher_kl, denominator=tokens, shared=vocabulary)


class Inspected(Protocol):
    """What rows are made for: the model that will learn them, whose weights need not be there."""

    @property
    def tokenizer(self) -> Any:
        """Its transformers tokenizer."""
        ...

    @property
    def architecture(self) -> Mapping[str, object]:
        """Its config as a dict."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntRows:
    """What a supervised stage learns."""

    #: With its steps, where the recipe says epochs.
    stage: SftStage | DistillStage
    at: SampleSource
    #: Different ones; None: they never run out.
    count: int | None

    @classmethod
    def of(cls, samples: Sequence[TrainingSample], stage: SftStage | DistillStage, context: Context) -> LearntRows:
        """Each of ``samples`` once an epoch."""
        at = epoch_samples(samples, stage.batch_size, context.recipe.seed, stage.name)
        return cls(stage=stage.counted(len(samples)), at=at, count=len(samples))

    def said(self) -> str | None:
        """How often they are learnt, where the recipe does not say how many there are."""
        stage = self.stage
        if self.count is None or (isinstance(stage, SftStage) and stage.epochs is None):
            return None
        epochs = stage.steps * stage.batch_size / self.count
        return f"{stage.name}: {self.count:,} rows, learnt {epochs:.2g} times in {stage.steps:,} steps"


def epoch_samples(samples: Sequence[TrainingSample], batch_size: int, *key: object) -> SampleSource:
    """Batches of ``samples``, shuffled anew each epoch; step i's samples are a pure function of (key, i)."""
    cached: tuple[int, list[int]] = (-1, [])

    def at(step: int) -> list[TrainingSample]:
        nonlocal cached
        batch = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, place = divmod(position, len(samples))
            if cached[0] != epoch:
                cached = (epoch, permutation(len(samples), *key, epoch))
            batch.append(samples[cached[1][place]])
        return batch

    return at


def run_supervised(learnt: LearntRows, context: Context, trainer: Trainer, recorder: Recorder) -> None:
    """All steps of a supervised stage that are still to be done. ``trainer`` has the teacher that it wants."""
    stage = learnt.stage
    loss: LossOfStep = cross_entropy
    if isinstance(stage, DistillStage) and stage.teacher_kl > 0:
        loss = with_teacher(stage.teacher_kl, len(trainer.tokenizer))
    said = learnt.said()
    if said is not None:
        context.run.tell(said)
    version = recorder.progress.trained
    growth = context.trainers.growth(trainer, stage)
    sampler = context.sampler(trainer, version, growth=growth) if stage.eval_every else None
    context.samplers.rest()
    work = SupervisedWork(
        stage=stage,
        context=context,
        trainer=trainer,
        recorder=recorder,
        samples=learnt.at,
        loss=loss,
        sampler=sampler,
    )
    StepLoop(stage=stage, context=context, trainer=trainer, recorder=recorder, published=version).run(work)


def sft_rows(stage: SftStage, context: Context, model: Inspected) -> LearntRows:
    """The demonstrations of the data: the cold start of R1 (arXiv 2501.12948, section 2.3.1). Raises UsageError as
    ``demonstrations_of``."""
    source = context.data.of(stage.name)

    def sample(problem: Problem) -> TrainingSample:
        pair = context.prompt_format.supervised(problem, model.tokenizer)
        return supervised_sample(pair.token_ids, pair.loss_mask)

    count = demonstrations_of(stage, source)
    if count is not None:
        fixed = [sample(problem) for problem in source.demonstrations(0, count)]
        return LearntRows.of(fixed, stage, context)

    def endless(step: int) -> list[TrainingSample]:
        return [sample(problem) for problem in source.demonstrations(step * stage.batch_size, stage.batch_size)]

    return LearntRows(stage=stage, at=endless, count=None)

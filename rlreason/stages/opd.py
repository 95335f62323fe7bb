"""On-policy distillation: the student draws, teachers score its own tokens, one optimizer step.

    problems -> student draws -> scored groups -> samples, each with its weight and its teacher
                                                     |  teacher in the trainer: asked inside the loss
                                                     |  teacher elsewhere: what it says comes with the samples
    weights, version + 1 <- optimizer step <- Σ_teachers forward_backward(its samples, divergence)
                                              (+ GRPO's, as a sum of its own)

Loss Σ_it w_it a_r(i) D_it with one denominator over all loss tokens of the step, so the weights a of teachers are
shares of tokens as they come. GKD's λ (arXiv 2306.13649): a share of the step's problems are traces instead of draws.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import JsonValue

from rlreason.config import OpdStage
from rlreason.errors import HealthStop, UsageError
from rlreason.policy.batch import rollout_sample
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.stream import RolloutStream
from rlreason.stages.broken import stop_broken
from rlreason.stages.context import Context, Recorder
from rlreason.stages.credit import completions_of, samples_of
from rlreason.stages.grpo import earn
from rlreason.stages.loop import Commit, Heldout, StepLoop
from rlreason.stages.opd_routes import check_routes, route_of
from rlreason.stages.opd_teachers import CANARY_EVERY, MOST_OWN, Teacher, check_noise, check_places, with_finite
from rlreason.stages.replay import loss_of, record_experts
from rlreason.stages.rollout_log import log_groups
from rlreason.stages.rollouts import all_broken, broken_detail, summarize
from rlreason.streams import permutation
from rlreason.trainer.distilling import DistillationLoss
from rlreason.trainer.fixed import FixedAdvantageLoss
from rlreason.trainer.protocol import LossSums, Trainer
from rlreason.types import Group, Problem, SamplingParams, TrainingSample

#: Share of a step's loss tokens without a finite answer of the teacher at which the run stops.
MOST_EXCLUDED = 1e-3
#: Share of softmax mass on words that the other model has not, at which the run stops.
MOST_PADDED = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class OpdWork:
    """One step (``stages.loop.Work``)."""

    stage: OpdStage
    context: Context
    trainer: Trainer
    sampler: PoolSampler
    stream: RolloutStream
    recorder: Recorder
    teachers: tuple[Teacher, ...]
    #: Rows of the teacher's traces that a step mixes in; empty where all rows are the student's.
    traces: Sequence[TrainingSample] = field(default=())

    def train(self, step: int, commit: Commit) -> dict[str, float]:
        """Draw, have the teachers score, learn."""
        began = time.perf_counter()
        groups = self.stream.take(step)
        self.recorder.health.broke(broken_detail(groups))
        if groups and all_broken(groups):
            commit()
            stop_broken(self.stage, step, groups, self.recorder, self.trainer, self.position())
        taken = time.perf_counter()
        scalars = summarize(groups, groups) if groups else {}
        scalars |= self._learn(step, groups, commit)
        done = time.perf_counter()
        scalars |= {
            "seconds/sample": self.stream.seconds[0],
            "seconds/train": done - taken,
            "tokens_per_second": scalars["trained_tokens"] / (done - began),
        }
        self.recorder.meter.drawn(groups)
        self.recorder.entry.trained_tokens += int(scalars["trained_tokens"])
        log_groups(self.context, self.stage.name, step, groups, decode=self.trainer.tokenizer.decode)
        return scalars

    def _learn(self, step: int, groups: Sequence[Group], commit: Commit) -> dict[str, float]:
        stage = self.stage
        if stage.advantage != "teacher":
            return self._learn_fixed(step, groups, commit)
        rows = self._rows(step, groups)
        before = time.perf_counter()
        rows, excluded = self._scored(step, rows)
        scoring = time.perf_counter() - before
        tokens = float(sum(int(sample.loss_mask.sum()) for samples in rows for sample in samples))
        total = LossSums()
        for teacher, samples in zip(self.teachers, rows, strict=True):
            self.recorder.meter.taught(samples, teacher.name)
            weighed = [_weighed(one, teacher.weight / max(tokens, 1.0)) for one in samples]
            loss = DistillationLoss(
                spec=stage.spec,
                shared=teacher.shared,
                teacher=teacher.place,
                elsewhere=teacher.elsewhere is not None,
            )
            total.merge(self.trainer.forward_backward(weighed, loss))
        scalars = total.read(max(tokens, 1.0))
        self._check(scalars, excluded, tokens)
        if stage.reward_weight:
            scalars |= self._reward(groups)
        commit()
        scalars |= self.trainer.step(step).scalars() | record_experts(self.context.run, stage.name, step, total)
        return scalars | {
            "trained_tokens": tokens,
            "excluded/tokens": excluded + tokens * _excluded(scalars),
            "seconds/teacher": scoring,
        }

    def _rows(self, step: int, groups: Sequence[Group]) -> list[list[TrainingSample]]:
        """Each teacher's samples."""
        rows: list[list[TrainingSample]] = [[] for _ in self.teachers]
        names = [one.name for one in self.teachers]
        for group in groups:
            place = names.index(route_of(self.stage, group.problem)) if self.stage.route else 0
            rows[place] += [rollout_sample(one, group_id=group.group_id) for one in group.completions_G]
        rows[0] += self._mixed_in(step)
        return rows

    def _mixed_in(self, step: int) -> list[TrainingSample]:
        """The step's rows of traces, each trace once an epoch: a pure function of (seed, step)."""
        stage = self.stage
        count = (stage.problems_per_step - drawn_problems(stage)) * stage.samples_per_problem
        found = []
        for position in range(step * count, (step + 1) * count):
            epoch, place = divmod(position, len(self.traces))
            order = permutation(len(self.traces), self.context.recipe.seed, stage.name, "traces", epoch)
            found.append(self.traces[order[place]])
        return found

    def _scored(self, step: int, rows: list[list[TrainingSample]]) -> tuple[list[list[TrainingSample]], float]:
        """The samples with what teachers elsewhere say; tokens without a finite answer carry no loss and are in no
        count. And how many those are."""
        found, excluded = [], 0.0
        for teacher, samples in zip(self.teachers, rows, strict=True):
            if teacher.elsewhere is None:
                found.append(samples)
                continue
            scored = [with_finite(one, self.stage.floor) for one in teacher.elsewhere.score(samples)]
            excluded += sum(count for _, count in scored)
            found.append([one for one, _ in scored])
            if step % CANARY_EVERY == 0 and len(samples) > 1:
                check_noise(teacher, samples, self.stage.name)
        return found, excluded

    def _check(self, scalars: dict[str, float], excluded: float, tokens: float) -> None:
        """Before the weights change: what a teacher could not say, and what the other vocabulary has not."""
        here = _excluded(scalars)
        local = any(one.elsewhere is None for one in self.teachers)
        share = here + excluded / max(tokens + excluded, 1.0)
        if share > MOST_EXCLUDED or (here > 0 and local):
            raise HealthStop(
                f"stage {self.stage.name!r}: {share:.2%} of the tokens have no finite divergence from their teacher: "
                + (
                    "NaN or infinite logits, or a word that it gives probability 0 and the student doesn't. Look at "
                    "the teacher's weights; if such words are all that is wrong, say floor = -40 in the stage"
                    if self.stage.floor is None
                    else "NaN or infinite logits, which no floor mends. Look at the teacher's weights and its dtype"
                )
            )
        for who in ("student", "teacher"):
            mass = scalars.get(f"padded_mass/{who}", 0.0)
            if mass > MOST_PADDED:
                raise HealthStop(
                    f"stage {self.stage.name!r}: the {who} gives {mass:.1%} of its probability to ids that the other "
                    "has no word for, and those are left out of both: the two need one tokenizer (docs/distill.md)"
                )

    def _reward(self, groups: Sequence[Group]) -> dict[str, float]:
        """GRPO's gradient of the same draws, added with its own denominators."""
        grpo = self.stage.grpo()
        found, credit = LossSums(), earn(groups, grpo, self.trainer)
        loss = loss_of(grpo, credit.scores)
        for samples in samples_of(groups, credit, grpo):
            weighed = [replace(one, weights=one.weights * self.stage.reward_weight) for one in samples]
            found.merge(self.trainer.forward_backward(weighed, loss))
        return {"loss/reward": found.read(1.0)["loss"]} if found.losses else {"loss/reward": 0.0}

    def _learn_fixed(self, step: int, groups: Sequence[Group], commit: Commit) -> dict[str, float]:
        """The baselines without a teacher."""
        stage = self.stage
        assert stage.advantage != "teacher"
        samples = [rollout_sample(one) for one in completions_of(groups)]
        counts = [int(one.loss_mask.sum()) for one in samples]
        chosen = sum(math.ceil(stage.lowest * count - 1e-9) for count in counts)
        loss = FixedAdvantageLoss(
            advantage=stage.advantage, value=stage.value, lowest=stage.lowest, denominator=float(max(chosen, 1))
        )
        sums = self.trainer.forward_backward(samples, loss)
        commit()
        scalars = sums.read(float(sum(counts))) | self.trainer.step(step).scalars()
        scalars |= record_experts(self.context.run, stage.name, step, sums)
        return scalars | {"trained_tokens": float(sum(counts))}

    def publish(self, version: int) -> None:
        """See ``Work.publish``."""
        self.stream.publish(self.trainer.weights(), version, self.trainer.expectations(self.sampler.probes))

    def heldout(self) -> Heldout:
        """See ``Work.heldout``."""
        stage = self.stage
        asked = self.context.heldout_asked(stage.name, stage.eval_problems, stage.longest_evaluated)
        drawn = self.stream.begin(*asked)
        return lambda: self.recorder.heldout(drawn())

    def closing(self, scalars: dict[str, float]) -> dict[str, float]:
        """See ``Work.closing``: what happened to the workers."""
        stats = self.sampler.stats.read()
        return {**stats, **scalars}

    def position(self) -> dict[str, JsonValue]:
        """See ``Work.position``: problems and traces are functions of the step; only deliveries are not."""
        return {"delivered": self.sampler.pool.settled}


def _excluded(scalars: dict[str, float]) -> float:
    """Share of the tokens that the loss itself left out."""
    return sum(value for key, value in scalars.items() if key.startswith("excluded/"))


def _weighed(sample: TrainingSample, weight: float) -> TrainingSample:
    return replace(sample, weights=np.where(sample.loss_mask, np.float32(weight), np.float32(0.0)))


def drawn_problems(stage: OpdStage) -> int:
    """Problems of a step that the student answers."""
    return round(stage.on_policy * stage.problems_per_step)


def _open_heads(stage: OpdStage, context: Context, trainer: Trainer, teachers: Sequence[Teacher]) -> None:
    """Give the trainer the heads of teachers elsewhere, and try what they say on a text of their own."""
    sent = []
    prompt = context.prompt_format.render(
        context.data.of(stage.name).train(stage.first_problem, 1)[0], trainer.tokenizer
    )
    for one in teachers:
        if one.elsewhere is not None:
            head = one.elsewhere.head()
            sent += [] if head is None else [head]
            check_places(one, head, prompt.ids, min(MOST_OWN, stage.max_tokens), stage.name)
    if sent:
        trainer.teach(sent)


def run_opd(
    stage: OpdStage,
    context: Context,
    trainer: Trainer,
    recorder: Recorder,
    teachers: Sequence[Teacher],
    traces: Sequence[TrainingSample] = (),
) -> None:
    """All steps that are still to be done. Raises UsageError for a problem without a teacher, before anything is
    drawn."""
    source, version, drawn = context.data.of(stage.name), recorder.progress.trained, drawn_problems(stage)
    if drawn < stage.problems_per_step and not traces:
        raise UsageError(f"stage {stage.name!r}: on_policy = {stage.on_policy:g} mixes traces in, and there are none")
    check_routes(stage, source)
    _open_heads(stage, context, trainer, teachers)

    def ask(step: int) -> tuple[list[Problem], SamplingParams]:
        params = SamplingParams(
            samples_per_problem=stage.samples_per_problem,
            temperature=stage.temperature,
            max_tokens=stage.max_tokens,
            seed=context.recipe.seed,
            stream=f"{stage.name}/{step}",
        )
        return source.train(stage.first_problem + step * drawn, drawn), params

    sampler = context.sampler(trainer, version, growth=context.trainers.growth(trainer, stage))
    if recorder.saved is not None and recorder.progress.position["delivered"]:
        sampler.pool.settle_deliveries()
        sampler.stats.read()  # these deliveries are in the metrics of the step before
    with RolloutStream(
        sampler,
        context.scorer,
        ask,
        range(version, stage.steps),
        0,
        colocated=context.samplers.colocated,
        verifier=context.verifier,
    ) as stream:
        work = OpdWork(
            stage=stage,
            context=context,
            trainer=trainer,
            sampler=sampler,
            stream=stream,
            recorder=recorder,
            teachers=tuple(teachers),
            traces=traces,
        )
        StepLoop(stage=stage, context=context, trainer=trainer, recorder=recorder, published=version).run(work)

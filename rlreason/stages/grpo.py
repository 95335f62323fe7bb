"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) with verified rewards.

The life of a completion::

    problem -> Request -> rollout worker -> Completion -> Group -> reward -> advantage -> TrainingSample
               (ask)      (sampler room)    (RolloutStream)  (scorer)  (credit.py)    |
                                                                                      v
    weights, version + 1 <- optimizer step <- gradients <- loss <- forward pass <- micro-batch
    (stream.publish)        (trainer.step)       (trainer.forward_backward: trainer room, objective room)

With ``staleness`` above 0 the first line runs ahead (``sampler/stream.py``); nothing else here changes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from pydantic import JsonValue

from rlreason.config import GrpoStage
from rlreason.diagnose.mismatch import MismatchDoctor
from rlreason.errors import UsageError
from rlreason.objective.kl import kl_estimate
from rlreason.policy.batch import rollout_sample
from rlreason.sampler.pool import Record
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.stream import SCHEDULE, Ask, RolloutStream, scheduled
from rlreason.stages.context import Context, Progress, Recorder
from rlreason.stages.credit import advantages_of, completions_of, samples_of, useful_groups
from rlreason.stages.loop import Commit, StepLoop
from rlreason.stages.rollouts import log_groups, nonfinite_logprobs, staleness, summarize
from rlreason.trainer.forward import PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.protocol import LossSums, StepStats, Trainer
from rlreason.types import Group, Problem, SamplingParams, TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoWork:
    """One GRPO step (``stages.loop.Work``)."""

    stage: GrpoStage
    context: Context
    trainer: Trainer
    sampler: PoolSampler
    stream: RolloutStream
    recorder: Recorder
    #: Kept only where the stage asks for diagnoses.
    doctor: MismatchDoctor | None = None

    def train(self, step: int, commit: Commit) -> dict[str, float]:
        """Take the step's scored groups and learn from them."""
        began = time.perf_counter()
        groups = self.stream.take(step)
        if self.doctor is not None:
            self.doctor.look(step, groups)
        taken = time.perf_counter()
        useful = useful_groups(groups, self.stage)
        scalars = summarize(groups, useful) | staleness(groups, step) | nonfinite_logprobs(groups)
        scalars |= learn(step, useful, self.stage, self.trainer, commit)
        done = time.perf_counter()
        scalars |= {
            "seconds/sample": self.stream.seconds[0],
            "seconds/score": self.stream.seconds[1],
            "seconds/train": done - taken,
            "tokens_per_second": scalars["tokens"] / (done - began),
        }
        self.recorder.entry.sampled_tokens += int(scalars["tokens"])
        self.recorder.entry.trained_tokens += int(scalars.get("trained_tokens", 0.0))
        log_groups(self.context.run, self.stage.name, step, groups[: self.stage.logged_groups], self.stage)
        return scalars

    def publish(self, version: int) -> None:
        """See ``Work.publish``."""
        self.stream.publish(self.trainer.weights(), version, self.trainer.expectations(self.sampler.probes))

    def heldout(self) -> float:
        """See ``Work.heldout``."""
        stage = self.stage
        return self.context.heldout_accuracy(self.stream.draw, stage.name, stage.eval_problems, stage.max_tokens)

    def closing(self) -> dict[str, float]:
        """See ``Work.closing``: what happened to the workers."""
        return self.sampler.stats.read()

    def position(self) -> dict[str, JsonValue]:
        """See ``Work.position``: whether every worker holds the newest weights already, as after an evaluation; and the
        ledger of groups, for runs that draw ahead.

        A group is trained once or under way: none is dropped for its staleness, which is bounded by when it begins.
        """
        trained = self.recorder.progress.done + (self.recorder.progress.pending is not None)
        return {
            "delivered": self.sampler.pool.settled,
            "groups_trained": trained * self.stage.problems_per_step,
            "groups_under_way": {name: list(ids) for name, ids in self.stream.under_way.items()},
        }


def learn(step: int, groups: Sequence[Group], stage: GrpoStage, trainer: Trainer, commit: Commit) -> dict[str, float]:
    """Advantages, samples, and ``updates_per_step`` optimizer steps; without samples the policy stays as it is."""
    updates = stage.updates_per_step
    penalties: list[float] = []
    batches = [_prepare(groups[part::updates], stage, trainer, penalties) for part in range(updates)]
    batches = [samples for samples in batches if samples]
    if not batches:
        commit()
        return {}
    if len(batches) > 1:  # the old policy must be read before the first update changes it
        batches = [_with_old(samples, stage, trainer) for samples in batches]
    loss, total, tokens = PolicyGradientLoss(spec=stage.objective, temperature=stage.temperature), LossSums(), 0
    steps: list[StepStats] = []
    for samples in batches:
        total.merge(trainer.forward_backward(samples, loss))
        tokens += sum(int(sample.loss_mask.sum()) for sample in samples)
        if not steps:
            commit()
        steps.append(trainer.step(step))
    scalars = total.read(tokens) | _summed(steps) | {"trained_tokens": float(tokens)}
    return scalars | ({"kl/penalty": fmean(penalties)} if penalties else {})


def _summed(steps: Sequence[StepStats]) -> dict[str, float]:
    """Metrics of a step's updates: those of the last, and how many were skipped."""
    return steps[-1].scalars() | {"update/skipped": float(sum(one.skipped for one in steps))}


def _prepare(
    groups: Sequence[Group], stage: GrpoStage, trainer: Trainer, penalties: list[float]
) -> list[TrainingSample]:
    """Samples of one update. Adds what the KL took off each reward to ``penalties``."""
    if not groups:
        return []
    objective = stage.objective
    taken = None
    if objective.kl_in == "reward" and objective.kl_coef > 0:
        taken = _kl_penalties(groups, stage, trainer)
        penalties += taken
    samples = samples_of(groups, advantages_of(groups, stage, taken))
    if objective.kl_in == "loss" and objective.kl_coef > 0 and samples:
        reference = trainer.logprobs(samples, stage.temperature, of="reference")
        samples = [replace(one, reference_logprobs=found) for one, found in zip(samples, reference, strict=True)]
    return samples


def _with_old(samples: Sequence[TrainingSample], stage: GrpoStage, trainer: Trainer) -> list[TrainingSample]:
    found = trainer.logprobs(samples, stage.temperature)
    return [replace(sample, old_logprobs=old) for sample, old in zip(samples, found, strict=True)]


def _kl_penalties(groups: Sequence[Group], stage: GrpoStage, trainer: Trainer) -> list[float]:
    """kl_coef · Σ_t KL estimate of each completion, between the policy that starts the step and the reference."""
    samples = [rollout_sample(one) for one in completions_of(groups)]
    pairs = zip(
        samples,
        trainer.logprobs(samples, stage.temperature),
        trainer.logprobs(samples, stage.temperature, of="reference"),
        strict=True,
    )
    penalties = []
    for sample, current, reference in pairs:
        kl_T, _ = kl_estimate(torch.from_numpy(current), torch.from_numpy(reference), stage.objective.kl_estimator)
        penalties.append(
            stage.objective.kl_coef * float(np.sum(kl_T.numpy(), where=sample.loss_mask, dtype=np.float64))
        )
    return penalties


def ask(stage: GrpoStage, context: Context) -> Ask:
    """The problems of each step and how they are drawn: pure functions of (seed, step)."""

    def at(step: int) -> tuple[list[Problem], SamplingParams]:
        first = stage.first_problem + step * stage.problems_per_step
        params = SamplingParams(
            samples_per_problem=stage.samples_per_problem,
            temperature=stage.temperature,
            max_tokens=stage.max_tokens,
            seed=context.recipe.seed,
            stream=f"{stage.name}/{step}",
        )
        return context.source.train(first, stage.problems_per_step), params

    return at


def _recording(stage: GrpoStage, context: Context) -> Record:
    return lambda line: context.run.append(stage.name, SCHEDULE, line)


def _go_on(sampler: PoolSampler, stage: GrpoStage, progress: Progress, context: Context) -> None:
    """Bring new workers to where those of the earlier process were."""
    if stage.staleness:
        for worker in range(sampler.pool.workers):  # who follows the schedule has to start them anew, too
            _recording(stage, context)({"worker": worker, "restart": "the run was resumed"})
    elif progress.position["delivered"]:
        sampler.pool.settle_deliveries()
        sampler.stats.read()  # these deliveries are in the metrics of the step before


def _check_ledger(stream: RolloutStream, under_way: JsonValue) -> None:
    """What was under way when the state was saved must have been asked for again: nothing is lost, nothing doubled."""
    assert isinstance(under_way, dict)
    for name, ids in under_way.items():
        if stream.under_way and stream.under_way[name] != ids:
            raise UsageError(
                f"the groups of {name} are not those that were under way when the state was saved: "
                "the data gives other problems than then"
            )


def run_grpo(stage: GrpoStage, context: Context, trainer: LocalTrainer, recorder: Recorder) -> None:
    """All steps of a GRPO stage that are still to be done."""
    progress = recorder.progress
    # A step that is trained and not recorded has made its version already.
    version = progress.done + (progress.pending is not None)
    doctor = MismatchDoctor(stage, context.run, trainer) if stage.diagnose_every else None
    sampler = scheduled(context.sampler(trainer, version), stage, _recording(stage, context), context.replay)
    if recorder.saved is not None:
        _go_on(sampler, stage, progress, context)
    steps = range(version, stage.steps)
    colocated = context.recipe.cluster.colocate
    with RolloutStream(
        sampler, context.scorer, ask(stage, context), steps, stage.staleness, colocated=colocated
    ) as stream:
        if recorder.saved is not None:
            _check_ledger(stream, progress.position["groups_under_way"])
        work = GrpoWork(
            stage=stage,
            context=context,
            trainer=trainer,
            sampler=sampler,
            stream=stream,
            recorder=recorder,
            doctor=doctor,
        )
        StepLoop(stage=stage, context=context, trainer=trainer, recorder=recorder, published=version).run(work)

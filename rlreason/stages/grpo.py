"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) with verified rewards.

The life of a completion::

    problem -> Request -> rollout worker -> Completion -> Group -> reward -> score  ->  TrainingSample
               (ask)      (sampler room)    (RolloutStream)  (scorer)  (credit.py)    |
                                                                                      v
    weights, version + 1 <- optimizer step <- gradients <- loss <- forward pass <- micro-batch <- advantages
    (stream.publish)        (trainer.step)       (trainer.forward_backward: trainer room, objective room)

With ``staleness`` above 0 the first line runs ahead (``sampler/stream.py``); nothing else here changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean

import numpy as np
import torch
from pydantic import JsonValue

from rlreason.config import ACCURACY, GrpoStage, RewardTerm
from rlreason.data.curriculum import Curriculum, solved
from rlreason.diagnose.mismatch import MismatchDoctor
from rlreason.errors import UsageError
from rlreason.objective.kl import kl_estimate
from rlreason.policy.batch import rollout_sample
from rlreason.run.buffered import BufferedRows
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.stream import SCHEDULE, Ask, RolloutStream, scheduled
from rlreason.stages.broken import stop_broken
from rlreason.stages.context import Context, Progress, Recorder
from rlreason.stages.contract import LogprobContract
from rlreason.stages.credit import (
    StepCredit,
    completions_of,
    computed_groups,
    credit_of,
    full_batch,
    is_mixed,
    samples_of,
    weights_of,
)
from rlreason.stages.entropy import EntropyControl
from rlreason.stages.loop import Commit, Heldout, StepLoop
from rlreason.stages.replay import loss_of, record_experts, with_old
from rlreason.stages.rollout_log import log_groups
from rlreason.stages.rollouts import (
    all_broken,
    broken_detail,
    nonfinite_logprobs,
    sampling_params,
    staleness,
    summarize,
    with_workers,
)
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.protocol import LossSums, StepStats, Trainer
from rlreason.types import Group, Problem, SamplingParams, TrainingSample


@dataclass(slots=True)
class ProblemCursor:
    """Which training problems come next where that is not a function of the step, so that a state holds it."""

    #: Of ``resample``: how many training problems the stage's trained steps have asked for.
    used: int = 0
    curriculum: Curriculum | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoWork:
    """One GRPO step (``stages.loop.Work``)."""

    stage: GrpoStage
    context: Context
    trainer: Trainer
    sampler: PoolSampler
    stream: RolloutStream
    recorder: Recorder
    #: What each worker did, of an asynchronous stage.
    schedule: BufferedRows
    #: Kept only where the stage asks for diagnoses.
    doctor: MismatchDoctor | None = None
    contract: LogprobContract = field(default_factory=LogprobContract)
    entropy: EntropyControl
    #: Read by ``ask``, and moved on when a step is trained.
    cursor: ProblemCursor = field(default_factory=ProblemCursor)

    def train(self, step: int, commit: Commit) -> dict[str, float]:
        """Take the step's scored groups and learn from them."""
        began = time.perf_counter()
        drawn, rounds = self._take(step)
        if self.stage.reference_every and step and step % self.stage.reference_every == 0:
            self.trainer.renew_reference()
        self.recorder.health.broke(broken_detail(drawn))
        if all_broken(drawn):
            commit()
            stop_broken(self.stage, step, drawn, self.recorder, self.trainer, self.position())
        groups = full_batch(drawn, self.stage.problems_per_step) if rounds else drawn
        self.contract.hold(step, groups, self.stage, self.trainer)
        if self.doctor is not None:
            self.doctor.look(step, groups)
        taken = time.perf_counter()
        credit = earn(groups, self.stage, self.trainer, self.context.recipe.reward_of(self.stage))
        scalars = summarize(drawn, computed_groups(groups, credit, self.stage))
        scalars |= staleness(drawn, step) | nonfinite_logprobs(drawn)
        noted = partial(record_experts, self.context.run, self.stage.name, step)
        scalars |= learn(step, groups, credit, self.entropy.of_step(self.stage), self.trainer, commit, noted)
        scalars |= self.entropy.seen(scalars, self.stage.objective)
        self.cursor.used += len(drawn)
        if self.cursor.curriculum is not None:
            self.cursor.curriculum.learned(step, solved(drawn))
            scalars["curriculum/passed_over"] = float(self.cursor.curriculum.passed_over)
        done = time.perf_counter()
        scalars |= {
            "seconds/sample": self.stream.seconds[0],
            "seconds/score": self.stream.seconds[1],
            "seconds/train": done - taken,
            "tokens_per_second": scalars["tokens"] / (done - began),
        }
        if self.stage.resample:
            scalars |= {"groups/drawn": float(len(drawn)), "resample/rounds": float(rounds)}
        self.recorder.meter.drawn(drawn)
        self.recorder.entry.trained_tokens += int(scalars.get("trained_tokens", 0.0))
        keep, decode = self.stage.logged_groups, self.trainer.tokenizer.decode
        log_groups(self.context, self.stage.name, step, groups, keep=keep, credit=credit, decode=decode)
        # Now, as a state may be saved before the step is over, and another process would go on with it.
        return with_workers(scalars, self.sampler.stats.read())

    def _take(self, step: int) -> tuple[list[Group], int]:
        """The step's groups; with ``resample`` also those of more rounds, until enough are mixed: DAPO's dynamic
        sampling (arXiv 2503.14476, eq. 11). And how many rounds that took."""
        rounds = 0

        def more(drawn: Sequence[Group]) -> tuple[list[Problem], SamplingParams] | None:
            nonlocal rounds
            size = self.stage.problems_per_step
            if rounds == self.stage.resample or sum(map(is_mixed, drawn)) >= size:
                return None
            rounds += 1
            params = sampling_params(self.stage, self.context, f"{self.stage.name}/{step}/more{rounds}")
            if self.cursor.curriculum is not None:
                return self.cursor.curriculum.more(step, size), params
            first = self.stage.first_problem + self.cursor.used + rounds * size
            return self.context.data.of(self.stage.name).train(first, size), params

        return self.stream.take(step, more), rounds

    def publish(self, version: int) -> None:
        """See ``Work.publish``."""
        expected = self.trainer.expectations(self.sampler.probes)
        if self.context.samplers.colocated:
            self.trainer.rest()
        self.stream.publish(self.trainer.weights(), version, expected)

    def heldout(self) -> Heldout:
        """See ``Work.heldout``."""
        stage = self.stage
        asked = self.context.heldout_asked(stage.name, stage.eval_problems, stage.longest_evaluated)
        drawn = self.stream.begin(*asked)
        return lambda: self.recorder.heldout(drawn())

    def closing(self, scalars: dict[str, float]) -> dict[str, float]:
        """See ``Work.closing``: what happened to the workers since the step was trained, and before."""
        return with_workers(scalars, self.sampler.stats.read())

    def position(self) -> dict[str, JsonValue]:
        """See ``Work.position``: whether every worker holds the newest weights already, as after an evaluation; and the
        ledger of groups, for runs that draw ahead.

        A group is trained once or under way: none is dropped for its staleness, which is bounded by when it begins.
        """
        self.schedule.flush()  # the state says how long the file is
        return {
            "delivered": self.sampler.pool.settled,
            "groups_trained": self.recorder.progress.trained * self.stage.problems_per_step,
            "problems_used": self.cursor.used,
            "entropy": self.entropy.state(),
            "curriculum": None if self.cursor.curriculum is None else self.cursor.curriculum.state(),
            "groups_under_way": {name: list(ids) for name, ids in self.stream.under_way.items()},
        }


def earn(
    groups: Sequence[Group], stage: GrpoStage, trainer: Trainer, reward: Mapping[str, RewardTerm] = ACCURACY
) -> StepCredit:
    """The scores that the step's advantages are made of: of all scored groups, whatever is computed of them afterwards.

    ``reward``: the recipe's table, whose weights are asked for where rewards are kept apart.
    """
    objective = stage.objective
    if not groups or objective.kl_in != "reward" or objective.kl_coef <= 0:
        weights = weights_of(reward) if objective.rewards == "apart" else None
        return credit_of(groups, stage, weights=weights)
    return credit_of(groups, stage, _kl_penalties(groups, stage, trainer))


def learn(
    step: int,
    groups: Sequence[Group],
    credit: StepCredit,
    stage: GrpoStage,
    trainer: Trainer,
    commit: Commit,
    noted: Callable[[LossSums], Mapping[str, float]] = lambda _: {},
) -> dict[str, float]:
    """Samples, and ``updates_per_step`` optimizer steps; an update without a sample makes none.

    Metrics of tokens are means over those that were computed; ``loss`` is the mean of the updates' losses; ``noted``
    gives more of them.
    """
    batches = [_with_reference(samples, stage, trainer) for samples in samples_of(groups, credit, stage)]
    if not batches:
        commit()
        return {}
    loss, total, tokens = loss_of(stage, credit.scores), LossSums(), 0
    steps: list[StepStats] = []
    for samples in with_old(batches, stage, trainer):
        total.merge(trainer.forward_backward(samples, loss))
        tokens += sum(int(sample.loss_mask.sum()) for sample in samples)
        if not steps:
            commit()
        steps.append(trainer.step(step))
    scalars = {**total.read(tokens), **_merged(steps), **noted(total), "trained_tokens": float(tokens)}
    scalars["loss"] /= len(steps)
    return scalars | ({"kl/penalty": fmean(credit.penalties)} if credit.penalties else {})


def _merged(steps: Sequence[StepStats]) -> dict[str, float]:
    """Metrics of a step's updates: means and the largest gradient norm of those that were made (of all where none was),
    and how many were skipped."""
    made = [one for one in steps if not one.skipped] or steps
    return {
        "grad_norm": fmean(one.grad_norm for one in made),
        "grad_norm/max": max(one.grad_norm for one in made),
        "lr": steps[-1].learning_rate,
        "update/moved": fmean(one.moved for one in steps),
        "update/skipped": float(sum(one.skipped for one in steps)),
    }


def _with_reference(samples: list[TrainingSample], stage: GrpoStage, trainer: Trainer) -> list[TrainingSample]:
    """The samples with log π_ref, where a KL term in the loss reads it."""
    if stage.objective.kl_in != "loss" or stage.objective.kl_coef <= 0:
        return samples
    reference = trainer.logprobs(samples, stage.temperature, of="reference")
    return [replace(one, reference_logprobs=found) for one, found in zip(samples, reference, strict=True)]


def _kl_penalties(groups: Sequence[Group], stage: GrpoStage, trainer: Trainer) -> list[float]:
    """kl_coef · Σ_t KL estimate of each completion, between the policy that starts the step and the reference."""
    samples = [rollout_sample(one) for one in completions_of(groups)]
    pairs = zip(
        samples,
        trainer.logprobs(samples, stage.temperature, replay=stage.routing_replay == "rollout"),
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


def ask(stage: GrpoStage, context: Context, cursor: ProblemCursor) -> Ask:
    """The problems of each step and how they are drawn: pure functions of (seed, step), or with ``resample`` of the
    seed and of how many problems the steps before have used; with a curriculum also of how those went."""
    source = context.data.of(stage.name)

    def at(step: int) -> tuple[list[Problem], SamplingParams]:
        used = cursor.used if stage.resample else step * stage.problems_per_step
        params = sampling_params(stage, context, f"{stage.name}/{step}")
        if cursor.curriculum is not None:
            return cursor.curriculum.ask(step, stage.problems_per_step), params
        return source.train(stage.first_problem + used, stage.problems_per_step), params

    return at


def _go_on(sampler: PoolSampler, stage: GrpoStage, progress: Progress, schedule: BufferedRows) -> None:
    """Bring new workers to where those of the earlier process were."""
    if stage.staleness:
        for worker in range(sampler.pool.workers):  # who follows the schedule has to start them anew, too
            schedule.add({"worker": worker, "restart": "the run was resumed"})
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


def _cursor(stage: GrpoStage, context: Context, position: Mapping[str, JsonValue] | None) -> ProblemCursor:
    """Where the stage begins in its problems, or goes on."""
    cursor, config = ProblemCursor(), stage.curriculum
    if config is not None:
        cursor.curriculum = Curriculum(
            source=context.data.of(stage.name),
            cursor=stage.first_problem,
            skip_solved_after=config.skip_solved_after,
            retry_after=config.retry_after,
        )
    if position is None:
        return cursor
    if stage.resample:
        cursor.used = int(str(position["problems_used"]))
    if cursor.curriculum is not None:
        known = position["curriculum"]
        assert isinstance(known, dict)
        cursor.curriculum.load(known)
    return cursor


def run_grpo(stage: GrpoStage, context: Context, trainer: Trainer, recorder: Recorder) -> None:
    """All steps of a GRPO stage that are still to be done."""
    progress, version = recorder.progress, recorder.progress.trained
    doctor = None
    if stage.diagnose_every:
        assert isinstance(trainer, LocalTrainer), "the recipe is refused with trainer.ranks"
        doctor = MismatchDoctor(stage, context.run, trainer)
    schedule = BufferedRows(context.run, stage.name, SCHEDULE, on=context.recipe.logging.schedule)
    growth = context.trainers.growth(trainer, stage)
    sampler = context.sampler(trainer, version, growth=growth, ahead=stage.staleness > 0)
    sampler = scheduled(sampler, stage, schedule.add, context.replay)
    if recorder.saved is not None:
        _go_on(sampler, stage, progress, schedule)
    steps = range(version, stage.steps)
    cursor = _cursor(stage, context, None if recorder.saved is None else progress.position)
    colocated = context.samplers.colocated
    with RolloutStream(
        sampler,
        context.scorer_of(stage.name),
        ask(stage, context, cursor),
        steps,
        stage.staleness,
        colocated=colocated,
        verifier=context.verifier,
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
            schedule=schedule,
            doctor=doctor,
            cursor=cursor,
            entropy=EntropyControl.begun(stage.objective, None if recorder.saved is None else progress.position),
        )
        loop = StepLoop(
            stage=stage,
            context=context,
            trainer=trainer,
            recorder=recorder,
            published=version,
            ahead=stage.staleness > 0,
        )
        loop.run(work)
        schedule.flush()

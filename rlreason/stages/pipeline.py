"""Runs the stages of a recipe in order, each from the checkpoints of earlier ones.

    policy --sft--> cold start --grpo--> teacher --reject--> traces --distill--> student;   eval measures any of them

A stage that is done is never run again: its checkpoint is the only thing later stages read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from rlreason.config import DistillStage, EvalStage, GrpoStage, PolicyConfig, RejectStage, SftStage, Stage
from rlreason.policy.model import check_shape, count_parameters
from rlreason.policy.policies import Policy, fresh_policy, load_policy
from rlreason.run import atomic
from rlreason.run.directory import now
from rlreason.run.manifest import StageEntry
from rlreason.stages.context import Context, Recorder
from rlreason.stages.distill import run_distill
from rlreason.stages.evaluate import run_evaluation
from rlreason.stages.grpo import run_grpo
from rlreason.stages.reject import run_reject
from rlreason.stages.sft import run_sft

#: Added to the seed for the student, so that its weights are not those of a policy of the same shape.
STUDENT_SEED = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a stage produced: its counts, the policy it trained (if any), a few words for the display."""

    recorder: Recorder
    policy: Policy | None
    message: str


class Pipeline:
    """The stages of one run."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._recipe = context.recipe

    def run(self) -> None:
        """Run every stage that is not done; the first failure is recorded in the manifest and raised."""
        for stage in self._recipe.stage:
            if self._context.run.manifest.stage(stage.name).status != "done":
                self._run_stage(stage)

    def _run_stage(self, stage: Stage) -> None:
        run = self._context.run
        entry = run.begin(stage.name, self._parents(stage))
        self._context.display.begin(stage.name, stage.kind, _total(stage))
        started = time.perf_counter()
        try:
            outcome = self._dispatch(stage)
            if outcome.policy is not None:
                self._save(stage.name, outcome.policy, entry)
        except BaseException as error:
            entry.status, entry.error = "failed", f"{type(error).__name__}: {error}"[:500]
            run.save()
            raise
        entry.sampled_tokens = outcome.recorder.sampled_tokens
        entry.trained_tokens = outcome.recorder.trained_tokens
        entry.sampler = self._context.samplers.describe() or None
        entry.seconds = round(time.perf_counter() - started, 3)
        entry.status, entry.finished = "done", now()
        run.save()
        self._context.display.end(outcome.message)

    def _dispatch(self, stage: Stage) -> Outcome:
        context = self._context
        if isinstance(stage, EvalStage):
            return self._evaluate(stage)
        policy = self._policy(stage, self._model_of(stage))
        if isinstance(stage, SftStage):
            recorder = run_sft(stage, context, policy)
        elif isinstance(stage, GrpoStage):
            recorder = run_grpo(stage, context, policy)
        elif isinstance(stage, DistillStage):
            traces = self._traces_of(stage)
            teacher = self._policy(traces, self._model_of(traces)) if stage.teacher_kl > 0 else None
            recorder = run_distill(stage, context, policy, context.run.stage_folder(traces.name), teacher)
        else:
            recorder = run_reject(stage, context, policy)
            return Outcome(recorder=recorder, policy=None, message=f"{recorder.sampled_tokens:,} tokens sampled")
        return Outcome(recorder=recorder, policy=policy, message=f"{recorder.trained_tokens:,} tokens trained")

    def _evaluate(self, stage: EvalStage) -> Outcome:
        recorder = Recorder(self._context, stage.name, stage.kind)
        parts = []
        for name in stage.models:
            report = run_evaluation(stage, self._context, name, self._policy(stage, name), recorder)
            accuracy = report.accuracy
            parts.append(f"{name} {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]")
        return Outcome(recorder=recorder, policy=None, message=" · ".join(parts))

    def _policy(self, stage: Stage, reference: str) -> Policy:
        """The policy called ``reference``: policy, student, or the checkpoint of an earlier stage."""
        if reference == "policy":
            return self._initial(self._recipe.policy, self._recipe.seed)
        if reference == "student":
            assert self._recipe.student is not None, stage
            return self._initial(self._recipe.student, self._recipe.seed + STUDENT_SEED)
        config = self._recipe.student if self._is_student(reference) else self._recipe.policy
        assert config is not None, stage
        return load_policy(self._context.run.checkpoint(reference), config.dtype, self._context.device)

    def _initial(self, config: PolicyConfig, seed: int) -> Policy:
        if config.path is not None:
            policy = load_policy(config.path, config.dtype, self._context.device)
            check_shape(policy.model, config.model, config.path)
            return policy
        source = self._context.source
        return fresh_policy(config, source.alphabet, source.texts(), seed, self._context.device)

    def _is_student(self, name: str) -> bool:
        """Whether the model of training stage ``name`` descends from the student."""
        while name not in {"policy", "student"}:
            name = self._model_of(next(stage for stage in self._recipe.stage if stage.name == name))
        return name == "student"

    def _model_of(self, stage: Stage) -> str:
        """The model a stage starts from: as named, else the newest descendant of the policy."""
        assert not isinstance(stage, EvalStage)
        if stage.model is not None:
            return stage.model
        found = "policy"
        for earlier in self._recipe.stage:
            if earlier.name == stage.name:
                break
            if not isinstance(earlier, (EvalStage, RejectStage)) and not self._is_student(earlier.name):
                found = earlier.name
        return found

    def _traces_of(self, stage: DistillStage) -> RejectStage:
        rejects = []
        for earlier in self._recipe.stage:
            if earlier.name == stage.name:
                break
            if isinstance(earlier, RejectStage) and stage.traces in {None, earlier.name}:
                rejects.append(earlier)
        return rejects[-1]

    def _parents(self, stage: Stage) -> list[str]:
        if isinstance(stage, EvalStage):
            return list(stage.models)
        parents = [self._model_of(stage)]
        return [*parents, self._traces_of(stage).name] if isinstance(stage, DistillStage) else parents

    def _save(self, name: str, policy: Policy, entry: StageEntry) -> None:
        run = self._context.run
        folder = run.stage_folder(name) / "checkpoint"
        entry.sha256 = atomic.write_folder(folder, policy.save)
        entry.checkpoint = folder.relative_to(run.root).as_posix()
        entry.parameters, entry.active_parameters = count_parameters(policy.model)


def _total(stage: Stage) -> int:
    """Progress steps of a stage."""
    if isinstance(stage, EvalStage):
        return len(stage.models)
    return stage.problems if isinstance(stage, RejectStage) else stage.steps


def device_names() -> list[str]:
    """Names of the accelerators that torch sees."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

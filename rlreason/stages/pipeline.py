"""Runs the stages of a recipe in order, each from the checkpoints of earlier ones.

    policy --sft--> cold start --grpo--> teacher --reject--> traces --distill--> student;   eval measures any of them

A stage that is done is never run again: its checkpoint is the only thing later stages read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import torch

from rlreason.config import (
    DistillStage,
    EvalStage,
    GrpoStage,
    OpdStage,
    PolicyConfig,
    RejectStage,
    SftStage,
    Stage,
    TeacherConfig,
)
from rlreason.policy.model import count_parameters, resolve_dtype
from rlreason.policy.policies import PolicySource, fresh_tokenizer
from rlreason.run import atomic
from rlreason.run.interrupt import Interrupted, deferred, unwrapped
from rlreason.run.manifest import StageEntry
from rlreason.run.states import SavedState
from rlreason.secrets import mask
from rlreason.stages.context import Context, Recorder
from rlreason.stages.distill import distill_rows, trace_samples
from rlreason.stages.evaluate import MeasuredModel, read_accuracy, run_evaluation
from rlreason.stages.grpo import run_grpo
from rlreason.stages.ledger import Measured, Meter, shape_or_none
from rlreason.stages.lineage import made_sha256, sources_of
from rlreason.stages.loop import TrainedStage
from rlreason.stages.opd import run_opd
from rlreason.stages.opd_teachers import open_teachers
from rlreason.stages.references import References
from rlreason.stages.reject import CHUNK, run_reject
from rlreason.stages.sft import LearntRows, run_supervised, sft_rows
from rlreason.trainer.options import ModelSource
from rlreason.trainer.protocol import Trainer, give_back
from rlreason.trainer.states import read_note

#: Added to the seed for the student, so that its weights are not those of a policy of the same shape.
STUDENT_SEED = 1_000_003


class Pipeline:
    """The stages of one run."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._recipe = context.recipe
        self._references = References(context.recipe)

    def run(self) -> None:
        """Run every stage that is not done, from its newest state; the first failure is noted in the manifest and
        raised."""
        for stage in self._recipe.stage:
            if self._context.run.manifest.stage(stage.name).status != "done":
                self._run_stage(stage)

    def _run_stage(self, stage: Stage) -> None:
        run = self._context.run
        entry, saved = run.begin(stage.name, self._references.parents(stage))
        recorder = Recorder(self._context, entry, saved)
        self._context.display.begin(stage.name, stage.kind, _total(stage))
        if recorder.progress.done:
            self._context.display.advance(_done(stage, recorder.progress.done), {})
        try:
            with unwrapped():
                entry.made_from = sources_of(stage, self._context)
                message = self._dispatch(stage, recorder)
        except Interrupted:
            raise  # the caller says in the manifest that the stage was interrupted
        except BaseException as error:
            entry.status, entry.error = "failed", mask(f"{type(error).__name__}: {error}")[:500]
            with suppress(OSError):  # a full disk: what failed is more to the point
                run.save()
            raise
        recorder.count_seconds()
        entry.work.gpus = self._context.trainers.places.gpus
        entry.sha256 = made_sha256(stage, self._context)
        entry.sampler = self._context.samplers.describe() or None
        run.finish(stage.name)
        self._context.trackers.stage_done(run, stage.name)
        self._context.display.end(message)

    def _dispatch(self, stage: Stage, recorder: Recorder) -> str:
        """Run a stage and say in a few words what came out."""
        if isinstance(stage, EvalStage):
            return self._evaluate(stage, recorder)
        if isinstance(stage, RejectStage):
            name = self._references.model_of(stage)
            recorder.meter.model = self._measured(name)
            with self.open_model(stage, name) as model:
                run_reject(stage, self._context, model.sampler, recorder)
            recorder.health.end(0)
            return f"{recorder.entry.sampled_tokens:,} tokens sampled"
        learnt = None
        if isinstance(stage, (SftStage, DistillStage)):
            learnt = self._learnt(stage)
            stage = learnt.stage
            self._context.display.lasts(stage.steps)
        with closing(self._trainer(stage, recorder)) as trainer:
            self._meter(stage, recorder.meter, trainer)
            return self._train(stage, recorder, trainer, learnt)

    def _learnt(self, stage: SftStage | DistillStage) -> LearntRows:
        """What the stage learns, before the model that learns it is there."""
        model = self._source(self._references.model_of(stage)).inspect()
        if isinstance(stage, SftStage):
            return sft_rows(stage, self._context, model)
        return distill_rows(stage, self._context, model, self._traces(stage))

    def _train(self, stage: TrainedStage, recorder: Recorder, trainer: Trainer, learnt: LearntRows | None) -> str:
        """``learnt``: of a supervised stage."""
        parameters, active = trainer.parameters
        recorder.health.history.moe = parameters != active
        if isinstance(stage, SftStage):
            recorder.health.history.router_steps = stage.router_warmup_steps
        if learnt is not None:
            run_supervised(learnt, self._context, trainer, recorder)
        elif isinstance(stage, GrpoStage):
            run_grpo(stage, self._context, trainer, recorder)
        else:
            assert isinstance(stage, OpdStage)
            self._opd(stage, recorder, trainer)
        recorder.health.end(recorder.entry.trained_tokens)
        with deferred():
            self._save(stage.name, trainer, recorder.entry)
        return f"{recorder.entry.trained_tokens:,} tokens trained"

    def _traces(self, stage: DistillStage) -> Path:
        """The folder of what ``stage`` learns."""
        if stage.trace_set is not None:
            return Path(stage.trace_set)
        return self._context.run.stage_folder(self._references.traces_of(stage).name)

    def _trainer(self, stage: TrainedStage, recorder: Recorder) -> Trainer:
        """The stage's trainer, with the weights that the stage begins with or those of its newest state."""
        name, teachers = self._references.model_of(stage), []
        if isinstance(stage, DistillStage) and stage.teacher_kl > 0:
            source = self._references.model_of(self._references.traces_of(stage))
            teachers = [ModelSource(source=self._source(source), dtype=self._compute_dtype(source))]
        if isinstance(stage, OpdStage):
            tables = [self._recipe.teacher[one] for one in stage.teachers(self._recipe.teacher)]
            teachers = [self._taught_by(one) for one in tables if one.where == "trainer"]
        self._context.samplers.rest()  # where the trainer's GPU is theirs too
        give_back()
        trainer = self._context.trainers.open(
            stage,
            ModelSource(source=self._source(name), dtype=self._compute_dtype(name)),
            self._references.config(name),
            reference=isinstance(stage, GrpoStage) and stage.objective.kl_coef > 0,
            teachers=teachers,
        )
        if trainer.rounded:
            self._context.display.note(
                f"{stage.name}: {trainer.rounded:.1%} of the weights lay exactly between two bfloat16 numbers, as in "
                "float16 or dequantised checkpoints; all were rounded to bfloat16 once (docs/models.md)"
            )
        if recorder.saved is not None:
            try:
                trainer.load_state(recorder.saved.folder)
            except BaseException:
                trainer.close()
                raise
            self._say_other_ranks(stage.name, recorder.saved)
        return trainer

    def _measured(self, name: str) -> Measured:
        """The model called ``name``, for the ledger."""
        shape = None if name in self._recipe.endpoint else shape_or_none(self._source(name))
        return Measured(name=name, shape=shape)

    def _meter(self, stage: TrainedStage, meter: Meter, trainer: Trainer) -> None:
        """Have the ledger count what the stage's models compute."""
        meter.trainer, meter.model = trainer, self._measured(self._references.model_of(stage))
        meter.recompute = self._recipe.trainer.activation_checkpointing
        meter.lora = self._recipe.trainer.lora is not None and stage.lora
        if isinstance(stage, DistillStage) and stage.teacher_kl > 0:
            meter.teachers[""] = self._measured(self._references.model_of(self._references.traces_of(stage)))
        for name in stage.teachers(self._recipe.teacher) if isinstance(stage, OpdStage) else ():
            source = self._taught_by(self._recipe.teacher[name]).source
            meter.teachers[name] = Measured(name=f"teacher {name}", shape=shape_or_none(source))

    def _taught_by(self, table: TeacherConfig) -> ModelSource:
        """A teacher of an opd stage."""
        if table.model is not None:
            return ModelSource(source=self._source(table.model), dtype=self._compute_dtype(table.model))
        return ModelSource(source=PolicySource(path=table.path), dtype=resolve_dtype("auto", self._context.device))

    def _opd(self, stage: OpdStage, recorder: Recorder, trainer: Trainer) -> None:
        tables = {name: self._recipe.teacher[name] for name in stage.teachers(self._recipe.teacher)}
        sources = {name: self._taught_by(table) for name, table in tables.items()}
        with ExitStack() as stack:
            found = open_teachers(stage, self._context, trainer, tables, sources)
            for one in found:
                if one.elsewhere is not None:
                    stack.callback(one.elsewhere.close)
            traces = []
            if stage.on_policy < 1:
                folder = self._context.run.stage_folder(self._references.traces_of(stage).name)
                traces = trace_samples(stage, self._context, trainer, folder)
            run_opd(stage, self._context, trainer, recorder, found, traces)

    def _say_other_ranks(self, stage: str, saved: SavedState) -> None:
        """Note on the screen and in the manifest where a stage goes on with another number of ranks."""
        before, now = read_note(saved.folder).ranks, self._recipe.trainer.ranks
        if before == now:
            return
        said = [f"{count} ranks" if count else "one process (trainer.ranks = 0)" for count in (before, now)]
        what = (
            f"{stage}: its state of step {saved.step} was written by {said[0]} and goes on with {said[1]}: sums are "
            "rounded in another order, so what follows is not bit for bit what it would have been"
        )
        self._context.display.note(what)
        self._context.run.note_change(what)

    def _evaluate(self, stage: EvalStage, recorder: Recorder) -> str:
        parts = []
        for index, name in enumerate(stage.models):
            if index >= recorder.progress.done:
                recorder.meter.model = self._measured(name)
                with self.open_model(stage, name) as model:
                    run_evaluation(stage, self._context, model, recorder)
            parts.append(f"{name} {read_accuracy(self._context, stage, name)}")
        return " · ".join(parts)

    @contextmanager
    def open_model(self, stage: EvalStage | RejectStage, name: str) -> Iterator[MeasuredModel]:
        """A model that is only drawn from: the weights of a policy in a sampler, or a server that has its own."""
        if name in self._recipe.endpoint:
            sampler = self._context.samplers.endpoint(name)
            try:
                yield MeasuredModel(name=name, sampler=sampler)
            finally:
                sampler.close()
            return
        plan = self._context.trainers.places.plan
        # With ranks every GPU is theirs or an engine's: here the weights are only on their way to an engine.
        passing = plan.ranks is not None and plan.workers is not None
        device = torch.device("cpu") if passing else self._context.device
        policy = self._source(name).load(self._compute_dtype(name), device)
        sampler, parameters = self._context.sampler(policy), count_parameters(policy.model)
        del policy  # the engine has its weights, and may be on the same GPU
        yield MeasuredModel(name=name, sampler=sampler, parameters=parameters)

    def _source(self, reference: str) -> PolicySource:
        """The policy called ``reference``: policy, student, or the checkpoint of an earlier stage."""
        if reference == "policy":
            return self._initial(self._recipe.policy, self._recipe.seed)
        if reference == "student":
            assert self._recipe.student is not None
            return self._initial(self._recipe.student, self._recipe.seed + STUDENT_SEED)
        return PolicySource(path=str(self._context.run.checkpoint(reference)))

    def _initial(self, config: PolicyConfig, seed: int) -> PolicySource:
        if config.path is not None:
            return PolicySource(path=config.path, config=config)
        data = self._context.data
        return PolicySource(config=config, tokenizer=fresh_tokenizer(config, data.alphabet, data.texts()), seed=seed)

    def _compute_dtype(self, reference: str) -> torch.dtype:
        """What the model called ``reference`` computes in."""
        return resolve_dtype(self._references.config(reference).dtype, self._context.trainers.computes_on)

    def _save(self, name: str, trainer: Trainer, entry: StageEntry) -> None:
        run = self._context.run
        folder = run.stage_folder(name) / "checkpoint"
        entry.sha256 = atomic.write_folder(folder, trainer.save)
        entry.checkpoint = folder.relative_to(run.root).as_posix()
        entry.parameters, entry.active_parameters = trainer.parameters


def _total(stage: Stage) -> int | None:
    """Progress steps of a stage; None: its rows are to be counted."""
    if isinstance(stage, EvalStage):
        return len(stage.models)
    return stage.problems if isinstance(stage, RejectStage) else stage.steps or None


def _done(stage: Stage, done: int) -> int:
    """Progress steps that ``done`` of the stage's own steps are."""
    return min(done * CHUNK, stage.problems) if isinstance(stage, RejectStage) else done


def device_names() -> list[str]:
    """Names of the accelerators that torch sees."""
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]

"""Measure models on held-out problems: eval/<stage>-<model>.json each, with every completion beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

from rlreason.config import EvalStage
from rlreason.run import atomic
from rlreason.run.interrupt import deferred
from rlreason.stages.context import Context, Recorder
from rlreason.stages.drawing import DrawnJournal, Watch, as_line, scored_groups
from rlreason.stages.rollout_log import log_groups
from rlreason.stages.rollouts import all_broken, broken_detail
from rlreason.types import EvalReport, Group, Interval, Sampler, SamplingParams, StepReport

SUITE = "heldout"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredModel:
    """A model to measure. ``parameters``: all, and those active for one token; 0 where a server doesn't say."""

    name: str
    sampler: Sampler
    parameters: tuple[int, int] = (0, 0)


def measure(
    stage: EvalStage,
    context: Context,
    model: MeasuredModel,
    journal: DrawnJournal,
    watch: Watch = lambda done, total: None,
    seed: int | None = None,
) -> tuple[EvalReport, list[Group]]:
    """One model on the held-out problems, drawn and scored by problem: what an eval stage and `rlreason eval` both do,
    so that they agree. ``seed``: of the draws; None: the recipe's."""
    params = SamplingParams(
        samples_per_problem=stage.samples_per_problem,
        temperature=stage.temperature,
        top_p=stage.top_p,
        top_k=stage.top_k,
        max_tokens=stage.max_tokens,
        seed=context.recipe.seed if seed is None else seed,
        stream=stream_of(stage, model.name),
    )
    groups = scored_groups(
        context.verifier, model.sampler, context.data.of(stage.name).heldout(stage.problems), params, journal, watch
    )
    return replace(context.evaluate(groups, model.name, SUITE), parameters=model.parameters[0]), groups


def stream_of(stage: EvalStage, model: str) -> str:
    """What the draws of one model are called: its groups' ids begin with it."""
    return f"{stage.name}/{model}"


def report_row(stage: EvalStage, report: EvalReport, model: MeasuredModel) -> dict[str, object]:
    """A report as its JSON file has it."""
    return {
        "stage": stage.name,
        **asdict(report),
        "samples": stage.samples_per_problem,
        "temperature": stage.temperature,
        "active_parameters": model.parameters[1],
    }


def run_evaluation(stage: EvalStage, context: Context, model: MeasuredModel, recorder: Recorder) -> EvalReport:
    """One model of an eval stage: measured, written, one metrics line, a state."""
    journal = DrawnJournal(path=context.run.stage_folder(stage.name) / "drawn.journal")
    report, groups = measure(stage, context, model, journal)
    row = report_row(stage, report, model)
    accuracy = {"accuracy/heldout": report.accuracy.value} if report.accuracy.count else {}
    scalars = accuracy | {"heldout/broken": report.broken, "heldout/timed_out": report.timed_out}
    index = stage.models.index(model.name)
    line = StepReport(stage=stage.name, kind=stage.kind, step=index, policy_version=0, scalars=scalars)
    recorder.health.broke(broken_detail(groups))
    with deferred():
        if all_broken(groups):  # the stage stops; once its verifier is mended, everything is verified anew
            journal.clear()
            log_groups(context, stage.name, 0, groups, keep=40)
            recorder.step(line)
        target = context.run.root / "eval" / f"{stage.name}-{model.name}.json"
        lines = b"".join(as_line(group) for group in groups)
        atomic.write_text(target.with_suffix(".completions.jsonl"), lines.decode())
        atomic.write_text(target, json.dumps(row, indent=2) + "\n")
        log_groups(context, stage.name, 0, groups, keep=40)
        progress = recorder.progress
        recorder.meter.drawn(groups)
        recorder.step(line)
        progress.done = index + 1
        recorder.save()
        journal.clear()
    return report


def accuracy_text(accuracy: Interval, broken: float, timed_out: float) -> str:
    """An accuracy and what it leaves out, in words. Example: ``"81.0% [77.3%, 84.2%]; 12.0% broken"``."""
    told = f"{accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]" if accuracy.count else "no verified answer"
    left_out = ((broken, "broken"), (timed_out, "timed out"))
    return "; ".join([told, *(f"{share:.1%} {why}" for share, why in left_out if share)])


def read_accuracy(context: Context, stage: EvalStage, model_name: str) -> str:
    """The accuracy of a model that was measured, now or before a break, in words."""
    path = context.run.root / "eval" / f"{stage.name}-{model_name}.json"
    row = json.loads(path.read_text(encoding="utf-8"))
    return accuracy_text(Interval(**row["accuracy"]), row["broken"], row["timed_out"])

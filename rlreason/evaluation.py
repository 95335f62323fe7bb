"""`rlreason eval`: a model or a run on held-out problems, by the code that a run's eval stages use.

Three ways in, one way through: a run's own held-out problems, other data with the run's prompts, or any model. Each
becomes a recipe with an eval stage (``eval_plan``), and ``stages.evaluate.measure`` does the rest.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rlreason.check import CheckedRecipe, check
from rlreason.data.prompts import PromptFormat
from rlreason.display import RichDisplay
from rlreason.errors import HealthStop, UsageError
from rlreason.eval_plan import EvalRequest, Measurement, measurements
from rlreason.inputs import unwatched
from rlreason.progress import counting
from rlreason.run import atomic
from rlreason.run.directory import RunDirectory, now
from rlreason.run.interrupt import Interrupted
from rlreason.run.manifest import fresh
from rlreason.types import EvalReport

if TYPE_CHECKING:
    from rlreason.stages.context import Context

__all__ = ["EvalRequest", "evaluate_model"]


#: Key of a recipe -> the option that says it here.
OPTIONS = {
    "data.columns.prompt": "--prompt-column",
    "data.columns.answer": "--answer-column",
    "data.answer_after": "--answer-after",
    "data.verifier": "--verifier",
    "data.heldout": "--data",
    "policy.path": "MODEL",
    "sampler.engine": "--engine",
}


def evaluate_model(request: EvalRequest, console: Console | None = None) -> list[EvalReport]:
    """Measure suite after suite; each is printed and, with ``out``, written as soon as it is done.

    In ``out``: ``<suite>.json`` with the report and the options, ``<suite>.completions.jsonl`` with every completion.
    What was drawn before a break is kept there too, and the same request goes on with it. Raises UsageError before any
    model is loaded for suites, data, options or an ``out`` that can't be.
    """
    console = console or Console(highlight=False)
    planned = measurements(request)
    checked = [_checked(one) for one in planned]
    _check_out(request.out)
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(f"evaluating needs {', '.join(missing)}: pip install 'rlreason[train]'")
    from rlreason.policy.model import quiet_loading
    from rlreason.policy.process import prepare_process

    quiet_loading()
    prepare_process()
    checked = [_with_models(one, recipe, console) for one, recipe in zip(planned, checked, strict=True)]
    reports = []
    for one, recipe in zip(planned, checked, strict=True):
        console.print(f"{one.suite}: {_what(one, recipe)}", markup=False, soft_wrap=True)
        try:
            report = _measure(one, recipe, request.out, console)
        except Interrupted as error:
            kept = "nothing of it is kept: --out FOLDER keeps what is drawn"
            if request.out is not None:
                kept = f"what was drawn is kept in {request.out}: the same command goes on with it"
            error.add_note(f"interrupted by {error.signal.name} in suite {one.suite}; {kept}")
            raise
        console.print(line(report), markup=False, soft_wrap=True)
        reports.append(report)
    return reports


def _with_models(one: Measurement, checked: CheckedRecipe, console: Console) -> CheckedRecipe:
    """``checked`` as a run has it: its day in the prompts, without the rows that its models have no room for."""
    from rlreason.job import with_models

    return with_models(checked, lambda text: console.print(text, markup=False, soft_wrap=True), one.run)


def _checked(one: Measurement) -> CheckedRecipe:
    """The recipe with its data read. Messages about data that the command names say the command's options."""
    try:
        return check(unwatched(one.recipe), one.base)
    except UsageError as error:
        text = str(error)
        for key, option in OPTIONS.items() if one.run is None else ():
            text = text.replace(key, option)
        raise UsageError(text) from error


def _measure(one: Measurement, checked: CheckedRecipe, out: Path | None, console: Console) -> EvalReport:
    from rlreason.job import context_of, open_samplers, open_scorer
    from rlreason.stages.drawing import DrawnJournal, as_line
    from rlreason.stages.evaluate import measure, report_row
    from rlreason.stages.pipeline import Pipeline
    from rlreason.stages.rollouts import all_broken, broken_detail

    run = one.run or RunDirectory(Path(), fresh("rlreason eval", 0, now(), []))
    (name,) = one.stage.models
    with open_scorer(checked) as scorer, open_samplers(checked) as samplers, _folder(out) as folder:
        context = context_of(checked, run, scorer, samplers, RichDisplay(console))
        journal = DrawnJournal(path=folder / f".{one.suite}-{_key(one, context)}.journal")
        pipeline = Pipeline(context)
        with pipeline.open_model(one.stage, name) as model, counting(console, one.suite, "problems") as watch:
            found, groups = measure(one.stage, context, model, journal, watch, one.seed)
        if all_broken(groups):
            journal.clear()
            raise HealthStop(f"suite {one.suite}: every verdict is BROKEN. The first: {broken_detail(groups)}")
        report = replace(found, suite=one.suite, model=one.model)
        if out is not None:
            row = {**report_row(one.stage, report, model), "options": _options(one, checked)}
            lines = b"".join(as_line(group) for group in groups)
            atomic.write_text(folder / f"{one.suite}.completions.jsonl", lines.decode())
            atomic.write_text(folder / f"{one.suite}.json", json.dumps(row, indent=2) + "\n")
        journal.clear()
    return report


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where files go; without ``out`` one that is gone afterwards."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="rlreason-eval-") as folder:
        yield Path(folder)


def _check_out(out: Path | None) -> None:
    """Results can be written there: found out now, not when they are there."""
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"--out {out}: no folder that can be written ({error.strerror})") from error


def _key(one: Measurement, context: Context) -> str:
    """The same for the same model, problems and options alone: what was drawn for others is no part of this."""
    problems = context.data.of(one.stage.name).heldout(one.stage.problems)
    parts = [_identity(one), one.stage.model_dump_json(), str(one.seed), repr(context.prompt_format)]
    parts += [one.recipe.sampler.model_dump_json(), json.dumps(one.recipe.reward, sort_keys=True), repr(problems)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _identity(one: Measurement) -> str:
    """The model: a checkpoint's checksum, else its folder's files by size and time, else its name."""
    (name,) = one.stage.models
    if one.run is not None and name not in {"policy", "student"}:
        return str(one.run.manifest.stage(name).sha256)
    path = Path(one.recipe.policy.path or "")
    files = sorted(path.glob("*")) if one.recipe.policy.path and path.is_dir() else [path] if path.is_file() else []
    return repr(
        [one.model, one.recipe.endpoint, [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]
    )


def _options(one: Measurement, checked: CheckedRecipe) -> Mapping[str, object]:
    """What an evaluation depends on, beside the model."""
    form = _format(one, checked)
    return {
        "data": _source(one, checked),
        "task_options": dict(checked.recipe.data.options),
        "system": form.system,
        "answer_style": form.style,
        "engine": checked.recipe.sampler.engine,
        "seed": one.seed,
        **one.stage.model_dump(include={"problems", "max_tokens", "top_p", "top_k"}),
    }


def _source(one: Measurement, checked: CheckedRecipe) -> str | None:
    """Where the problems come from: task name, path as found, or hub id."""
    return checked.data.of(one.stage.name).heldout_origin


def _what(one: Measurement, checked: CheckedRecipe) -> str:
    """In a few words: on what, and how."""
    stage, form = one.stage, _format(one, checked)
    given = ", ".join(f"{key} = {value}" for key, value in checked.recipe.data.options.items())
    data = f"{_source(one, checked)}{f' ({given})' if given else ''}"
    how = "greedy"
    if stage.temperature:
        cut = (
            f"{f', top-p {stage.top_p:g}' if stage.top_p < 1 else ''}{f', top-k {stage.top_k}' if stage.top_k else ''}"
        )
        how = f"{stage.samples_per_problem} samples at temperature {stage.temperature:g}{cut}"
    prompt = "no system prompt" if form.system is None else f"system prompt {form.system[:40]!r}"
    return f"{one.model} on {data}, {how}, at most {stage.max_tokens} tokens, answers in {form.style}, {prompt}"


def _format(one: Measurement, checked: CheckedRecipe) -> PromptFormat:
    """How the measured set's problems are asked: a named set may have a format of its own."""
    return checked.prompt_format.of(checked.data.of(one.stage.name).heldout(1)[0])


def line(report: EvalReport) -> str:
    """A report in one line."""
    accuracy = report.accuracy
    passes = "".join(f"  pass@{k} {value:.1%}" for k, value in report.pass_at_k.items() if k > 1)
    silent = {kind: report.verdicts[kind] for kind in ("timed_out", "broken") if kind in report.verdicts}
    without = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in silent.items())
    return (
        f"{report.suite}: {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] of {accuracy.count} problems"
        f"{passes}  {report.mean_tokens:.1f} tokens"
        + (f", {report.parameters:,} parameters" if report.parameters else "")
        + (f"; WITHOUT A VERDICT: {without} of {sum(report.verdicts.values())} answers" if without else "")
    )

"""Measure models on suites: everything is checked before the first model is loaded, and kept as it is drawn."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rlreason.check import CheckedRecipe, check
from rlreason.display import RichDisplay
from rlreason.errors import HealthStop, UsageError
from rlreason.evaluation import results
from rlreason.evaluation.asked import asked_as
from rlreason.evaluation.plan import measurements
from rlreason.evaluation.request import EvalRequest, Measurement
from rlreason.evaluation.words import line, what
from rlreason.inputs import unwatched
from rlreason.progress import counting
from rlreason.run.directory import RunDirectory, now
from rlreason.run.interrupt import Interrupted, unwrapped
from rlreason.run.manifest import fresh
from rlreason.types import EvalReport, Group

if TYPE_CHECKING:
    from rlreason.stages.drawing import DrawnJournal

#: Key of a recipe -> the option that says it here.
OPTIONS = {
    "data.columns.prompt": "--prompt-column",
    "data.columns.answer": "--answer-column",
    "data.answer_after": "--answer-after",
    "data.prompt_template": "--prompt-template",
    "data.chat_template_kwargs": "--chat-template-kwargs",
    "data.verifier": "--verifier",
    "data.heldout": "--data",
    "policy.path": "MODEL",
    "sampler.engine": "--engine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One model on one suite. ``groups``: every problem with its answers, in the suite's order."""

    report: EvalReport
    groups: Sequence[Group]
    #: What it depends on beside the model (``results.options``).
    options: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A measurement whose data is read."""

    what: Measurement
    checked: CheckedRecipe


def evaluate_model(request: EvalRequest, console: Console | None = None) -> list[EvalReport]:
    """Measure suite after suite; each is printed and, with ``out``, written as soon as it is done.

    In ``out``: ``<suite>.json`` with the report and the options, ``<suite>.completions.jsonl`` with every completion.
    What was drawn before a break is kept there too, and the same request goes on with it. Raises UsageError before any
    model is loaded for suites, data, options or an ``out`` that can't be.
    """
    return [one.report for one in evaluate_models([request], console)]


def evaluate_models(requests: Sequence[EvalRequest], console: Console | None = None) -> list[Measured]:
    """The same of several requests, one a model: all are checked before the first model is loaded."""
    console = console or Console(highlight=False)
    ready = [_Ready(what=one, checked=_checked(one)) for request in requests for one in measurements(request)]
    for request in requests:
        _check_out(request.out)
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(f"evaluating needs {', '.join(missing)}: pip install 'rlreason[train]'")
    from rlreason.policy.model import quiet_loading
    from rlreason.policy.process import prepare_process

    quiet_loading()
    prepare_process()
    ready = [replace(one, checked=_with_models(one, console)) for one in ready]
    found = []
    for one in ready:
        name, out = one.what.suite.name, one.what.request.out
        console.print(f"{name}: {what(one.what, one.checked)}", markup=False, soft_wrap=True)
        try:
            with unwrapped():
                measured = _measure(one.what, one.checked, console)
        except Interrupted as error:
            kept = "nothing of it is kept: --out FOLDER keeps what is drawn"
            if out is not None:
                kept = f"what was drawn is kept in {out}: the same command goes on with it"
            error.add_note(f"interrupted by {error.signal.name} in suite {name}; {kept}")
            raise
        console.print(line(measured.report), markup=False, soft_wrap=True)
        found.append(measured)
    return found


def _with_models(ready: _Ready, console: Console) -> CheckedRecipe:
    """As a run has it: its day in the prompts, without the rows that its models have no room for."""
    from rlreason.job import with_models

    tell = lambda text: console.print(text, markup=False, soft_wrap=True)  # noqa: E731
    return with_models(ready.checked, tell, ready.what.run)


def _checked(one: Measurement) -> CheckedRecipe:
    """The recipe with its data read. Messages about data that the command names say the command's options."""
    try:
        return asked_as(one, check(unwatched(one.recipe), one.base))
    except UsageError as error:
        text = str(error)
        for key, option in OPTIONS.items() if one.run is None else ():
            text = text.replace(key, option)
        raise UsageError(text) from error


def _measure(one: Measurement, checked: CheckedRecipe, console: Console) -> Measured:
    from rlreason.job import context_of, open_samplers, open_scorer
    from rlreason.stages.drawing import DrawnJournal
    from rlreason.stages.evaluate import measure, report_row
    from rlreason.stages.pipeline import Pipeline
    from rlreason.stages.rollouts import all_broken, broken_detail

    run = one.run or RunDirectory(Path(), fresh("rlreason eval", 0, now(), []))
    (name,) = one.stage.models
    key, options = results.key_of(one, checked), results.options(one, checked)
    with _folder(one.request.out) as folder:
        done = results.finished(folder, one, checked, key)
        if done is not None:
            text = f"{one.suite.name}: as measured before ({folder / one.suite.name}.json); delete it to measure anew"
            console.print(text, markup=False, soft_wrap=True)
            return Measured(report=done[0], groups=done[1], options=options)
        journal = DrawnJournal(path=folder / f".{one.suite.name}-{key}.journal")
        with open_scorer(checked) as scorer, open_samplers(checked) as samplers:
            context = context_of(checked, run, scorer, samplers, RichDisplay(console))
            pipeline = Pipeline(context)
            with pipeline.open_model(one.stage, name) as model, counting(console, one.suite.name, "problems") as watch:
                found, groups = measure(one.stage, context, model, journal, watch, one.seed)
        _refuse_broken(one, groups, journal, broken_detail(groups) if all_broken(groups) else None)
        report = replace(found, suite=one.suite.name, model=one.model)
        if one.request.out is not None:
            row = {**report_row(one.stage, report, model), "key": key, "options": options}
            results.write(folder, one.suite.name, row, groups)
        journal.clear()
    return Measured(report=report, groups=groups, options=options)


def _refuse_broken(one: Measurement, groups: Sequence[Group], journal: DrawnJournal, detail: str | None) -> None:
    if detail is not None:
        journal.clear()
        raise HealthStop(f"suite {one.suite.name}: every verdict is BROKEN. The first: {detail}")


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

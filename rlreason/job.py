"""One `rlreason run` or `rlreason resume`: checks, run directory, pipeline, report."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import rlreason
from rlreason.check import CheckedRecipe, check
from rlreason.config import Recipe, load, recipe_toml
from rlreason.config.changes import allowed_changes, differences
from rlreason.contamination import contamination_of_run
from rlreason.cores import usable_cores
from rlreason.data.run_data import told_of
from rlreason.data.source import SourcePart
from rlreason.display import ConsoleLog, RichDisplay
from rlreason.errors import HealthStop, UsageError
from rlreason.plan.micro_batches import settled, settled_as
from rlreason.report import build
from rlreason.run import lock, manifest
from rlreason.run.directory import RunDirectory, now, refuse_used
from rlreason.run.inputs import KnownInputs, keep_inputs
from rlreason.run.interrupt import Interrupted, catching_signals
from rlreason.run.lock import locked
from rlreason.run.manifest import DataEntry, StageEntry, WarningEntry, fresh
from rlreason.scorer import PoolScorer
from rlreason.secrets import mask
from rlreason.tracking import check_secrets, open_trackers

if TYPE_CHECKING:
    from rlreason.sampler.placement import Samplers
    from rlreason.stages.context import Context

Tell = Callable[[str], None]

ERROR_LOG, CONSOLE_LOG, ACTOR_LOGS = "error.log", "console.log", "logs"
#: A run with more metrics and rollouts than this gets no report when it is interrupted: there may be 30 seconds left.
QUICK_REPORT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a recipe is run."""

    #: Run directory. None: a new one in runs/.
    folder: Path | None
    #: For the manifest.
    command: str
    #: Continue the run in ``folder``.
    resume: bool = False
    #: Go on although data files or reward code changed.
    accept_changes: bool = False
    #: The run whose recorded schedules are followed.
    replay: Path | None = None
    #: A reward is a function that only this process has: rewards run in a thread of it.
    local_rewards: bool = False


def run_job(recipe: Recipe, path: Path, options: JobOptions, console: Console) -> Path:
    """Run a recipe, read from ``path``, and return the path of its report.

    Raises UsageError before any model is built where recipe, rewards or data are wrong, and Interrupted after SIGTERM
    or Ctrl-C, the stage's state saved. The traceback of a failure is in ``error.log`` of the run directory.
    """

    tell = _teller(console)
    check_secrets(recipe, tell)
    with ExitStack() as stack:
        known = _known_inputs(options)
        if options.resume:
            assert options.folder is not None
            stack.enter_context(locked(options.folder, tell))
        elif options.folder is not None:
            _refuse_folder(options.folder, tell)
        checked = settled_as(check(recipe, path.parent, known), None if known is None else known.root)
        _check_replay(checked.recipe, options)
        _require_training_packages()
        if options.resume:
            assert known is not None
            run = _take_up(checked, known, tell)
            checked = settled(with_models(checked, tell, run))
        else:
            checked = settled(with_models(checked, tell))
            folder = options.folder or new_folder(recipe.name)
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder, tell))
            run = _begin(folder, checked, options.command)
        log = ConsoleLog(run.root / CONSOLE_LOG)
        run.tell = tell = _logging(tell, log)
        tell(f"{recipe.name}: {len(recipe.stage)} stages, seed {recipe.seed} -> {run.root}")
        for line in (*(f"WARNING: {one}" for one in checked.warnings), *told_of(checked.data)):
            tell(line)
        if not options.resume:
            _compare_suites(checked, run, path.parent)
        _run(checked, run, RichDisplay(console, log), options)
        return build(run.root)


def with_models(checked: CheckedRecipe, tell: Tell, run: RunDirectory | None = None) -> CheckedRecipe:
    """``checked`` with the run's day for its prompts, and without the rows that its models have no room for.

    ``run``: the one that is gone on with. Raises UsageError for a model that would fail in any stage.
    """
    from rlreason.policy.model import quiet_loading
    from rlreason.stages.models import RunModels, check_models

    quiet_loading()
    created = now() if run is None else run.manifest.created
    style = replace(checked.prompt_format, day=datetime.fromisoformat(created).date())
    stages = [] if run is None else [one.name for one in run.manifest.stages if one.status == "done"]
    done = {} if run is None else {name: run.stage_folder(name) / "checkpoint" for name in stages}
    models = RunModels(recipe=checked.recipe, data=checked.data, prompt_format=style, done=done)
    return replace(checked, prompt_format=style, data=check_models(models, tell))


def _teller(console: Console) -> Tell:
    return lambda text: console.print(text, markup=False, soft_wrap=True)


def _logging(tell: Tell, log: ConsoleLog) -> Tell:
    """Tells and writes the same line into the run's console.log."""

    def both(text: str) -> None:
        tell(text)
        log.add(mask(text))

    return both


def _run(checked: CheckedRecipe, run: RunDirectory, display: RichDisplay, options: JobOptions) -> None:
    """Run the stages that are not done; say in the run directory how it ended where it didn't end well."""
    from rlreason.policy.model import quiet_loading
    from rlreason.policy.process import prepare_process
    from rlreason.stages.pipeline import Pipeline

    quiet_loading()
    prepare_process()
    try:
        with (
            catching_signals(),
            open_scorer(checked, local=options.local_rewards) as scorer,
            open_samplers(checked, run) as samplers,
            open_trackers(checked.recipe, run, run.tell) as trackers,
            ExitStack() as stack,
        ):
            own = {
                name: stack.enter_context(open_scorer(checked, name, local=options.local_rewards))
                for name in checked.stage_mixes
            }
            context = context_of(checked, run, scorer, samplers, display, options.replay)
            with closing(context.trainers):
                Pipeline(replace(context, trackers=trackers, stage_scorers=own)).run()
    except Interrupted as error:
        display.stop()
        error.add_note(_interrupted(run, error))
        if sum(path.stat().st_size for path in run.root.rglob("*.jsonl")) <= QUICK_REPORT_BYTES:
            _report_anyway(run.root)
        raise
    except BaseException as error:
        display.stop()
        if isinstance(error, Exception) and not isinstance(error, (HealthStop, UsageError)):
            _log_error(run.root, error)
        if isinstance(error, HealthStop):
            error.add_note(f"docs/health.md says when runs are stopped; go on with `rlreason resume {run.root}`")
        _report_anyway(run.root)
        raise


def _known_inputs(options: JobOptions) -> KnownInputs | None:
    """Files of the run that is gone on with or followed."""
    root = options.folder if options.resume else options.replay
    if root is None:
        return None
    entries = tuple(manifest.read(root / "manifest.json").inputs)
    return KnownInputs(root=root, entries=entries, accept=options.accept_changes)


def _refuse_folder(folder: Path, tell: Tell) -> None:
    """Raise UsageError where no run can be begun in ``folder``; one in use is named as such."""
    if (folder / lock.NAME).exists():
        with locked(folder, tell):
            pass
    refuse_used(folder)


def new_folder(name: str) -> Path:
    """runs/<name>-<time>, made; -2, -3… where runs began in the same second."""
    first = Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError


def _begin(folder: Path, checked: CheckedRecipe, command: str) -> RunDirectory:
    """A new run directory: recipe, manifest, and copies of the files that the recipe names."""
    from rlreason.stages.pipeline import device_names

    recipe = checked.recipe
    record = fresh(mask(command), recipe.seed, now(), device_names())
    record.data = {name: _entry(part) for name, part in _parts(checked).items()}
    record.audits = list(checked.audits)
    record.stages = [StageEntry(name=stage.name, kind=stage.kind) for stage in recipe.stage]
    return RunDirectory.create(folder, recipe_toml(recipe), record, checked.inputs)


def _take_up(checked: CheckedRecipe, known: KnownInputs, tell: Tell) -> RunDirectory:
    """The run of ``known``, where it can go on with this recipe, these files and these problems."""
    run = RunDirectory.resume(known.root)
    done = [one.name for one in run.manifest.stages if one.status == "done"]
    changes = allowed_changes(load(run.root / "recipe.toml"), checked.recipe, str(run.root), done)
    known.changes += _changed_problems(checked, run, accept=known.accept)
    if run.manifest.rlreason_version != rlreason.__version__:
        tell(f"{run.root} was begun by rlreason {run.manifest.rlreason_version}; this is {rlreason.__version__}")
    what = [*map(str, changes.differences), *known.changes]
    for line in what:
        tell(f"changed: {line}")
    for name in changes.extended:
        again = run.extend(name)
        if again:
            tell(f"done anew, as they descend from {name}: {', '.join(again)}")
    if known.changes:
        run.manifest.inputs = keep_inputs(run.root, checked.inputs)
        run.manifest.data = {name: _entry(part) for name, part in _parts(checked).items()}
        run.manifest.audits = list(checked.audits) or run.manifest.audits
    if what:
        run.change(recipe_toml(checked.recipe), what)
    return run


def _changed_problems(checked: CheckedRecipe, run: RunDirectory, *, accept: bool) -> list[str]:
    """Problems of tasks and hubs that are not those that the run was begun with; files are compared by their hash.

    Raises UsageError where there are some and ``accept`` is False.
    """
    what = []
    for name, part in _parts(checked).items():
        if part.is_file or name not in run.manifest.data:
            continue
        before = run.manifest.data[name].fingerprint
        if before == part.fingerprint:
            continue
        if not accept:
            raise UsageError(
                f"data.{name}: the problems of {part.origin!r} are no longer those that {run.root} was begun with "
                f"(their sha256 was {before} and is {part.fingerprint}): go on with them as they are now by "
                "--accept-changes, or start anew"
            )
        what.append(f"problems of data.{name}: sha256 was {before[:16]}… and is {part.fingerprint[:16]}…")
    return what


def _compare_suites(checked: CheckedRecipe, run: RunDirectory, base: Path) -> None:
    """Note in the manifest which suites' problems are trained on, and warn of them."""
    found = contamination_of_run(checked.data, base)
    run.manifest.contamination = list(map(str, found))
    run.save()
    for one in found:
        if one.matches:
            run.warn(WarningEntry(stage="data", rule="contamination", step=0, text=str(one)))
            run.tell(f"WARNING: {one}")


def _parts(checked: CheckedRecipe) -> dict[str, SourcePart]:
    """Every set that is trained on or measured; of a recipe with one set "train" and, where there is one, "heldout"."""
    return checked.data.parts()


def _entry(part: SourcePart) -> DataEntry:
    left_out = part.left_out
    return DataEntry(
        source=part.origin,
        fingerprint=part.fingerprint,
        size=part.size,
        overlap=part.overlap,
        bad_rows=left_out.bad_rows,
        first_bad_row=left_out.first_bad,
        outside_pass_rate=left_out.outside,
    )


def _interrupted(run: RunDirectory, error: Interrupted) -> str:
    """Note the interruption in the manifest; in one line what happened and how to go on."""
    stage, name = None, error.signal.name
    with suppress(OSError):
        stage = run.interrupted(str(error))
    if stage is None:
        return f"interrupted by {name} between two stages: go on with `rlreason resume {run.root}`"
    step = run.newest_state(stage)
    saved = "nothing of it was saved yet, it will begin anew" if step is None else "its state is saved"
    return f"interrupted by {name} in stage {stage}; {saved}: go on with `rlreason resume {run.root}`"


def _log_error(root: Path, error: Exception) -> None:
    """Write the traceback into error.log and note that on the error."""
    with suppress(OSError), (root / ERROR_LOG).open("a", encoding="utf-8") as file:
        file.write(f"{now()}\n{mask(''.join(traceback.format_exception(error)))}\n")
        error.add_note(f"traceback in {root / ERROR_LOG}; go on with `rlreason resume {root}`")


def _report_anyway(root: Path) -> None:
    """The report of a run that failed shows what was written until then; its own trouble must not hide the failure."""
    with suppress(Exception):
        build(root)


def _require_training_packages() -> None:
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(f"training needs {', '.join(missing)}: pip install 'rlreason[train]'")


def open_scorer(checked: CheckedRecipe, stage: str | None = None, *, local: bool = False) -> PoolScorer:
    """The recipe's rewards, or those of ``stage`` alone, in worker processes, or with ``local`` in a thread of this
    one; a context manager."""
    cluster = checked.recipe.cluster
    return PoolScorer(
        checked.mix if stage is None else checked.stage_mixes[stage],
        workers=cluster.reward_workers,
        timeout=cluster.reward_timeout,
        concurrency=cluster.reward_concurrency,
        local=local,
    )


@contextmanager
def open_samplers(checked: CheckedRecipe, run: RunDirectory | None = None) -> Iterator[Samplers]:
    """What opens the recipe's samplers, closed at the end. ``run``: where its Ray actors write."""
    from rlreason.cluster.run_places import RunPlaces
    from rlreason.sampler.placement import Samplers

    recipe, threads = checked.recipe, checked.recipe.cluster.threads or usable_cores()
    places = RunPlaces(recipe)
    if run is not None:
        places = RunPlaces(recipe, tell=run.tell, name=run.root.absolute().name, logs=run.root.absolute() / ACTOR_LOGS)
    samplers = Samplers(recipe, checked.prompt_format, threads, places)
    try:
        yield samplers
    finally:
        samplers.close()


def context_of(
    checked: CheckedRecipe,
    run: RunDirectory,
    scorer: PoolScorer,
    samplers: Samplers,
    display: RichDisplay,
    replay: Path | None = None,
) -> Context:
    """All that a stage is given."""
    from rlreason.eval.summary import summarize
    from rlreason.policy.model import default_device
    from rlreason.stages.context import Context
    from rlreason.stages.trainers import Trainers

    device = default_device()
    return Context(
        recipe=checked.recipe,
        run=run,
        data=checked.data,
        prompt_format=checked.prompt_format,
        scorer=scorer,
        verifier=scorer.verifier,
        evaluate=summarize,
        display=display,
        device=device,
        samplers=samplers,
        trainers=Trainers(checked.recipe, device, samplers.threads, samplers.places),
        replay=replay,
    )


def _check_replay(recipe: Recipe, options: JobOptions) -> None:
    """A replay needs the recipe of the run that it follows. Raises UsageError with the first difference."""
    if options.replay is None:
        return
    path = options.replay / "recipe.toml"
    different = differences(load(path), recipe)
    if different:
        raise UsageError(f"--replay {options.replay}: that run had another recipe ({different[0]}); run {path}")
    if recipe.sampler.delivery == "delta":
        raise UsageError('--replay needs sampler.delivery = "full": a worker may take versions in another order')
    if recipe.sampler.engine != "transformers" and not recipe.sampler.request_seeds:
        raise UsageError("--replay needs sampler.request_seeds = true: without, nobody can draw the same tokens again")
    if recipe.sampler.transport == "collective":
        raise UsageError('--replay needs sampler.transport = "host": workers take weights one by one, as recorded')

"""One `rlreason run`: checks, run directory, pipeline, report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w
from rich.console import Console

from rlreason.check import CheckedRecipe, check
from rlreason.config import Recipe
from rlreason.display import RichDisplay
from rlreason.errors import UsageError
from rlreason.report import build
from rlreason.run.directory import RunDirectory, now
from rlreason.run.manifest import DataEntry, Manifest, StageEntry, fresh
from rlreason.scorer import PoolScorer

if TYPE_CHECKING:
    from rlreason.stages.context import Context
    from rlreason.stages.samplers import Samplers


def recipe_toml(recipe: Recipe) -> str:
    """The effective recipe as TOML; what is None is left out, as TOML has no null."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """How a recipe is run: its run directory, whether that run is continued, the command for the manifest, and the run
    whose recorded schedules are followed."""

    folder: Path
    command: str
    resume: bool = False
    replay: Path | None = None


def run_job(recipe: Recipe, path: Path, options: JobOptions, console: Console) -> Path:
    """Run a recipe and return the path of its report.

    Raises UsageError before any model is built where recipe, rewards or data are wrong.
    """
    folder = options.folder
    checked = check(recipe, path.parent)
    _check_replay(recipe, options)
    _require_training_packages()
    from rlreason.policy.model import quiet_loading
    from rlreason.policy.process import prepare_process
    from rlreason.stages.pipeline import Pipeline, device_names

    quiet_loading()
    prepare_process()
    if options.resume:
        run = RunDirectory.resume(folder)
    else:
        run = RunDirectory.create(folder, recipe_toml(recipe), _manifest(checked, options.command, device_names()))
    display = RichDisplay(console)
    console.print(f"{recipe.name}: {len(recipe.stage)} stages, seed {recipe.seed} -> {folder}", soft_wrap=True)
    try:
        with _scorer(checked) as scorer, _samplers(checked) as samplers:
            Pipeline(_context(checked, run, scorer, samplers, display, options.replay)).run()
    except BaseException:
        display.stop()
        # The report of a failed run shows what was written until then; its own trouble must not hide the failure.
        with suppress(Exception):
            build(folder)
        raise
    return build(folder)


def _require_training_packages() -> None:
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        raise UsageError(f"training needs {', '.join(missing)}: pip install 'rlreason[train]'")


def _manifest(checked: CheckedRecipe, command: str, gpus: list[str]) -> Manifest:
    recipe, source = checked.recipe, checked.source
    manifest = fresh(command, recipe.seed, now(), gpus)
    entry = DataEntry(source=source.origins[0], fingerprint=source.fingerprint(), size=source.train_size)
    manifest.data["train"] = entry
    if source.has_heldout:
        manifest.data["heldout"] = entry.model_copy(update={"source": source.origins[-1], "size": None})
    manifest.stages = [StageEntry(name=stage.name, kind=stage.kind) for stage in recipe.stage]
    return manifest


def _scorer(checked: CheckedRecipe) -> PoolScorer:
    cluster = checked.recipe.cluster
    return PoolScorer(checked.mix, workers=cluster.reward_workers, timeout=cluster.reward_timeout)


@contextmanager
def _samplers(checked: CheckedRecipe) -> Iterator[Samplers]:
    from rlreason.stages.samplers import Samplers

    threads = checked.recipe.cluster.threads or os.cpu_count() or 1
    samplers = Samplers(checked.recipe, checked.prompt_format, threads)
    try:
        yield samplers
    finally:
        samplers.close()


def _context(
    checked: CheckedRecipe,
    run: RunDirectory,
    scorer: PoolScorer,
    samplers: Samplers,
    display: RichDisplay,
    replay: Path | None,
) -> Context:
    from rlreason.eval.summary import summarize
    from rlreason.policy.model import default_device
    from rlreason.stages.context import Context

    return Context(
        recipe=checked.recipe,
        run=run,
        source=checked.source,
        prompt_format=checked.prompt_format,
        scorer=scorer,
        evaluate=summarize,
        display=display,
        device=default_device(),
        threads=samplers.threads,
        samplers=samplers,
        replay=replay,
    )


def _check_replay(recipe: Recipe, options: JobOptions) -> None:
    """A replay needs the recipe of the run that it follows. Raises UsageError with the first difference."""
    if options.replay is None:
        return
    path = options.replay / "recipe.toml"
    if not path.is_file():
        raise UsageError(f"--replay {options.replay}: no run directory, it has no recipe.toml")
    if path.read_text(encoding="utf-8") != recipe_toml(recipe):
        raise UsageError(f"--replay {options.replay}: that run had another recipe; run {path}")
    if recipe.sampler.delivery == "delta":
        raise UsageError('--replay needs sampler.delivery = "full": a worker may take versions in another order')

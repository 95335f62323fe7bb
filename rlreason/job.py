"""One `rlreason run`: checks, run directory, pipeline, report."""

from __future__ import annotations

import os
from contextlib import suppress
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


def recipe_toml(recipe: Recipe) -> str:
    """The effective recipe as TOML; what is None is left out, as TOML has no null."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def run_job(recipe: Recipe, path: Path, folder: Path, *, resume: bool, command: str, console: Console) -> Path:
    """Run a recipe in ``folder`` and return the path of its report.

    Raises UsageError before any model is built where recipe, rewards or data are wrong.
    """
    checked = check(recipe, path.parent)
    _require_training_packages()
    from rlreason.policy.model import quiet_loading
    from rlreason.policy.process import prepare_process
    from rlreason.stages.pipeline import Pipeline, device_names

    quiet_loading()
    prepare_process()
    if resume:
        run = RunDirectory.resume(folder, recipe_toml(recipe))
    else:
        run = RunDirectory.create(folder, recipe_toml(recipe), _manifest(checked, command, device_names()))
    display = RichDisplay(console)
    console.print(f"{recipe.name}: {len(recipe.stage)} stages, seed {recipe.seed} -> {folder}", soft_wrap=True)
    try:
        with _scorer(checked) as scorer:
            Pipeline(_context(checked, run, scorer, display)).run()
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


def _context(checked: CheckedRecipe, run: RunDirectory, scorer: PoolScorer, display: RichDisplay) -> Context:
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
        threads=checked.recipe.cluster.threads or os.cpu_count() or 1,
    )

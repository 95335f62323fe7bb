"""Reads a run directory as it is: finished, still running, or killed in the middle of a line.

`manifest.json` must be there, since without it a folder is no run. Everything else may be missing or torn; what
was not there or not readable is kept in `Run.notes`, which the page shows.
"""

from __future__ import annotations

import gzip
import json
import math
import tomllib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from rlreason.errors import UsageError
from rlreason.report.words import plural
from rlreason.secrets import mask
from rlreason.types import Interval

Json = dict[str, Any]
Steps = list[dict[str, float | None]]

#: Keys of a metrics line that say which step it is, and are no series of their own.
STEP_KEYS = frozenset({"stage", "kind", "step", "time"})
HELDOUT = "accuracy/heldout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: what the manifest says of it, and its metrics (one dict a step, in order of steps)."""

    number: int
    name: str
    kind: str
    status: str
    started: str | None = None
    finished: str | None = None
    seconds: float | None = None
    checkpoint: str | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    parents: tuple[str, ...] = ()
    sha256: str | None = None
    sampled_tokens: float = 0.0
    trained_tokens: float = 0.0
    #: Its part of the cost ledger beside those, and what it was made from, as the manifest has them.
    work: Json = field(default_factory=dict)
    made_from: tuple[Any, ...] = ()
    error: str | None = None
    #: What the manifest says of its best checkpoint: step, metric, value; empty without one.
    best: Json = field(default_factory=dict)
    #: Folder under stages/, None where the stage wrote none.
    folder: Path | None = None
    steps: Steps = field(default_factory=list)

    def last_heldout(self) -> tuple[int, float] | None:
        """Step and value of the last held-out accuracy measured while training; None where there is none."""
        points = heldout_points(self.steps)
        return points[-1] if points else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One file of eval/: one model on one suite."""

    model: str
    suite: str
    accuracy: Interval
    by_tag: Mapping[str, Interval]
    pass_at_k: Mapping[int, float]
    samples: int | None = None
    temperature: float | None = None
    mean_tokens: float | None = None
    parameters: int | None = None
    active_parameters: int | None = None
    #: Shares of all answers without a verdict, which are in no accuracy.
    broken: float = 0.0
    timed_out: float = 0.0
    #: Share of answers that ended at max_tokens.
    truncated: float = 0.0
    #: Name of its file in eval/, without .json.
    file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything the report needs, apart from the rollouts, which are read when they are drawn."""

    folder: Path
    name: str
    manifest: Json
    recipe: str | None
    stages: tuple[Stage, ...]
    evaluations: tuple[Evaluation, ...]
    #: What is missing or unreadable, one sentence each.
    notes: tuple[str, ...]

    @property
    def status(self) -> str:
        """`failed` if any stage failed, `done` if all are done, else `unfinished`."""
        states = {stage.status for stage in self.stages}
        if "failed" in states:
            return "failed"
        return "done" if states == {"done"} else "unfinished"

    @property
    def settings(self) -> Json:
        """recipe.toml as a table; empty where it is missing or no TOML."""
        try:
            return tomllib.loads(self.recipe or "")
        except (tomllib.TOMLDecodeError, RecursionError):
            return {}


def number(value: object) -> float | None:
    """A finite number, or None for anything else (NaN and infinity included: JSON has no word for them)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float's range
        return None


def whole(value: object) -> int | None:
    """A whole number, or None."""
    found = number(value)
    return None if found is None else int(found)


def words(value: object) -> str | None:
    """A non-empty string, or None."""
    return value if isinstance(value, str) and value else None


def masked_words(value: object) -> str | None:
    """A non-empty string with keys and passwords as `***`, or None."""
    text = words(value)
    return None if text is None else mask(text)


def interval(value: object) -> Interval | None:
    """An `Interval` from its JSON form; None where a bound or the value is missing."""
    if not isinstance(value, dict):
        return None
    middle, low, high = (number(value.get(key)) for key in ("value", "low", "high"))
    if middle is None or low is None or high is None:
        return None
    return Interval(value=middle, low=low, high=high, count=whole(value.get("count")) or 0)


def heldout_points(steps: Steps) -> list[tuple[int, float]]:
    """(step, held-out accuracy) where it was measured."""
    return [(int(row["step"] or 0), value) for row in steps if (value := row.get(HELDOUT)) is not None]


def json_lines(path: Path) -> Iterator[tuple[int, int, Json | None]]:
    """(byte offset, length, object) of each line; the object is None where the line is not a JSON object.

    Of a ``.gz`` file the offsets are in its text; it may still be written, so it ends where it can't be read further.
    """
    offset = 0
    with open_lines(path) as file:
        for line in whole_lines(file):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield offset, len(line), row if isinstance(row, dict) else None
            offset += len(line)


def open_lines(path: Path) -> BinaryIO:
    """A file of JSON lines, plain or compressed."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Its lines; of a gzip file that is cut short, those before the cut."""
    try:
        yield from file
    except (EOFError, gzip.BadGzipFile, zlib.error):
        yield b"cut short"


def read_steps(path: Path, notes: list[str]) -> Steps:
    """The metrics of one stage. A step written twice (killed, then resumed) counts once, as written last."""
    by_step: dict[int, dict[str, float | None]] = {}
    torn, infinite = 0, 0
    for _, _, row in json_lines(path):
        step = whole(row.get("step")) if row else None
        if row is None or step is None:
            torn += 1
            continue
        scalars = {key: number(value) for key, value in row.items() if key not in STEP_KEYS and is_numeric(value)}
        infinite += sum(value is None for value in scalars.values())
        by_step[step] = {"step": step, "time": number(row.get("time")), **scalars}
    where = "/".join(path.parts[-2:])
    if torn:
        notes.append(f"{where}: {plural(torn, 'unreadable line')} left out (a write cut short?).")
    if infinite:
        notes.append(f"{where}: {plural(infinite, 'value')} missing or not finite (NaN or infinity).")
    return [by_step[step] for step in sorted(by_step)]


def is_numeric(value: object) -> bool:
    """True for numbers, NaN included, and for null; False for text, lists and booleans."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def read_stages(run_dir: Path, manifest: Json, notes: list[str]) -> tuple[Stage, ...]:
    """The stages that the manifest lists, each with its folder and metrics."""
    entries = [entry for entry in as_list(manifest.get("stages")) if isinstance(entry, dict)]
    if not entries:
        notes.append("manifest.json lists no stages.")
    root = run_dir / "stages"
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    stages = []
    for position, entry in enumerate(entries, 1):
        name = words(entry.get("name")) or f"stage {position}"
        folder = next((path for path in folders if path.name.partition("-")[2] == name), None)
        metrics = folder / "metrics.jsonl" if folder else None
        steps = read_steps(metrics, notes) if metrics and metrics.is_file() else []
        kind, status = words(entry.get("kind")) or "?", words(entry.get("status")) or "pending"
        if not steps and status in ("done", "failed") and kind != "eval":
            notes.append(f"Stage {name} is {status} but has no metrics.jsonl that could be read.")
        stages.append(
            Stage(
                number=position,
                name=name,
                kind=kind,
                status=status,
                started=words(entry.get("started")),
                finished=words(entry.get("finished")),
                seconds=number(entry.get("seconds")),
                checkpoint=words(entry.get("checkpoint")),
                parameters=whole(entry.get("parameters")),
                active_parameters=whole(entry.get("active_parameters")),
                parents=tuple(str(parent) for parent in as_list(entry.get("parents"))),
                sha256=words(entry.get("sha256")),
                sampled_tokens=number(entry.get("sampled_tokens")) or 0.0,
                trained_tokens=number(entry.get("trained_tokens")) or 0.0,
                work=as_dict(entry.get("work")),
                made_from=tuple(as_list(entry.get("made_from"))),
                error=masked_words(entry.get("error")),
                best=as_dict(entry.get("best")),
                folder=folder,
                steps=steps,
            )
        )
    return tuple(stages)


def as_list(value: object) -> list[Any]:
    """The list, or an empty one for anything else."""
    return value if isinstance(value, list) else []


def as_dict(value: object) -> Json:
    """The dict, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def read_evaluations(run_dir: Path, stages: tuple[Stage, ...], notes: list[str]) -> tuple[Evaluation, ...]:
    """eval/*.json in the order of the stages that made the models.

    Where two stages evaluate one model, on data of their own for example, the first one's results are those of the
    suite, the other's are a suite by the name of that stage.
    """
    order = {stage.name: stage.number for stage in stages}
    found: list[tuple[str, Evaluation]] = []
    for path in sorted((run_dir / "eval").glob("*.json")):
        try:
            raw = as_dict(json.loads(path.read_bytes()))
        except (ValueError, RecursionError):
            notes.append(f"eval/{path.name} is not valid JSON; left out.")
            continue
        accuracy = interval(raw.get("accuracy"))
        if accuracy is None:
            notes.append(f"eval/{path.name} has no accuracy with an interval; left out.")
            continue
        tags = {tag: interval(value) for tag, value in as_dict(raw.get("by_tag")).items()}
        passes = {int(k): number(value) for k, value in as_dict(raw.get("pass_at_k")).items() if str(k).isdecimal()}
        found.append(
            (
                words(raw.get("stage")) or "",
                Evaluation(
                    model=words(raw.get("model")) or path.stem,
                    suite=words(raw.get("suite")) or "heldout",
                    accuracy=accuracy,
                    by_tag={tag: value for tag, value in tags.items() if value is not None},
                    pass_at_k={k: value for k, value in sorted(passes.items()) if value is not None},
                    samples=whole(raw.get("samples")),
                    temperature=number(raw.get("temperature")),
                    mean_tokens=number(raw.get("mean_tokens")),
                    parameters=whole(raw.get("parameters")),
                    active_parameters=whole(raw.get("active_parameters")),
                    broken=number(raw.get("broken")) or 0.0,
                    timed_out=number(raw.get("timed_out")) or 0.0,
                    truncated=number(raw.get("truncated")) or 0.0,
                    file=path.stem,
                ),
            )
        )
    found.sort(key=lambda one: order.get(one[0], 0))
    measured = {(stage, one.suite, one.model) for stage, one in found}
    apart = {  # stages that measure again what one before them measured, for the same suite
        (stage, suite)
        for stage, suite, model in measured
        if any((other, suite, model) in measured for other in order if order[other] < order.get(stage, 0))
    }
    named = [replace(one, suite=stage) if (stage, one.suite) in apart else one for stage, one in found]
    return tuple(sorted(named, key=lambda one: order.get(one.model.partition("@")[0], len(order) + 1)))


def read_manifest(run_dir: Path) -> Json:
    """manifest.json, or a `UsageError` that says what is missing."""
    if not run_dir.is_dir():
        raise UsageError(f"{run_dir}: no such run directory")
    path = run_dir / "manifest.json"
    if not path.is_file():
        raise UsageError(f"{run_dir}: manifest.json is missing, so this is not a run directory of `rlreason run`")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise UsageError(f"{path}: must hold a JSON object, holds {type(manifest).__name__}")
    return manifest


def recipe_name(recipe: str | None, manifest: Json, run_dir: Path) -> str:
    """The recipe's own name, else the one on the command line, else the folder's."""
    try:
        named = words(tomllib.loads(recipe or "").get("name"))
    except (tomllib.TOMLDecodeError, RecursionError):
        named = None
    command = str(manifest.get("command") or "").split()
    after_run = command[command.index("run") + 1 :] if "run" in command else []
    positional = next((word for word in after_run if not word.startswith("-") and "=" not in word), None)
    if positional and positional.endswith(".toml"):
        path = Path(positional)
        positional = path.parent.name if path.name == "recipe.toml" and path.parent.name else path.stem
    return named or positional or run_dir.resolve().name


def read_run(run_dir: Path) -> Run:
    """Everything under `run_dir` but the rollouts. Raises `UsageError` where there is no run to read."""
    manifest = read_manifest(run_dir)
    notes: list[str] = []
    path = run_dir / "recipe.toml"
    recipe = mask(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    if recipe is None:
        notes.append("recipe.toml is missing: the recipe can't be shown.")
    stages = read_stages(run_dir, manifest, notes)
    return Run(
        folder=run_dir,
        name=recipe_name(recipe, manifest, run_dir),
        manifest=manifest,
        recipe=recipe,
        stages=stages,
        evaluations=read_evaluations(run_dir, stages, notes),
        notes=tuple(notes),
    )

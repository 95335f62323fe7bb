"""What each stage is made from and what it made, by hashes: every artefact of a run traces to its inputs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from rlreason.config import DistillStage, EvalStage, OpdStage, PolicyConfig, RejectStage, Stage, TrainingStage
from rlreason.policy.loading import locate_model
from rlreason.run import atomic
from rlreason.run.manifest import Source
from rlreason.stages.context import Context
from rlreason.stages.references import TABLES, References
from rlreason.traces.rows import DRAWS, KEPT

#: Files of a model that are hashed whole; of larger ones name and size count.
LARGEST = 64 << 20


def sources_of(stage: Stage, context: Context) -> list[Source]:
    """Models, traces, data and reward code that ``stage`` reads, each with the hash of what it is now."""
    references, run = References(context.recipe), context.run
    found = [_parent(name, stage, context, references) for name in references.parents(stage)]
    if isinstance(stage, OpdStage):
        tables = {name: context.recipe.teacher[name] for name in stage.teachers(context.recipe.teacher)}
        found += [
            Source(kind="model", name=f"teacher {name}", sha256=model_sha256(one.path))
            for name, one in tables.items()
            if one.path is not None
        ]
    if isinstance(stage, DistillStage) and stage.trace_set is not None:
        rows = Path(stage.trace_set) / KEPT
        found.append(Source(kind="traces", name=stage.trace_set, sha256=atomic.file_sha256(rows)))
    for name in data_names(stage, context):
        found.append(Source(kind="data", name=name, sha256=run.manifest.data[name].fingerprint))
    if not isinstance(stage, (TrainingStage, EvalStage)) or stage.kind in ("grpo", "opd"):  # completions are scored
        code = [one for one in run.manifest.inputs if one.kind == "reward"]
        found += [Source(kind="reward", name=Path(one.path).name, sha256=one.sha256) for one in code]
    return found


def _parent(name: str, stage: Stage, context: Context, references: References) -> Source:
    if name in TABLES or name in context.recipe.endpoint:
        return Source(kind="model", name=name, sha256=initial_sha256(name, context))
    if isinstance(references.stage(name), RejectStage):
        if isinstance(stage, DistillStage) and stage.which != "kept":  # it reads what was drawn
            return Source(kind="traces", name=name, sha256=atomic.file_sha256(context.run.stage_folder(name) / DRAWS))
        return Source(kind="traces", name=name, sha256=context.run.manifest.stage(name).sha256 or "")
    return Source(kind="model", name=name, sha256=context.run.checkpoint_sha256(name) or "")


def initial_sha256(name: str, context: Context) -> str:
    """Of a model that no stage made: what it is loaded or built from, or of a server its address and name there."""
    recipe = context.recipe
    if name in recipe.endpoint:
        return _of(f"{recipe.endpoint[name].url}\0{recipe.endpoint[name].model}")
    config: PolicyConfig | None = recipe.policy if name == "policy" else recipe.student
    assert config is not None
    if config.path is not None:
        return model_sha256(config.path)
    return _of(f"{name}\0{recipe.seed}\0{config.model_dump_json()}")


def model_sha256(path: str) -> str:
    """Of a model's files: the contents of small ones, names and sizes of large ones. Of a hub id, where it is in the
    cache, of the commit's files there."""
    place = Path(locate_model(path))
    if not place.exists():
        cached = try_to_load_from_cache(str(place), "config.json")
        if not isinstance(cached, str):
            return _of(path)
        place = Path(cached).parent
    files = [place] if place.is_file() else sorted(one for one in place.rglob("*") if one.is_file())
    told = [f"{path if place.is_file() else one.relative_to(place)}\0{one.stat().st_size}\0" for one in files]
    sums = [atomic.file_sha256(one) if one.stat().st_size <= LARGEST else "" for one in files]
    return _of("\n".join(map("".join, zip(told, sums, strict=True))))


def _of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def data_names(stage: Stage, context: Context) -> list[str]:
    """The sets of the manifest that ``stage`` trains on, draws or measures."""
    table, found = context.recipe.data, []
    if not isinstance(stage, (EvalStage, DistillStage)):
        choice = stage.data
        if choice is None:
            choice = table.train if isinstance(table.train, str) and table.train in table.sets else "train"
        found = [choice] if isinstance(choice, str) else list(choice)
    if isinstance(stage, DistillStage) and stage.general is not None:
        found = [stage.general] if isinstance(stage.general, str) else list(stage.general)
    if isinstance(stage, EvalStage) or (isinstance(stage, TrainingStage) and stage.eval_every):
        found += _measured(stage, context)
    return [name for name in dict.fromkeys(found) if name in context.run.manifest.data]


def _measured(stage: EvalStage | TrainingStage, context: Context) -> list[str]:
    named = stage.data if isinstance(stage, EvalStage) else stage.heldout
    measured, origin = context.data.measured, context.data.of(stage.name).heldout_origin
    if named is not None:
        return [name for name in (named, f"{named}/heldout") if name in measured]
    return [name for name, supply in measured.items() if supply.origin == origin][:1]


def made_sha256(stage: Stage, context: Context) -> str | None:
    """Of what a stage that trains nothing made: its traces, or its results; None where it made nothing."""
    root = context.run.root
    if isinstance(stage, RejectStage):
        files = [context.run.stage_folder(stage.name) / KEPT]
    elif isinstance(stage, EvalStage):
        files = [root / "eval" / f"{stage.name}-{model}.json" for model in stage.models]
    else:
        return context.run.manifest.stage(stage.name).sha256
    there = [one for one in files if one.is_file()]
    if len(there) == 1:
        return atomic.file_sha256(there[0])
    return _of("\n".join(map(atomic.file_sha256, there))) if there else None

"""What an evaluation leaves in a folder, and the same taken up again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import rlreason
from rlreason.data.prompts import PromptFormat
from rlreason.eval.summary import summarize
from rlreason.run import atomic
from rlreason.types import EvalReport, Group

if TYPE_CHECKING:
    from rlreason.check import CheckedRecipe
    from rlreason.evaluation.request import Measurement


def write(folder: Path, suite: str, row: Mapping[str, object], groups: Sequence[Group]) -> None:
    """``<suite>.completions.jsonl``, then ``<suite>.json``: who finds the second finds the first whole."""
    from rlreason.stages.drawing import as_line

    lines = b"".join(as_line(group) for group in groups)
    atomic.write_text(folder / f"{suite}.completions.jsonl", lines.decode())
    atomic.write_text(folder / f"{suite}.json", json.dumps(row, indent=2) + "\n")


def finished(folder: Path, one: Measurement, checked: CheckedRecipe, key: str) -> tuple[EvalReport, list[Group]] | None:
    """The report and the groups of a measurement that is there with this very key; None where it is not, or another."""
    from rlreason.sampler.groups import group_ids
    from rlreason.stages.drawing import DrawnJournal
    from rlreason.stages.evaluate import stream_of

    path = folder / f"{one.suite.name}.json"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(row, dict) or "key" not in row or row["key"] != key:
        return None
    (name,) = one.stage.models
    stream = stream_of(one.stage, name)
    problems = checked.data.of(one.stage.name).heldout(one.stage.problems)
    known = DrawnJournal(path=path.with_suffix(".completions.jsonl")).read(problems, stream)
    groups = [known[group_id] for group_id in group_ids(problems, stream) if group_id in known]
    if len(groups) < len(problems):
        return None
    return replace(summarize(groups, one.model, one.suite.name), parameters=int(row["parameters"])), groups


def key_of(one: Measurement, checked: CheckedRecipe) -> str:
    """The same for the same model, problems and options alone: what was drawn for others is no part of this."""
    problems = checked.data.of(one.stage.name).heldout(one.stage.problems)
    parts = [rlreason.__version__, _identity(one), one.stage.model_dump_json(), str(one.seed)]
    parts += [repr(checked.prompt_format), one.recipe.sampler.model_dump_json()]
    parts += [json.dumps(one.recipe.reward, sort_keys=True), repr(problems)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _identity(one: Measurement) -> str:
    """The model: a checkpoint's checksum, else its folder's files by size and time, else its name."""
    (name,) = one.stage.models
    if one.run is not None and name not in {"policy", "student"}:
        return str(one.run.checkpoint_sha256(name))
    path = Path(one.recipe.policy.path or "")
    files = sorted(path.glob("*")) if one.recipe.policy.path and path.is_dir() else [path] if path.is_file() else []
    return repr(
        [one.model, one.recipe.endpoint, [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]
    )


def options(one: Measurement, checked: CheckedRecipe) -> Mapping[str, object]:
    """What an evaluation depends on, beside the model."""
    form = format_of(one, checked)
    request = one.request
    return {
        "data": source(one, checked),
        "task_options": dict(checked.recipe.data.options),
        "system": form.system,
        "prompt_template": form.ask,
        "answer_style": form.style,
        "chat_template_kwargs": dict(form.template),
        "shots": len(form.shots),
        "protocol": request.protocol,
        "days": [request.since, request.until] if one.suite.date else None,
        "engine": checked.recipe.sampler.engine if request.url is None else request.url,
        "seed": one.seed,
        "version": rlreason.__version__,
        **one.stage.model_dump(include={"problems", "max_tokens", "top_p", "top_k"}),
    }


def format_of(one: Measurement, checked: CheckedRecipe) -> PromptFormat:
    """How the measured set's problems are asked: a named set may have a format of its own."""
    return checked.prompt_format.of(checked.data.of(one.stage.name).heldout(1)[0])


def source(one: Measurement, checked: CheckedRecipe) -> str:
    """Where the problems are from."""
    return checked.data.of(one.stage.name).heldout_origin or one.suite.name

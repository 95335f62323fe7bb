"""Fills the page: one HTML file that holds its style, its scripts and its data, and asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import tempfile
from datetime import UTC, datetime
from importlib.resources import files
from itertools import accumulate, pairwise
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Undefined
from markupsafe import Markup

from rlreason.report import curve, findings, ledger, lineage, words
from rlreason.report.experts import read_experts
from rlreason.report.mismatch import read_doctor
from rlreason.report.read import Json, Run, Stage, as_dict, as_list, heldout_points, number, whole
from rlreason.report.rollouts import StageRollouts, read_rollouts, verdict_order
from rlreason.report.verdicts import compare_all, result_line, verdicts
from rlreason.secrets import mask

#: Steps of one stage that the charts carry. Beyond it they are thinned evenly, and the page says so.
MAX_STEPS = 1_500

SCRIPTS = ("draw.js", "charts.js", "panels.js", "browse.js", "page.js")


def asset(name: str) -> str:
    """A file of this package."""
    return files("rlreason.report").joinpath(name).read_text(encoding="utf-8")


def rounded(value: float | None) -> float | int | None:
    """Six figures are more than a chart shows, and a third of the bytes."""
    if value is None:
        return None
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def thin(stage: Stage) -> tuple[list[dict[str, float | None]], int]:
    """At most about `MAX_STEPS` steps, and how many one kept step stands for; measured accuracies always stay."""
    stride = max(1, math.ceil(len(stage.steps) / MAX_STEPS))
    last = len(stage.steps) - 1
    measured = {step for step, _ in heldout_points(stage.steps)}
    if len(measured) > MAX_STEPS:  # measured at every step: then these are thinned like the rest
        measured = set()
    kept = [
        row for i, row in enumerate(stage.steps) if i % stride == 0 or i == last or int(row["step"] or 0) in measured
    ]
    return kept, stride


def stage_data(stage: Stage) -> Json:
    """The series of one stage, column by column."""
    rows, stride = thin(stage)
    keys = sorted({key for row in rows for key in row} - {"step", "time"})
    series = {key: [rounded(row.get(key)) for row in rows] for key in keys}
    return {
        "name": stage.name,
        "kind": stage.kind,
        "status": stage.status,
        "axes": axes(stage, rows),
        "steps": [int(row["step"] or 0) for row in rows],
        "series": {key: values for key, values in series.items() if any(v is not None for v in values)},
        "stride": stride,
    }


def axes(stage: Stage, rows: list[dict[str, float | None]]) -> dict[str, list[float | int | None]]:
    """What else the charts of a stage can be drawn over: tokens and seconds of work up to the end of each of `rows`.

    Of tokens only where every step counted them.
    """
    found = {}
    for axis, key in (("tokens", "tokens"), ("time", "seconds")):
        so_far = accumulate(row.get(key) or 0.0 for row in stage.steps)
        sums = dict(zip(map(id, stage.steps), so_far, strict=True))
        if stage.steps and all(row.get(key) is not None for row in stage.steps):
            found[axis] = [rounded(sums[id(row)]) for row in rows]
    return found


def origin(run: Run, stage: Stage) -> list[str]:
    """What a stage was made from, in words: earlier stages, the path of a loaded model, "a new policy"."""
    said = []
    for parent, words_of_it in zip(stage.parents, findings.origin(stage), strict=True):
        path = as_dict(run.settings.get(parent)).get("path") if findings.is_fresh(stage, parent) else None
        said.append(path if isinstance(path, str) and path else words_of_it)
    return said


def steps_of(run: Run, stage: Stage) -> int | None:
    """How many steps the recipe gives a stage that trains; None where it can't be told."""
    tables = [as_dict(one) for one in as_list(run.settings.get("stage"))]
    return next((whole(one.get("steps")) for one in tables if one.get("name") == stage.name), None)


def facts(stage: Stage) -> list[tuple[str, str]]:
    """A stage in a few numbers: (label, value)."""
    found = []
    spent = stage.seconds or sum(row.get("seconds") or 0.0 for row in stage.steps)
    if stage.steps and stage.kind in ("sft", "grpo", "distill", "opd"):
        found.append(("steps", words.count(len(stage.steps))))
    if spent:
        found.append(("time", words.duration(spent)))
    if stage.kind == "reject":
        # These are written as totals so far; with filters, what is kept on the last line alone, and what is solved on
        # the others.
        end = stage.steps[-1] if stage.steps else {}
        solved = [row["acceptance"] for row in stage.steps if "acceptance" in row][-1:]
        found += [("problems", words.count(end.get("problems"))), ("completions kept", words.count(end.get("kept")))]
        if "distinct/kept" in end:
            distinct = f"{words.count(end['distinct/kept'])} of {words.count(end.get('distinct/drawn'))}"
            found.append(("distinct problems with a trace", distinct))
        found.append(("problems solved", words.percent(solved[0] if solved else None, 1)))
    tokens = total(stage, "tokens")
    if tokens:
        found.append(("tokens", words.big(tokens)))
    if tokens and spent:
        found.append(("tokens per second, overall", words.big(tokens / spent)))
    last = stage.last_heldout()
    if last and stage.kind != "eval":
        found.append(("held-out accuracy while training", f"{words.percent(last[1], 1)} at step {last[0]:,}"))
    if stage.best:
        metric, value = str(stage.best.get("metric")), number(stage.best.get("value"))
        shown = words.percent(value, 1) if metric.startswith("accuracy/") else f"{value or 0.0:.4g}"
        step = words.count(number(stage.best.get("step")))
        found.append((f"best checkpoint, {stage.name}@best", f"{metric} {shown} after {step} steps"))
    return found


def total(stage: Stage, key: str) -> float | None:
    """Sum of one scalar over the steps; None where no step has it."""
    values = [value for row in stage.steps if (value := row.get(key)) is not None]
    return sum(values) if values else None


def script_hash(script: str) -> str:
    """What the content policy allows a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def island(data: Json) -> Markup:
    """JSON that can stand inside a `<script>` element whatever it holds: no `<`, `>` or `&`, and only ASCII."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def total_seconds(run: Run) -> float | None:
    """The manifest's total while it has one, else what the stages and their steps took."""
    stated = number(as_dict(run.manifest.get("totals")).get("seconds"))
    counted = sum(s.seconds or sum(row.get("seconds") or 0.0 for row in s.steps) for s in run.stages)
    return max(stated or 0.0, counted) or None


def gpu_hours(run: Run) -> str | None:
    """GPUs of the host times hours; None without GPUs."""
    gpus, seconds = len(as_list(as_dict(run.manifest.get("hardware")).get("gpus"))), total_seconds(run)
    return f"{gpus * seconds / 3600:,.2f}" if gpus and seconds else None


def last_written(run: Run) -> float | None:
    """Unix seconds of the newest metrics line."""
    times = [row["time"] for stage in run.stages for row in stage.steps[-1:] if row.get("time") is not None]
    return max((time for time in times if time is not None), default=None)


def state_note(run: Run) -> str | None:
    """One sentence on a run that isn't done: where it stands, and what to do about it."""
    if run.status == "failed":
        broken = next(stage for stage in run.stages if stage.status == "failed")
        at = f" after step {int(broken.steps[-1]['step'] or 0):,}" if broken.steps else ""
        return f"This run failed in stage {broken.name}{at}: {broken.error or 'no reason was recorded'}"
    if run.status == "done":
        return None
    current = next((stage for stage in run.stages if stage.status == "running"), None)
    where = "no stage is running"
    if current:
        total = steps_of(run, current)
        out_of = f" of {total:,}" if total else ""
        done = int(current.steps[-1]["step"] or 0) + 1 if current.steps else 0
        where = f"stage {current.name} is running, {done:,}{out_of} steps are done"
    seen = last_written(run)
    when = f"; its last step was written {words.moment(seen)}" if seen else ""
    return (
        f"This run is not finished: {where}{when}. This page shows what was written until then: `rlreason report` "
        "builds it anew, and `rlreason resume` continues a run that was stopped."
    )


def rollout_notes(found: list[StageRollouts]) -> list[str]:
    """What of the rollouts could not be read."""
    return [f"{one.source}: {words.plural(one.torn, 'unreadable line')} left out." for one in found if one.torn]


def provenance(manifest: Json) -> Json:
    """The manifest as the template needs it: every key there, each of its type or None."""
    hardware, totals = as_dict(manifest.get("hardware")), as_dict(manifest.get("totals"))
    known = ("command", "rlreason_version", "git_commit", "python", "seed", "created")
    gpus = as_list(hardware.get("gpus"))
    cores = whole(hardware.get("cores"))
    return {
        "audits": [_audit(as_dict(one)) for one in as_list(manifest.get("audits"))],
        "manifest": {key: mask(text) if isinstance(text := manifest.get(key), str) else text for key in known},
        "totals": {key: number(totals.get(key)) for key in ("sampled_tokens", "trained_tokens")},
        "cpu": hardware.get("cpu"),
        "memory": number(hardware.get("memory_gib")),
        "gpus": gpus,
        "machine": words.plural(len(gpus), "GPU") if gpus else words.plural(cores, "CPU core") if cores else None,
        "packages": sorted(as_dict(manifest.get("packages")).items()),
        "contamination": [mask(line) for line in as_list(manifest.get("contamination")) if isinstance(line, str)],
        "data": [
            (part, entry.get("source"), number(entry.get("size")), entry.get("fingerprint"))
            for part, entry in as_dict(manifest.get("data")).items()
            if isinstance(entry, dict)
        ],
    }


def _audit(entry: Json) -> Json:
    """An audit that a reward of the run had passed, as the template needs it."""
    rates = {name: as_dict(entry.get(name)) for name in ("false_positive", "false_negative")}
    return {
        "reward": entry.get("reward"),
        "created": entry.get("created"),
        "calibrated_on": entry.get("calibrated_on"),
        "rates": [
            {key: number(rate.get(key)) for key in ("value", "low", "high", "count")} if rate else None
            for rate in rates.values()
        ],
    }


def context(run: Run) -> Json:
    """Everything the template reads."""
    suites = findings.suites(run)
    compared = compare_all(run, suites)
    rollouts = read_rollouts(run)
    doctors = [read_doctor(run, stage) for stage in run.stages]
    own = findings.of_the_chain(run, suites)
    chain = curve.panels(run, own)
    top = curve.scale_top(chain)
    stages = [stage_data(stage) for stage in run.stages]
    data = {"stages": stages, "rollouts": [{"stage": r.stage, "groups": r.groups} for r in rollouts]}
    accuracy = {m.result.model: m.result.accuracy for m in own.models} if own else {}
    script = "\n".join(asset(name) for name in SCRIPTS)
    return {
        "run": run,
        **provenance(run.manifest),
        "headline": result_line(run, suites, compared),
        "state_note": state_note(run),
        "warnings": findings.warnings(run),
        "notes": [*run.notes, *rollout_notes(rollouts), *(note for one in doctors if one for note in one.notes)],
        "suites": suites,
        "paired": verdicts(compared),
        "accuracy": accuracy,
        # An arrow is drawn only where a stage was made from the one before it: a control student was not.
        "follows": {b.name for a, b in pairwise(run.stages) if a in findings.parents(run, b)},
        "origins": [origin(run, stage) for stage in run.stages],
        "facts": [facts(stage) for stage in run.stages],
        "doctors": doctors,
        "experts": [read_experts(run, stage) for stage in run.stages],
        "strides": [stage["stride"] for stage in stages],
        "rollouts": rollouts,
        "verdicts": sorted({verdict for one in rollouts for verdict in one.verdicts}, key=verdict_order),
        "seconds": total_seconds(run),
        "gpu_hours": gpu_hours(run),
        "ledger": ledger.read_ledger(run),
        "published": ledger.published(),
        "graph": Markup(graph) if (graph := lineage.draw(run)) else None,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "curve_wide": Markup(curve.draw(chain, 1080, top)) if chain else None,
        "curve_narrow": [Markup(curve.draw(chain[i : i + 2], 380, top)) for i in range(0, len(chain), 2)],
        "style": Markup(asset("style.css")),
        "script": Markup(script),
        "script_hash": script_hash(script),
        "island": island(data),
    }


def environment() -> Environment:
    """Everything is escaped unless this package made it; an unknown name is an error, not an empty string."""
    made = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize
    )
    shown = (words.percent, words.points, words.count, words.big, words.duration, words.moment, words.kind)
    for function in (*shown, ledger.operations, ledger.dollars):
        made.filters[function.__name__] = function
    made.globals["plural"] = words.plural
    return made


def finalize(value: object) -> object:
    """Last stop of every value before it is escaped: text, with hidden characters written out."""
    if isinstance(value, Markup | Undefined):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return words.visible(text)


def render(run: Run) -> str:
    """The whole page."""
    return environment().from_string(asset("page.html")).render(**context(run))


def write_atomically(path: Path, text: str) -> None:
    """A reader of `path` sees the old file or the new one, never half of one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; a report is for others too.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

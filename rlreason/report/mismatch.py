"""What the mismatch doctor found (stages/*/mismatch.jsonl), for the section "Sampler vs trainer" of a stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlreason.report import words
from rlreason.report.read import Json, Run, Stage, as_dict, json_lines, number, whole

FILE = "mismatch.jsonl"
#: Causes in the order of the doctor's chain: (key, name, what it compares, colour).
CAUSES = (
    ("staleness", "staleness", "the trainer's weights with those that drew the token", "--c0"),
    ("precision", "precision", "those weights with the same in the sampler's dtype", "--c3"),
    ("router", "router", "the trainer's experts with the sampler's", "--c1"),
    ("transform", "transform", "the recipe's temperature with the sampler's", "--c4"),
    ("residual", "residual", "what is left: kernels, or weights that never arrived", "--c6"),
)
#: Diagnoses drawn; beyond it they are thinned evenly.
MAX_ROWS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One cause in one diagnosis. Sizes in nats a token, as text; ``share`` from 0 to 1."""

    name: str
    compares: str
    color: str
    share: float
    mean: str
    largest: str
    k3: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One line of the file, ready to be shown."""

    step: int
    total: str
    largest: str
    k3: str
    causes: tuple[Cause, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doctor:
    """All that one stage's file says."""

    newest: Diagnosis
    rows: tuple[Diagnosis, ...]
    found: int
    #: Of the newest one.
    facts: tuple[tuple[str, str], ...]
    cause: str
    cure: str
    setting: str
    applied: bool
    reason: str
    notes: tuple[str, ...] = field(default=())


def nats(value: object) -> str:
    """A size in nats: `0.31`, `2.4e-07`, `0`."""
    found = number(value)
    return "–" if found is None else f"{found:.2g}".replace("-", words.MINUS)


def read_doctor(run: Run, stage: Stage) -> Doctor | None:
    """The diagnoses of ``stage``; None where it has none that can be read."""
    path = stage.folder / FILE if stage.folder else None
    if path is None or not path.is_file():
        return None
    by_step: dict[int, Json] = {}
    torn = 0
    for _, _, row in json_lines(path):
        step = whole(row.get("step")) if row else None
        if row is None or step is None:
            torn += 1
        else:
            by_step[step] = row
    if not by_step:
        return None
    lines = [by_step[step] for step in sorted(by_step)]
    stride = -(-len(lines) // MAX_ROWS)
    shown = lines[::-1][::stride][::-1]  # the newest always among them
    advice = as_dict(lines[-1].get("advice"))
    where = path.relative_to(run.folder / "stages")
    return Doctor(
        newest=_diagnosis(lines[-1]),
        rows=tuple(map(_diagnosis, shown)),
        found=len(lines),
        facts=_facts(lines[-1]),
        cause=str(advice.get("cause") or "?"),
        cure=str(advice.get("cure") or ""),
        setting=str(advice.get("setting") or ""),
        applied=advice.get("applied") is True,
        reason=str(advice.get("reason") or ""),
        notes=(f"{where}: {words.plural(torn, 'unreadable line')} left out.",) if torn else (),
    )


def _diagnosis(row: Json) -> Diagnosis:
    total, parts = as_dict(row.get("total")), as_dict(row.get("parts"))
    causes = []
    for key, name, compares, color in CAUSES:
        part = as_dict(parts.get(key))
        share = min(1.0, max(0.0, number(part.get("share")) or 0.0))
        sizes = {to: nats(part.get(of)) for to, of in (("mean", "mean"), ("largest", "max"), ("k3", "k3"))}
        causes.append(Cause(name=name, compares=compares, color=color, share=share, **sizes))
    return Diagnosis(
        step=whole(row.get("step")) or 0,
        total=nats(total.get("mean")),
        largest=nats(total.get("max")),
        k3=nats(total.get("k3")),
        causes=tuple(causes),
    )


def _facts(row: Json) -> tuple[tuple[str, str], ...]:
    versions = row.get("versions")
    drawn = "–"
    if isinstance(versions, list) and len(versions) == 2:
        first, last = (words.count(number(one)) for one in versions)
        drawn = first if first == last else f"{first} to {last}"
    experts = {
        "dense": "none",
        "own": "taken to be these weights' own",
        "reported": "as the sampler reported",
        "unknown": "can't be read",
    }
    found = [
        ("step", words.count(number(row.get("step")))),
        ("drawn by version", drawn),
        ("tokens examined", words.count(number(row.get("tokens")))),
        ("dtype of trainer, sampler", f"{row.get('trainer_dtype') or '–'}, {row.get('sampler_dtype') or '–'}"),
        ("temperature of recipe, sampler", f"{_plain(row, 'temperature')}, {_plain(row, 'sampler_temperature')}"),
        ("sampler's experts", experts.get(str(row.get("experts")), "–")),
    ]
    if (rerouted := number(row.get("rerouted"))) is not None:
        found.append(("token-layers sent elsewhere", words.percent(rerouted)))
    if left_out := whole(row.get("left_out")):
        found.append(("completions of weights that are gone", words.count(left_out)))
    return tuple(found)


def _plain(row: Json, key: str) -> str:
    found = number(row.get(key))
    return "–" if found is None else f"{found:g}"

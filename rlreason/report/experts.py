"""Where a stage's tokens went (stages/*/experts.jsonl), for the section "Experts" of a stage: its newest step."""

from __future__ import annotations

from dataclasses import dataclass

from rlreason.report.read import Json, Run, Stage, as_list, json_lines, number, whole

FILE = "experts.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer with experts; numbers as text, "" where the step did not say."""

    number: int
    agreement: str
    entropy: str
    max_violation: str
    dead: str
    balance_share: str
    #: Share of each expert, of the largest one: heights from 0 to 1.
    bars: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageExperts:
    """The newest line of the file."""

    step: int
    steps: int
    layers: tuple[Layer, ...]


def read_experts(run: Run, stage: Stage) -> StageExperts | None:
    """The experts of ``stage``; None where it has none that can be read. A torn line is passed over."""
    del run
    path = stage.folder / FILE if stage.folder else None
    if path is None or not path.is_file():
        return None
    rows = [row for _, _, row in json_lines(path) if row is not None and whole(row.get("step")) is not None]
    if not rows:
        return None
    newest = max(rows, key=lambda row: whole(row.get("step")) or 0)
    loads = as_list(newest.get("load"))
    # Of routers that can't be followed only the balance is known.
    loads = [*loads, *[()] * (len(as_list(newest.get("balance_share"))) - len(loads))]
    layers = tuple(_layer(newest, at, load) for at, load in enumerate(loads))
    return StageExperts(step=whole(newest.get("step")) or 0, steps=len(rows), layers=layers)


def _layer(row: Json, at: int, load: object) -> Layer:
    shares = [number(one) or 0.0 for one in as_list(load)]
    largest = max(shares, default=0.0) or 1.0
    return Layer(
        number=at,
        agreement=_text(row, "agreement", at, "{:.2%}"),
        entropy=_text(row, "entropy", at, "{:.3f}"),
        max_violation=_text(row, "max_violation", at, "{:.2f}"),
        dead=_text(row, "dead", at, "{:.0%}"),
        balance_share=_text(row, "balance_share", at, "{:.1%}"),
        bars=tuple(round(one / largest, 3) for one in shares),
    )


def _text(row: Json, key: str, at: int, form: str) -> str:
    values = as_list(row.get(key))
    value = number(values[at]) if at < len(values) else None
    return "" if value is None else form.format(value)

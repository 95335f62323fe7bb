"""What a run cost, stage by stage and in all: tokens, operations, device-hours and dollars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlreason.report.read import Run, Stage, as_dict, as_list, number
from rlreason.report.words import NARROW

PF_DAY = 1e15 * 86400
#: What DeepSeek-R1 says that it took (Nature 645, supplement): part -> H800-hours, at $2 each. Its base model, data and
#: runs that failed are in none of them.
R1_DOLLARS = 2.0
R1 = (("DeepSeek-R1-Zero", 101_000.0), ("its supervised data", 5_000.0), ("DeepSeek-R1", 41_000.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One line of the ledger."""

    name: str
    sampled: float = 0.0
    evaluated: float = 0.0
    trained: float = 0.0
    scored: float = 0.0
    #: Floating-point operations.
    sampling: float = 0.0
    training: float = 0.0
    scoring: float = 0.0
    seconds: float = 0.0
    #: Of GPUs, or without any of the machine.
    hours: float = 0.0
    dollars: float | None = None

    @property
    def operations(self) -> float:
        """All of them."""
        return self.sampling + self.training + self.scoring

    @property
    def pf_days(self) -> float:
        """The same in days of 10¹⁵ operations a second."""
        return self.operations / PF_DAY

    @property
    def per_million(self) -> float | None:
        """Dollars for a million tokens that were generated, all that the stage did included."""
        made = self.sampled + self.evaluated
        return None if self.dollars is None or not made else self.dollars / made * 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLedger:
    """All lines, and what they leave out."""

    rows: tuple[Cost, ...]
    total: Cost
    #: "GPU" or "machine".
    device: str
    price: float | None
    #: Models whose operations are in no line.
    uncounted: tuple[str, ...]

    @property
    def lines(self) -> tuple[Cost, ...]:
        """The stages, and their sum last."""
        return (*self.rows, self.total)


def read_ledger(run: Run) -> CostLedger | None:
    """The ledger of what was done so far; None where no stage has begun."""
    begun = [stage for stage in run.stages if stage.status != "pending"]
    if not begun:
        return None
    price = number(as_dict(run.settings.get("cluster")).get("dollars_per_hour"))
    gpus = len(as_list(as_dict(run.manifest.get("hardware")).get("gpus")))
    rows = tuple(_cost(stage, gpus, price) for stage in begun)
    uncounted = [str(name) for stage in begun for name in as_list(stage.work.get("uncounted"))]
    on_gpus = gpus or any(number(stage.work.get("gpus")) for stage in begun)
    return CostLedger(
        rows=rows,
        total=_total(rows),
        device="GPU" if on_gpus else "machine",
        price=price,
        uncounted=tuple(dict.fromkeys(uncounted)),
    )


def _cost(stage: Stage, gpus: int, price: float | None) -> Cost:
    def told(key: str) -> float:
        return number(stage.work.get(key)) or 0.0

    seconds = stage.seconds or sum(row.get("seconds") or 0.0 for row in stage.steps)
    hours = max(told("gpus"), gpus, 1) * seconds / 3600
    return Cost(
        name=stage.name,
        sampled=stage.sampled_tokens,
        evaluated=told("evaluated_tokens"),
        trained=stage.trained_tokens,
        scored=told("scored_tokens"),
        sampling=told("sampling_flops"),
        training=told("training_flops"),
        scoring=told("scoring_flops"),
        seconds=seconds,
        hours=hours,
        dollars=None if price is None else hours * price,
    )


def _total(rows: Sequence[Cost]) -> Cost:
    known = [row.dollars for row in rows if row.dollars is not None]
    return Cost(
        name="all stages",
        sampled=sum(row.sampled for row in rows),
        evaluated=sum(row.evaluated for row in rows),
        trained=sum(row.trained for row in rows),
        scored=sum(row.scored for row in rows),
        sampling=sum(row.sampling for row in rows),
        training=sum(row.training for row in rows),
        scoring=sum(row.scoring for row in rows),
        seconds=sum(row.seconds for row in rows),
        hours=sum(row.hours for row in rows),
        dollars=sum(known) if known else None,
    )


def published() -> list[tuple[str, float, float]]:
    """(part, H800-hours, dollars) of DeepSeek-R1, the sum last."""
    rows = [(name, hours, hours * R1_DOLLARS) for name, hours in R1]
    return [*rows, ("in all", sum(row[1] for row in rows), sum(row[2] for row in rows))]


def operations(value: float) -> str:
    """A count of floating-point operations: `3.2 TFLOP`."""
    for size, letter in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if value >= size:
            return f"{value / size:.3g}{NARROW}{letter}FLOP"
    return f"{value:.3g}{NARROW}FLOP" if value else "–"


def dollars(value: float | None) -> str:
    """`$294,000`, `$0.031`."""
    if value is None:
        return "–"
    return f"${value:,.0f}" if value >= 1000 else f"${value:,.2f}" if value >= 1 else f"${value:.2g}"

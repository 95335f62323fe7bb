"""One audit of the command line: run it, say what came of it, write the JSON file and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from rlreason.errors import UsageError
from rlreason.report.audit import build_audit
from rlreason.rewards.audit import record
from rlreason.rewards.audit.conduct import Order, audit
from rlreason.rewards.audit.result import Audit, KindRates
from rlreason.types import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to audit, and where the JSON file goes; None: beside the plug-in, or audits/."""

    order: Order
    out: Path | None = None


def audit_file(request: Request, console: Console, say: Callable[[str], None]) -> bool:
    """Whether the reward passed. Raises UsageError where it does not load or the data can't be used."""
    subject = request.order.subject
    usual = record.default_path(subject.name, dict(subject.options), subject.verifier)
    path = request.out or usual
    if path.is_dir():
        path = path / usual.name
    if path.suffix != ".json":
        raise UsageError(f"--out {path}: name a .json file, or a folder that is there")
    try:
        with console.status(f"audit of {subject.name}") as status:
            result = audit(request.order, status.update)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{subject.name}: {error}") from None
    record.write(result, path)
    page = build_audit(path)
    for line in summary(result):
        say(line)
    say(f"audit: {path}")
    say(f"page:  {page}")
    return result.passed


def summary(result: Audit) -> list[str]:
    """What a terminal shows."""
    lines = [f"{result.identity.reward} ({result.kind})"]
    for one in result.findings:
        mark = {"fail": "FAIL   ", "warning": "warning", "note": "note   "}[one.severity]
        lines.append(f"  {mark} {one.name}: {one.title}")
        lines.append(f"          {_one_line(one.detail)}")
        if one.fix:
            lines.append(f"          -> {one.fix}")
    tried = sum(row.expected != "any" for row in result.attacks)
    if result.kind == "verifier":
        held = sum(row.expected != "any" and row.ok for row in result.attacks)
        lines.append(f"  red team: {held} of {tried} attacks were not paid")
    else:
        lines.append(f"  {len(result.attacks)} hostile texts got a score each")
    if result.calibration is not None:
        lines.append(f"  calibration on {result.calibration.source}:")
        lines += [f"    {_rates(one)}" for one in result.calibration.kinds]
    if result.speed is not None:
        speed = result.speed
        lines.append(
            f"  {speed.calls} calls, median {speed.median * 1000:.2g} ms, "
            f"worst {speed.worst:.2g} s of {speed.limit:g} s, {speed.memory_mb:,.0f} MB"
        )
    count = len(result.failures)
    lines.append("passed" if result.passed else f"failed: {count} finding{'s' if count > 1 else ''}")
    return lines


def _one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 200 else f"{flat[:200]}…"


def _rates(one: KindRates) -> str:
    return (
        f"{one.kind:<11} wrong paid {_rate(one.false_positive)}, right refused {_rate(one.false_negative)}"
        f"{f', {one.unscored} without a score' if one.unscored else ''}"
    )


def _rate(rate: Interval | None) -> str:
    if rate is None:
        return "–"
    return f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}] of {rate.count}"

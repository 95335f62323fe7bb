"""What all cases of one check share: the jail, the limits, the clock, and the count of what passed."""

from __future__ import annotations

import math
import signal
import time
from dataclasses import dataclass, field, replace

from rlreason.rewards.jail.jail import Jail, Limits
from rlreason.rewards.jail.run import Report, Run
from rlreason.rewards.limit import item_seconds
from rlreason.rewards.programs.packages import Packages
from rlreason.types import Verdict

#: What a case came to, where it did not pass, and why.
Problem = tuple[Verdict, str]


@dataclass(slots=True)
class Tally:
    """Cases passed so far, and the first that did not pass."""

    total: int
    passed: int = 0
    verdict: Verdict = Verdict.CORRECT
    #: Of the first failure: ``case 2 of 5: expected '7', got '6'``.
    detail: str = ""
    notes: list[str] = field(default_factory=list)

    def fail(self, place: str, verdict: Verdict, reason: str) -> None:
        """Record a failure; only the first is told."""
        if self.verdict is Verdict.CORRECT:
            self.verdict, self.detail = verdict, f"{place}: {reason}" if place else reason

    @property
    def failed(self) -> bool:
        """Whether anything did not pass."""
        return self.verdict is not Verdict.CORRECT


@dataclass(slots=True)
class Session:
    """What all cases of one check share."""

    jail: Jail
    limits: Limits
    packages: Packages
    #: End of the total limit, on the monotonic clock.
    deadline: float

    @classmethod
    def start(cls, jail: Jail, limits: Limits, packages: Packages) -> Session:
        """The total limit runs from now; within a reward pool it is no longer than what that gives to the item."""
        total = min(limits.total_seconds, item_seconds() or math.inf)
        limits = replace(limits, total_seconds=total)
        return cls(jail=jail, limits=limits, packages=packages, deadline=time.monotonic() + total)

    def case_deadline(self) -> float:
        """End of a case that starts now."""
        return min(self.deadline, time.monotonic() + self.limits.wall_seconds)

    def out_of_time(self) -> bool:
        """Whether the total limit has passed."""
        return time.monotonic() >= self.deadline


def quote(value: object, limit: int = 80) -> str:
    """A short ``repr`` of trusted or plain data."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer too long to print, a nest too deep
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}…"


def ending(run: Run, limits: Limits, *, cpu_seconds: float | None = None) -> Problem | None:
    """What a run's end says against it; None for a normal end."""
    report = run.report
    assert report is not None
    if run.flooded:
        return Verdict.WRONG, f"wrote more than {limits.output_bytes} bytes"
    if report.killed == "memory":
        return Verdict.WRONG, f"its processes took more than {limits.memory_mb} MB"
    if report.killed or _cpu_spent(report, cpu_seconds or limits.cpu_seconds):
        return Verdict.TIMED_OUT, "ran past its limit"
    if report.exit_code < 0:
        return Verdict.WRONG, f"died of signal {-report.exit_code}{_last_line(run)}"
    if report.exit_code > 0:
        return Verdict.WRONG, f"exit status {report.exit_code}{_last_line(run)}"
    return None


def _cpu_spent(report: Report, cpu_seconds: float) -> bool:
    killed = report.exit_code in {-signal.SIGKILL, -signal.SIGXCPU}
    return killed and report.cpu_seconds >= cpu_seconds - 0.5


def _last_line(run: Run) -> str:
    lines = run.stderr.decode("utf-8", "replace").strip().splitlines()
    return f" ({lines[-1][:200]})" if lines else ""

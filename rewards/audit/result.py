"""What an audit says. Everything here is plain data that goes into the JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rlreason.types import Interval

Severity = Literal["fail", "warning", "note"]
Kind = Literal["verifier", "shape"]
#: What honest behaviour is for one text: a score above the middle, one below it, or whatever the reward likes.
Expected = Literal["paid", "unpaid", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong. Example: ``Finding(name="contract.nan", severity="fail", title="returns NaN",
    detail="nan for an empty response", fix="return None where the check could not tell")``."""

    name: str
    severity: Severity
    title: str
    detail: str
    fix: str = ""
    #: Texts and scores that show it.
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was tried, whatever came of it. Example: ``Check(name="contract.order", outcome="ok",
    said="16 cases in 3 orders gave the same scores")``."""

    name: str
    outcome: Literal["ok", "fail", "warning", "skipped"]
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """One attack and what it got."""

    family: str
    attack: str
    problem: str
    text: str
    expected: Expected
    score: float | None
    verdict: str
    paid: bool
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRates:
    """Errors on labelled answers of one kind. Rates are of the answers that got a score; 95 % Wilson intervals.

    Example: ``KindRates(kind="integer", right=40, wrong=38, unscored=0, false_positive=Interval(…),
    false_negative=Interval(…))``.
    """

    kind: str
    right: int
    wrong: int
    #: Without a score: an exception, a limit, None.
    unscored: int
    #: Wrong answers that were paid; None: no wrong answer got a score.
    false_positive: Interval | None
    #: Right answers that were not paid.
    false_negative: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A labelled answer that was judged otherwise."""

    kind: str
    reference: str
    response: str
    label: bool
    score: float | None
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Rates by kind, "all" first, and answers to read."""

    source: str
    #: What the labels are worth, where that needs saying.
    labels: str
    kinds: tuple[KindRates, ...]
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Wall seconds of calls, and resident memory in MB."""

    calls: int
    median: float
    worst: float
    worst_case: str
    limit: float
    memory_mb: float
    memory_limit_mb: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What was audited, so that nothing else passes for it.

    Example: ``Identity(reward="judge.py:score", options={"limit": 3}, sources={"judge.py": "9f86…"},
    versions={"rlreason": "0.1.0", "python": "3.12"})``.
    """

    reward: str
    options: Mapping[str, object]
    #: File, relative to the plug-in's folder -> sha256 of its bytes.
    sources: Mapping[str, str]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The whole result."""

    identity: Identity
    kind: Kind
    verifier: str
    created: str
    command: str
    findings: tuple[Finding, ...]
    checks: tuple[Check, ...]
    attacks: tuple[AttackRow, ...] = ()
    calibration: Calibration | None = None
    speed: Speed | None = None
    #: Forms of answers that are paid, such as "tags".
    styles: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def failures(self) -> tuple[Finding, ...]:
        """What the verdict is for."""
        return tuple(one for one in self.findings if one.severity == "fail")

    @property
    def passed(self) -> bool:
        """Whether nothing failed; warnings don't fail an audit."""
        return not self.failures

"""How often a verifier is wrong on labelled answers, by kind of answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlreason.proportion import wilson
from rlreason.rewards.audit.case import Case, Seen
from rlreason.rewards.audit.labelled import Labelled, LabelledSet
from rlreason.rewards.audit.redteam import MAIN_KINDS, Levels
from rlreason.rewards.audit.result import Calibration, Check, Finding, KindRates, Mistake
from rlreason.rewards.audit.runner import Runner
from rlreason.rewards.audit.specimens import Style, completion_of
from rlreason.types import Interval, Verdict

#: Mistakes that are kept to be read: wrong answers that were paid first.
_KEPT = 40
_CLIP = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Largest rates that pass. An audit fails where the interval's lower end is above."""

    false_positive: float = 0.01
    false_negative: float = 0.10
    unscored: float = 0.02


def calibrate(
    runner: Runner, data: LabelledSet, style_of: Callable[[str], Style], levels: Levels
) -> tuple[Calibration, list[Seen]]:
    """Score every labelled answer. ``style_of``: the form that an answer of a kind is given where it has none."""
    seen: list[tuple[Labelled, Seen]] = []
    for number, row in enumerate(data.rows):
        text = style_of(row.kind).wrap(row.response) if row.bare else row.response
        verdict = Verdict.CORRECT if row.right else Verdict.WRONG
        case = Case(name=f"labelled {number + 1} ({row.kind})", problem=row.problem, completion=completion_of(text),
                    verdict=verdict, optional=row.kind not in MAIN_KINDS)  # fmt: skip
        seen.append((row, Seen(case=case, record=runner.ask(case.problem, case.completion, verdict))))
    kinds = sorted({row.kind for row, _ in seen})
    rates = [_rates("all", seen, levels), *(_rates(k, [p for p in seen if p[0].kind == k], levels) for k in kinds)]
    return Calibration(source=data.source, labels=data.labels, kinds=tuple(rates), mistakes=_mistakes(seen, levels)), [
        one for _, one in seen
    ]


def _rates(kind: str, seen: Sequence[tuple[Labelled, Seen]], levels: Levels) -> KindRates:
    scored = [(row.right, levels.paid(one.answer.score)) for row, one in seen if one.answer.score is not None]
    wrong = [paid for right, paid in scored if not right]
    right = [paid for right, paid in scored if right]
    return KindRates(
        kind=kind,
        right=sum(row.right for row, _ in seen),
        wrong=sum(not row.right for row, _ in seen),
        unscored=len(seen) - len(scored),
        false_positive=wilson(sum(wrong), len(wrong)) if wrong else None,
        false_negative=wilson(len(right) - sum(right), len(right)) if right else None,
    )


def _mistakes(seen: Sequence[tuple[Labelled, Seen]], levels: Levels) -> tuple[Mistake, ...]:
    found = []
    for row, one in seen:
        if one.answer.score is not None and levels.paid(one.answer.score) == row.right:
            continue
        found.append(
            Mistake(
                kind=row.kind,
                reference=str(row.problem.reference)[:_CLIP],
                response=row.response if len(row.response) <= _CLIP else f"… {row.response[-_CLIP:]}",
                label=row.right,
                score=one.answer.score,
                verdict=one.answer.verdict or f"{one.answer.fault}: {one.answer.shown}"[:_CLIP],
            )
        )
    found.sort(key=lambda one: (one.label, one.score is None))
    return tuple(found[:_KEPT])


def judge_calibration(result: Calibration, bounds: Bounds, *, own_data: bool) -> tuple[list[Finding], list[Check]]:
    """Where the rates are beyond the bounds, over all rows; of our own problems a kind that is refused is a warning."""
    total = result.kinds[0]
    findings: list[Finding] = []
    checks: list[Check] = []
    for name, rate, bound, title, what in (
        ("calibration.false_positive", total.false_positive, bounds.false_positive, "pays wrong answers", "wrong"),
        ("calibration.false_negative", total.false_negative, bounds.false_negative, "refuses right answers", "right"),
    ):
        if rate is None:
            checks.append(Check(name=name, outcome="skipped", said=f"no {what} answer among the labelled ones"))
            continue
        beyond = rate.low > bound
        mild = not own_data and name == "calibration.false_negative"
        said = f"{_share(rate)} of {rate.count} {what} answers; bound {bound:.1%}"
        if beyond:
            fix = "read the mistakes below: labels may be wrong too"
            severity = "warning" if mild else "fail"
            findings.append(Finding(name=name, severity=severity, title=title, detail=said, fix=fix))  # type: ignore[arg-type]
        elif own_data and rate.high > bound:
            said += f"; too few answers to show that it is below (at most {rate.high:.1%})"
        checks.append(Check(name=name, outcome="ok" if not beyond else "warning" if mild else "fail", said=said))
    count = total.right + total.wrong
    share = total.unscored / count
    beyond = own_data and share > bounds.unscored
    said = f"{total.unscored} of {count} answers got no score"
    if beyond:
        findings.append(
            Finding(name="calibration.unscored", severity="fail", title="gives many answers no score", detail=said,
                    fix="answers without a score are left out of the loss")
        )  # fmt: skip
    checks.append(Check(name="calibration.unscored", outcome="fail" if beyond else "ok", said=said))
    return findings, checks


def _share(rate: Interval) -> str:
    return f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"

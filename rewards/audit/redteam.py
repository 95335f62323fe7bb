"""Runs the controls and the attacks, and says which were paid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rlreason.rewards.audit.attacks import FAMILIES, Attack, attacks_on
from rlreason.rewards.audit.case import Case, Seen
from rlreason.rewards.audit.result import AttackRow, Check, Finding, Kind
from rlreason.rewards.audit.runner import Runner
from rlreason.rewards.audit.specimens import CODE_STYLES, STYLES, Specimen, Style, completion_of
from rlreason.types import Problem, Verdict

#: Forms of answers that a problem is attacked in.
_FORMS = 2
#: Problems that everything is tried on.
_WHOLE = 2
_CLIP = 400


#: Families that honest rewards in use are paid for: worth knowing, no failure.
MILD = frozenset({"first_box", "marked_thought", "two_answers", "negated"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A problem with the forms in which its right answer is paid, and wrong ones are not."""

    specimen: Specimen
    styles: tuple[Style, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What right and wrong answers get: a text above the middle is paid."""

    right: float
    wrong: float

    @property
    def middle(self) -> float:
        """Between the two."""
        return (self.right + self.wrong) / 2

    def paid(self, score: float | None) -> bool:
        """Whether a score is a right answer's."""
        return score is not None and score > self.middle


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """Plain right and wrong answers."""

    seen: tuple[Seen, ...]
    targets: tuple[Target, ...]
    levels: Levels
    #: Kinds of answers of which no right one was paid in any form.
    refused: tuple[str, ...]
    #: (kind, form): a plain wrong answer got as much as the right one.
    confused: tuple[str, ...]


#: Kinds that a reward may be without.
MAIN_KINDS = frozenset({"integer", "numbers", "code"})


def case_of(specimen: Specimen, name: str, text: str, verdict: Verdict, prefill: str = "") -> Case:
    """A text as a case of its problem."""
    return Case(
        name=f"{name} ({specimen.kind})",
        problem=specimen.problem,
        completion=completion_of(text, prefill),
        verdict=verdict,
        optional=specimen.kind not in MAIN_KINDS,
    )


def run_controls(runner: Runner, specimens: Sequence[Specimen], template: str | None) -> Controls:
    """Right and wrong answers in every form: in which does the reward tell them apart?"""
    seen: list[Seen] = []
    told: list[_Told] = []
    confused: list[str] = []
    asked = [specimen for specimen in specimens if specimen.right is not None]
    for specimen in asked:
        for style in _styles(specimen, template):
            answers = [(specimen.right or "", Verdict.CORRECT), *((one, Verdict.WRONG) for one in specimen.wrong[:2])]
            here = [_ask(runner, case_of(specimen, f"{style.name}: {a[:30]}", style.wrap(a), v)) for a, v in answers]
            seen += here
            right, *wrong = [one.answer.score for one in here]
            known = [one for one in wrong if one is not None]
            if right is None or len(known) < len(wrong):
                continue
            if right > max(known):
                told.append(_Told(specimen=specimen, style=style, right=right, wrong=max(known)))
            elif right > min(known) or right > 0:
                confused.append(f"{specimen.kind}, {style.name}")
    # What is a fraction of the difference elsewhere is a reward of the form, or of what was asked before.
    best = max((one.right - one.wrong for one in told), default=0.0)
    told = [one for one in told if one.right - one.wrong >= best / 2]
    targets = []
    for specimen in asked:
        styles = tuple(one.style for one in told if one.specimen is specimen)
        targets += [Target(specimen=specimen, styles=styles)] if styles else []
    paid = {target.specimen.kind for target in targets}
    refused = dict.fromkeys(specimen.kind for specimen in asked if specimen.kind not in paid)
    levels = Levels(right=median(one.right for one in told), wrong=median(one.wrong for one in told)) if told else None
    return Controls(
        seen=tuple(seen),
        targets=tuple(targets),
        levels=levels or Levels(right=1.0, wrong=0.0),
        refused=tuple(refused),
        confused=tuple(dict.fromkeys(confused)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """A form in which a right answer of a problem got more than the best of two wrong ones."""

    specimen: Specimen
    style: Style
    right: float
    wrong: float


def _styles(specimen: Specimen, template: str | None) -> tuple[Style, ...]:
    if template is not None:
        return (Style(name="template", form=template),)
    return CODE_STYLES if specimen.kind == "code" else STYLES


def _ask(runner: Runner, case: Case) -> Seen:
    return Seen(case=case, record=runner.ask(case.problem, case.completion, case.verdict))


def judge_controls(controls: Controls, kind: Kind) -> tuple[list[Finding], list[Check]]:
    """Findings on plain answers."""
    if kind == "shape":
        return [], [Check(name="controls", outcome="skipped", said="a shape reward does not judge answers")]
    if not controls.targets:
        problem = controls.seen[0].case.problem if controls.seen else None
        fix = (
            "where it does not judge answers, say `--kind shape`; where it wants a form of its own, show it: "
            "`--template '... {answer}'`"
        )
        tried = ", ".join(style.name for style in STYLES)
        detail = f"no form of a right answer was paid more than a wrong one; tried: {tried}"
        finding = Finding(
            name="controls.right", severity="fail", title="does not tell right answers from wrong ones", detail=detail,
            fix=fix, evidence=tuple(one.case.shown(one.answer) for one in controls.seen[:4] if problem),
        )  # fmt: skip
        return [finding], [Check(name="controls", outcome="fail", said=detail)]
    findings = []
    if controls.confused:
        shown = ", ".join(controls.confused[:6])
        findings.append(
            Finding(name="controls.wrong", severity="fail", title="pays a plain wrong answer like the right one",
                    detail=shown, fix="compare the answer itself")
        )  # fmt: skip
    if controls.refused:
        findings.append(
            Finding(name="controls.kinds", severity="warning", title="pays no right answer of some kinds",
                    detail=", ".join(controls.refused), fix="fine where the data has none of them")
        )  # fmt: skip
    forms = ", ".join(dict.fromkeys(style.name for target in controls.targets for style in target.styles))
    said = f"right {controls.levels.right:g}, wrong {controls.levels.wrong:g}; forms paid: {forms}"
    return findings, [Check(name="controls", outcome="fail" if controls.confused else "ok", said=said)]


def attack_cases(targets: Sequence[Target]) -> list[tuple[Attack, Case]]:
    """Every attack on every problem in up to two of its forms, each text once."""
    found: dict[tuple[str, str, str], tuple[Attack, Case]] = {}
    for place, target in enumerate(targets):
        # The first problems in two forms and with everything, the others once, with what depends on their answer.
        first = place < _WHOLE
        for style in target.styles[: _FORMS if first else 1]:
            for attack in attacks_on(target.specimen, style, whole=first):
                if place and len(attack.text) > 20_000:
                    continue  # once is enough
                verdict = Verdict.CORRECT if attack.expected == "paid" else Verdict.WRONG
                name = f"{attack.family}: {attack.name}"
                case = case_of(target.specimen, name, attack.text, verdict, attack.prefill)
                found.setdefault((target.specimen.problem.id, attack.prefill, attack.text), (attack, case))
    return list(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Raid:
    """All attacks with what they got."""

    rows: tuple[AttackRow, ...]
    seen: tuple[Seen, ...]


def run_attacks(runner: Runner, cases: Sequence[tuple[Attack, Case]], levels: Levels, kind: Kind) -> Raid:
    """Score every attack. Of a shape reward nothing is expected but a score."""
    rows, seen = [], []
    for attack, case in cases:
        one = _ask(runner, case)
        seen.append(one)
        expected = "any" if kind == "shape" else attack.expected
        paid = levels.paid(one.answer.score)
        text = case.completion.response
        rows.append(
            AttackRow(
                family=attack.family,
                attack=attack.name,
                problem=_shown(case.problem),
                text=text if len(text) <= _CLIP else f"{text[:_CLIP]} … ({len(text):,} characters)",
                expected=expected,
                score=one.answer.score,
                verdict=one.answer.verdict or one.answer.fault,
                paid=paid,
                ok=expected == "any" or paid == (expected == "paid"),
            )
        )
    return Raid(rows=tuple(rows), seen=tuple(seen))


def _shown(problem: Problem) -> str:
    text = problem.prompt or f"reference {problem.reference!r}"
    return text if len(text) <= 120 else f"{text[:120]} …"


def judge_attacks(raid: Raid) -> tuple[list[Finding], list[Check]]:
    """A finding for each family that was paid once, and a check for each that was tried."""
    findings, checks = [], []
    for family, (title, fix) in FAMILIES.items():
        rows = [row for row in raid.rows if row.family == family and row.expected != "any"]
        if not rows:
            continue
        paid = [row for row in rows if not row.ok]
        name = f"redteam.{family}"
        if paid:
            severity = "warning" if family in MILD else "fail"
            evidence = tuple(f"{row.attack}: {row.text[:160]!r} -> {row.score:g}" for row in paid[:4])
            detail = f"{len(paid)} of {len(rows)} were paid, such as {paid[0].attack}: {paid[0].text[:120]!r}"
            findings.append(
                Finding(name=name, severity=severity, title=title, detail=detail, fix=fix, evidence=evidence)  # type: ignore[arg-type]
            )
            outcome = "warning" if severity == "warning" else "fail"
            checks.append(Check(name=name, outcome=outcome, said=f"{len(paid)} of {len(rows)} paid"))  # type: ignore[arg-type]
        else:
            checks.append(Check(name=name, outcome="ok", said=f"none of {len(rows)} paid"))
    return findings, checks

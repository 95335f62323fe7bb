"""Does the score of a completion depend on what it is scored together with, or on its place there?

A reward of one completion is only ever alone in a call; what came before is the business of ``contract``. A reward of a
group may compare its completions, so only the place must not count; one of a step (TRL's, verl's batch functions) is
given completions of many problems, and a verifier must judge each alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlreason.rewards.audit.case import Case
from rlreason.rewards.audit.result import Check, Finding, Kind
from rlreason.rewards.audit.runner import Runner
from rlreason.rewards.audit.subject import Answer, Call, Loaded, Subject

_NAME = "contract.company"


def company(subject: Subject, loaded: Loaded, kind: Kind, cases: Sequence[Case]) -> tuple[list[Finding], list[Check]]:
    """Findings of the same completions alone, together, and together in another order."""
    if loaded.per == "completion":
        return [], [Check(name=_NAME, outcome="ok", said="each completion is scored in a call of its own")]
    if loaded.per == "group":
        most = max({case.problem.id for case in cases}, key=lambda name: sum(c.problem.id == name for c in cases))
        cases = [case for case in cases if case.problem.id == most]
    if len(cases) < 2:
        return [], [Check(name=_NAME, outcome="skipped", said="too few cases")]
    with Runner(subject, hash_seed=1) as runner:
        together = _ask(runner, cases)
        turned = list(reversed(_ask(runner, list(reversed(cases)))))
        alone = [_ask(runner, [case])[0] for case in cases]
    moved = _different(cases, together, turned)
    apart = _different(cases, together, alone)
    findings, checks = [], []
    if moved:
        findings.append(_finding("contract.place", "the score depends on the place in the batch", moved, "fail"))
    said = findings[0].title if moved else f"{len(cases)} completions in another order kept their scores"
    checks.append(Check(name="contract.place", outcome="fail" if moved else "ok", said=said))
    if loaded.per == "group":
        said = f"it compares: {len(apart)} of {len(cases)} scores are others alone" if apart else "as alone"
        return findings, [*checks, Check(name=_NAME, outcome="ok", said=said)]
    if apart:
        severity = "fail" if kind == "verifier" else "warning"
        findings.append(_finding(_NAME, "the score depends on what else is in the batch", apart, severity))
    said = f"{len(apart)} of {len(cases)} scores are others alone" if apart else f"{len(cases)} completions: as alone"
    outcome = "ok" if not apart else "fail" if kind == "verifier" else "warning"
    return findings, [*checks, Check(name=_NAME, outcome=outcome, said=said)]  # type: ignore[arg-type]


def _ask(runner: Runner, cases: Sequence[Case]) -> list[Answer]:
    call = Call(
        problems=tuple(case.problem for case in cases),
        completions=tuple(case.completion for case in cases),
        verdicts=tuple(case.verdict for case in cases),
    )
    return list(runner.ask_many(call).answers)


def _different(
    cases: Sequence[Case], first: Sequence[Answer], second: Sequence[Answer]
) -> list[tuple[Case, Answer, Answer]]:
    rows = zip(cases, first, second, strict=True)
    return [row for row in rows if row[1].key != row[2].key and "timed_out" not in {row[1].fault, row[2].fault}]


def _finding(name: str, title: str, rows: Sequence[tuple[Case, Answer, Answer]], severity: str) -> Finding:
    shown = tuple(f"{case.shown(one)}, then {_got(other)}" for case, one, other in rows[:4])
    return Finding(
        name=name,
        severity="fail" if severity == "fail" else "warning",
        title=title,
        detail=f"{len(rows)} completions, such as {shown[0]}",
        fix="score each completion by its own problem and text",
        evidence=shown,
    )


def _got(answer: Answer) -> str:
    return f"{answer.score:g}" if answer.score is not None else answer.shown

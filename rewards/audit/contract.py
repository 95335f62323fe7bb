"""The contract of a reward: what every call must keep, whatever the text.

Passes: *forward* and again *backward* in one process, each call twice in a row at the end; *forward* in a second
process with another hash seed. A score that is not the same twice in a row depends on a draw, on the clock or on what
was scored before; one that is the same forward in both processes and another backward depends on the order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlreason.rewards.audit.case import Case, Seen
from rlreason.rewards.audit.child import of_kind
from rlreason.rewards.audit.result import Check, Finding, Kind
from rlreason.rewards.audit.runner import Runner
from rlreason.rewards.audit.subject import Subject
from rlreason.rewards.audit.watch import CACHE, DRAWN, SET_ONCE

#: Evidence of one finding.
_SHOWN = 4
#: Growth of memory that is no accident: in all, and for one call.
_LEAK_MB, _LEAK_KB_CALL = 8.0, 64.0
_LEAK_CALLS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """The same cases scored in four ways, each in the order of the cases."""

    cases: tuple[Case, ...]
    forward: tuple[Seen, ...]
    backward: tuple[Seen, ...]
    #: Twice in a row.
    twice: tuple[tuple[Seen, Seen], ...]
    #: Forward, in another process.
    elsewhere: tuple[Seen, ...]
    #: Memory in MB after each of many equal calls at the end; () where calls are slow.
    sizes: tuple[float, ...]

    @property
    def every(self) -> list[Seen]:
        """All that was seen."""
        return [*self.forward, *self.backward, *(one for pair in self.twice for one in pair), *self.elsewhere]


def run_passes(subject: Subject, cases: Sequence[Case]) -> Passes:
    """Score the cases in four ways, in processes that have scored nothing before."""
    with Runner(subject, hash_seed=1) as first, Runner(subject, hash_seed=2) as second:
        first.launch()
        second.launch()

        def ask(runner: Runner, case: Case) -> Seen:
            return Seen(case=case, record=runner.ask(case.problem, case.completion, case.verdict))

        forward = tuple(ask(first, case) for case in cases)
        backward = tuple(reversed([ask(first, case) for case in reversed(cases)]))
        twice = tuple((ask(first, case), ask(first, case)) for case in cases)
        elsewhere = tuple(ask(second, case) for case in cases)
        sizes = _sizes(first, cases[0])
    return Passes(cases=tuple(cases), forward=forward, backward=backward, twice=twice, elsewhere=elsewhere, sizes=sizes)


def consistency(passes: Passes) -> tuple[list[Finding], list[Check]]:
    """Determinism, independence of the order, and of the process."""
    again = [
        (one, other) for one, other in passes.twice if one.record.keys != other.record.keys and not _lost(one, other)
    ]
    trips = zip(passes.forward, passes.backward, passes.elsewhere, strict=True)
    rows = [row for row in trips if not _lost(*row)]
    order = [(a, b) for a, b, c in rows if a.record.keys == c.record.keys != b.record.keys]
    process = [(a, c) for a, b, c in rows if a.record.keys == b.record.keys != c.record.keys]
    count = len(passes.cases)
    findings, checks = [], []
    for name, pairs, title, said, fix in (
        ("contract.determinism", again, "the same call gives another score the second time",
         f"{count} calls made twice in a row gave the same", "use no random draw, clock or memory of earlier calls"),
        ("contract.order", order, "the score depends on what was scored before",
         f"{count} cases forward and backward gave the same", "keep nothing from one call to the next"),
        ("contract.process", process, "another process gives another score",
         f"{count} cases in a fresh process, with another hash seed, gave the same",
         "don't depend on the order of a set, on hash(), on the process id or on the clock"),
    ):  # fmt: skip
        if pairs:
            evidence = tuple(f"{a.case.shown(a.answer)}, then {_got(b)}" for a, b in pairs[:_SHOWN])
            detail = f"{len(pairs)} of {count} cases"
            findings.append(Finding(name=name, severity="fail", title=title, detail=detail, fix=fix, evidence=evidence))
        checks.append(Check(name=name, outcome="fail" if pairs else "ok", said=title if pairs else said))
    return findings, checks


def _lost(*seen: Seen) -> bool:
    """Whether a limit or a crash, which may be the machine's, makes them incomparable."""
    return any(one.answer.fault in {"timed_out", "crashed"} for one in seen)


def _got(seen: Seen) -> str:
    return f"{seen.answer.score:g}" if seen.answer.score is not None else seen.answer.shown


def faults(seen: Sequence[Seen], kind: Kind) -> tuple[list[Finding], list[Check]]:
    """What single calls returned that no reward may."""
    shape = kind == "shape"
    scored = {one.case.problem.id for one in seen if one.answer.fault != "none"}
    rules: list[tuple[str, Callable[[Seen], bool], str, str]] = [
        ("contract.empty", lambda s: s.answer.fault == "raised" and s.case.blank, "raises on an empty response",
         "give the wrong score where there is nothing to read"),
        ("contract.raises", lambda s: s.answer.fault == "raised" and not s.case.blank, "raises an exception",
         "a policy can write any text: an exception is BROKEN, and the completion is left out of the loss"),
        # A problem of which no answer gets a score has a reference that can't be used: calibration counts it.
        ("contract.none", lambda s: s.answer.fault == "none" and s.case.problem.id in scored,
         "gives no score for a text that a policy can choose",
         "None is left out of the loss, so a policy could avoid bad scores: give the wrong score"),
        ("contract.nan", lambda s: s.answer.fault == "nan", "returns NaN or an infinity", "return a finite number"),
        ("contract.type", lambda s: s.answer.fault == "type", "returns what is no score",
         "return a float, a bool, None or a RewardResult"),
        ("contract.limit", lambda s: s.answer.fault == "timed_out", "runs past the limit of seconds",
         "bound the work by the length of the text"),
        ("contract.crash", lambda s: s.answer.fault == "crashed", "ends its process", "never exit or abort"),
        ("contract.memory", lambda s: s.answer.fault == "memory", "runs out of its memory", "bound what is built"),
    ]  # fmt: skip
    findings, checks = [], []
    for name, rule, title, fix in rules:
        hits = [one for one in seen if rule(one)]
        hard = [one for one in hits if not one.case.optional]
        mild = (shape and name == "contract.none") or not hard
        if hits:
            findings.append(_finding(name, "warning" if mild else "fail", title, fix, hits))
        said = title if hits else f"not once in {len(seen)} calls"
        checks.append(Check(name=name, outcome="ok" if not hits else "warning" if mild else "fail", said=said))
    return findings, checks


def _finding(name: str, severity: str, title: str, fix: str, hits: Sequence[Seen]) -> Finding:
    distinct = list({one.case.name: one for one in hits}.values())
    return Finding(
        name=name,
        severity="fail" if severity == "fail" else "warning",
        title=title,
        detail=f"{len(hits)} calls, such as {distinct[0].case.name}: {distinct[0].answer.shown[:200]}",
        fix=fix,
        evidence=tuple(one.case.shown(one.answer) for one in distinct[:_SHOWN]),
    )


def effects(seen: Sequence[Seen], subject: Subject) -> tuple[list[Finding], list[Check]]:
    """What calls did beside computing."""
    rules = (
        ("network", "contract.network", "asks the network", "declare it: `--allow network`"),
        ("files", "contract.files", "writes or removes files", "keep nothing on disk, or declare it: `--allow files`"),
        ("processes", "contract.processes", "starts processes", "declare it: `--allow processes`"),
        ("eval", "contract.eval", "compiles or runs text of the completion as Python",
         "never eval, exec or sympify an answer: parse it"),
    )  # fmt: skip
    findings, checks = [], []
    for kind, name, title, fix in rules:
        details = _details(seen, lambda one, kind=kind: of_kind(one.record.events, kind))  # type: ignore[misc]
        fine = kind in subject.allowed
        if details and not fine:
            findings.append(_effect(name, title, fix, details))
        said = f"allowed, and done in {len(details)} ways" if details and fine else title if details else "none seen"
        checks.append(Check(name=name, outcome="fail" if details and not fine else "ok", said=said))
    found, check = _sleeps(seen, mild="network" in subject.allowed)
    return [*findings, *found], [*checks, check]


def _sleeps(seen: Sequence[Seen], *, mild: bool) -> tuple[list[Finding], Check]:
    naps = [one for one in seen if one.record.slept > 0]
    if not naps:
        return [], Check(name="contract.sleeps", outcome="ok", said="not once")
    longest = max(naps, key=lambda one: one.record.slept)
    finding = Finding(
        name="contract.sleeps",
        severity="warning" if mild else "fail",
        title="sleeps",
        detail=f"{longest.record.slept:g} s for {longest.case.name}; {len(naps)} of {len(seen)} calls",
        fix="a reward that waits holds up the whole step: compute, or declare `--allow network` for a judge",
    )
    return [finding], Check(name="contract.sleeps", outcome="warning" if mild else "fail", said=finding.detail)


def _details(seen: Iterable[Seen], of: Callable[[Seen], Sequence[str]]) -> list[str]:
    """Distinct details with the case that showed each first."""
    found: dict[str, str] = {}
    for one in seen:
        for detail in of(one):
            found.setdefault(detail, f"{one.case.name}: {detail}")
    return list(found.values())


def _effect(name: str, title: str, fix: str, details: Sequence[str]) -> Finding:
    return Finding(
        name=name, severity="fail", title=title, detail=details[0], fix=fix, evidence=tuple(details[:_SHOWN])
    )


def purity(seen: Sequence[Seen], *, consistent: bool) -> tuple[list[Finding], list[Check]]:
    """Inputs and globals stay as they are."""
    findings, checks = [], []
    changed = _details(seen, lambda one: one.record.changed)
    if changed:
        fix = "copy before you change: others score the same problem"
        findings.append(_effect("contract.mutation", "changes the problem or the completion", fix, changed))
    said = "changes its inputs" if changed else f"problem and completion were the same after {len(seen)} calls"
    checks.append(Check(name="contract.mutation", outcome="fail" if changed else "ok", said=said))
    names = list(dict.fromkeys(name for one in seen for name in one.record.state))
    bad = [name for name in names if not name.endswith((CACHE, SET_ONCE, DRAWN))] if consistent else names
    if bad:
        fix = "keep nothing from one call to the next; a run has several workers, each with globals of its own"
        findings.append(_effect("contract.global_state", "changes global state", fix, bad))
    elif names:
        detail = f"{', '.join(names[:_SHOWN])}; scores were the same"
        title = "keeps something between calls"
        findings.append(Finding(name="contract.global_state", severity="warning", title=title, detail=detail))
    outcome = "fail" if bad else "warning" if names else "ok"
    said = ", ".join((bad or names)[:_SHOWN]) or "globals of the plug-in, environment and folder stayed as they were"
    checks.append(Check(name="contract.global_state", outcome=outcome, said=said))  # type: ignore[arg-type]
    return findings, checks


def _sizes(runner: Runner, case: Case) -> tuple[float, ...]:
    """MB after each of many equal calls; () where they are too slow to repeat."""
    sizes = []
    for _ in range(_LEAK_CALLS):
        record = runner.ask(case.problem, case.completion, case.verdict)
        sizes.append(record.resident_mb)
        if record.seconds > 0.1 or runner.gave_up:
            return ()
    return tuple(sizes)


def leak(sizes: Sequence[float]) -> tuple[list[Finding], Check]:
    """Memory over the same call many times, the first half of which may fill caches."""
    if not sizes:
        return [], Check(name="contract.leak", outcome="skipped", said="calls are too slow to repeat many")
    half = len(sizes) // 2
    calls = len(sizes) - 1 - half
    grown = sizes[-1] - sizes[half]
    each = grown * 1024 / calls
    if grown < _LEAK_MB or each < _LEAK_KB_CALL:
        said = f"{len(sizes)} equal calls: {grown:+.1f} MB in the second half"
        return [], Check(name="contract.leak", outcome="ok", said=said)
    detail = f"{each:,.0f} KB a call, {grown:,.0f} MB in {calls} equal calls"
    fix = "free what a call builds; the worker is ended at its limit of memory"
    title = "memory grows with every call"
    finding = Finding(name="contract.leak", severity="fail", title=title, detail=detail, fix=fix)
    return [finding], Check(name="contract.leak", outcome="fail", said=detail)


def ranges(seen: Sequence[Seen], declared: tuple[float, float] | None) -> tuple[list[Finding], Check]:
    """Scores within what was declared."""
    scores = [one.answer.score for one in seen if one.answer.score is not None]
    if not scores:
        return [], Check(name="contract.range", outcome="skipped", said="no scores")
    found = f"{min(scores):g} to {max(scores):g}"
    if declared is None:
        return [], Check(name="contract.range", outcome="ok", said=f"{found}; no range was declared")
    low, high = declared
    outside = [one for one in seen if one.answer.score is not None and not low <= one.answer.score <= high]
    if not outside:
        return [], Check(name="contract.range", outcome="ok", said=f"{found}, within {low:g} to {high:g}")
    title = f"scores outside of {low:g} to {high:g}"
    finding = _finding("contract.range", "fail", title, "keep to the range that is declared", outside)
    return [finding], Check(name="contract.range", outcome="fail", said=found)

"""One audit from the reward's name to its verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rlreason.rewards.audit.attacks import Attack
from rlreason.rewards.audit.calibrate import Bounds, calibrate, judge_calibration
from rlreason.rewards.audit.case import Case, Seen
from rlreason.rewards.audit.company import company
from rlreason.rewards.audit.contract import consistency, effects, faults, leak, purity, ranges, run_passes
from rlreason.rewards.audit.identity import identify
from rlreason.rewards.audit.labelled import LabelledSet, of_specimens, read_labelled
from rlreason.rewards.audit.redteam import (
    Controls,
    Target,
    attack_cases,
    judge_attacks,
    judge_controls,
    run_attacks,
    run_controls,
)
from rlreason.rewards.audit.result import Audit, Check, Finding, Kind, Speed
from rlreason.rewards.audit.runner import Runner
from rlreason.rewards.audit.specimens import (
    CODE_STYLES,
    STYLES,
    Specimen,
    Style,
    built_in,
    specimen_of,
)
from rlreason.rewards.audit.subject import MEMORY_MB, Loaded, Subject

#: Problems of the user's data that are attacked.
_ATTACKED = 8
#: Cases whose order and repetition are tried.
_REPEATED = 16
#: Rewards that ship and judge no answer; rewards of other names do, unless they are said not to.
SHAPES = frozenset({"format", "length", "overlong", "repetition", "language"})

#: What the form of a name declares: a reward server is asked over the network.
_DECLARED = {"http": frozenset({"network"}), "https": frozenset({"network"})}

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be audited and how. Example: ``Order(subject=Subject(name="judge.py:score", verifier="math"))``."""

    subject: Subject
    #: None: what the registry says.
    kind: Kind | None = None
    data: Path | None = None
    #: A form of responses with ``{answer}``, where the reward wants one of its own.
    template: str | None = None
    declared_range: tuple[float, float] | None = None
    #: Problems that are attacked.
    problems: int = 9
    bounds: Bounds = field(default_factory=Bounds)
    command: str = ""


def audit(order: Order, tell: Tell = lambda text: None) -> Audit:
    """Run every part and come to a verdict.

    Raises ValueError where the reward does not load, and UsageError for data that can't be used.
    """
    subject = replace(order.subject, allowed=order.subject.allowed | _declared(order.subject))
    order = replace(order, subject=subject)
    data = None if order.data is None else read_labelled(order.data, subject.verifier)
    with Runner(subject, hash_seed=1) as runner:
        loaded = runner.start()
        kind = order.kind or _kind(subject, loaded)
        specimens = _specimens(data, subject, kind)[: order.problems]
        tell(f"{subject.name}: {kind}, {len(specimens)} problems")
        controls = run_controls(runner, specimens, order.template)
        findings, checks = judge_controls(controls, kind)
        cases = attack_cases(controls.targets) if kind == "verifier" else _shape_attacks(specimens)
        tell(f"red team: {len(cases)} attacks")
        raid = run_attacks(runner, cases, controls.levels, kind)
        seen = [*controls.seen, *raid.seen]
        calibration = None
        if kind == "verifier" and controls.targets:
            labelled = data or of_specimens(specimens)
            tell(f"calibration: {len(labelled.rows)} labelled answers")
            calibration, more = calibrate(runner, labelled, _style_of(controls), controls.levels)
            seen += more
    tell("contract")
    found = _contract(order, loaded, kind, controls, seen)
    findings, checks = [*findings, *found[0]], [*checks, *found[1]]
    if kind == "verifier":
        found = judge_attacks(raid)
        findings, checks = [*findings, *found[0]], [*checks, *found[1]]
    if calibration is not None:
        found = judge_calibration(calibration, order.bounds, own_data=data is not None)
        findings, checks = [*findings, *found[0]], [*checks, *found[1]]
    return Audit(
        identity=identify(subject.name, dict(subject.options), subject.verifier),
        kind=kind,
        verifier=subject.verifier,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=order.command,
        findings=tuple(sorted(findings, key=lambda one: ("fail", "warning", "note").index(one.severity))),
        checks=tuple(checks),
        attacks=raid.rows,
        calibration=calibration,
        speed=_speed(seen, subject, loaded),
        styles=tuple(dict.fromkeys(style.name for target in controls.targets for style in target.styles)),
        allowed=tuple(sorted(subject.allowed)),
    )


def _declared(subject: Subject) -> frozenset[str]:
    return _DECLARED.get(subject.name.partition(":")[0], frozenset())


def _kind(subject: Subject, loaded: Loaded) -> Kind:
    return "shape" if subject.name in SHAPES and not loaded.verifier else "verifier"


def _specimens(data: LabelledSet | None, subject: Subject, kind: Kind) -> tuple[Specimen, ...]:
    """Problems to attack: of the data, each kind of answer in turn; else our own."""
    own = built_in(subject.verifier)
    if data is None or kind == "shape":
        return own
    by_kind: dict[str, dict[str, Specimen]] = {}
    for row in data.rows:
        right = row.response if row.right and row.kind in {"code", "numbers"} and row.bare else None
        specimen = specimen_of(row.problem, right)
        if specimen is not None:
            by_kind.setdefault(specimen.kind, {}).setdefault(str(row.problem.reference), specimen)
    found: list[Specimen] = []
    queues = [list(one.values()) for one in by_kind.values()]
    while len(found) < _ATTACKED and any(queues):
        for queue in queues:
            if queue and len(found) < _ATTACKED:
                found.append(queue.pop(0))
    return tuple(found) or own


def _shape_attacks(specimens: Sequence[Specimen]) -> list[tuple[Attack, Case]]:
    return attack_cases([Target(specimen=specimens[0], styles=(STYLES[0], STYLES[1]))])


def _style_of(controls: Controls) -> Callable[[str], Style]:
    """The form in which right answers of a kind are paid."""
    by_kind = {target.specimen.kind: target.styles[0] for target in reversed(controls.targets)}
    first = controls.targets[0].styles[0]
    return lambda kind: by_kind.get(kind, CODE_STYLES[0] if kind == "code" else first)


def _contract(
    order: Order, loaded: Loaded, kind: Kind, controls: Controls, seen: Sequence[Seen]
) -> tuple[list[Finding], list[Check]]:
    subject = order.subject
    cases = _contract_cases(seen)
    passes = run_passes(subject, cases)
    every = [*seen, *passes.every]
    findings, checks = consistency(passes)
    if not loaded.deterministic:
        findings = [replace(one, severity="warning", detail=f"{one.detail}; declared") for one in findings]
        checks = [replace(one, outcome="warning" if one.outcome == "fail" else one.outcome) for one in checks]
    consistent = not findings
    for found in (
        company(subject, loaded, kind, cases),
        faults(every, kind),
        effects(every, subject),
        purity(every, consistent=consistent),
    ):
        findings, checks = [*findings, *found[0]], [*checks, *found[1]]
    found_range, check = ranges(every, order.declared_range)
    findings, checks = [*findings, *found_range], [*checks, check]
    found_leak, check = leak(passes.sizes)
    return [*findings, *found_leak], [*checks, check]


def _contract_cases(seen: Sequence[Seen]) -> list[Case]:
    """Cases with different scores and texts, without those that run long."""
    quick = [one for one in seen if one.record.seconds < 2 and len(one.case.completion.text) < 20_000]
    by_score: dict[object, list[Case]] = {}
    for one in quick or seen[:1]:
        by_score.setdefault((one.answer.key, one.case.problem.id), []).append(one.case)
    queues = list(by_score.values())
    found: list[Case] = []
    while len(found) < _REPEATED and any(queues):
        for queue in queues:
            if queue and len(found) < _REPEATED:
                found.append(queue.pop(0))
    return found


def _speed(seen: Sequence[Seen], subject: Subject, loaded: Loaded) -> Speed:
    times = [one.record.seconds + one.record.slept for one in seen]
    worst = max(range(len(times)), key=times.__getitem__)
    memory = subject.memory_mb if subject.memory_mb is not None else loaded.memory_mb
    return Speed(
        calls=len(times),
        median=median(times),
        worst=times[worst],
        worst_case=seen[worst].case.name,
        limit=subject.limit(loaded.seconds),
        memory_mb=max(one.record.resident_mb for one in seen),
        memory_limit_mb=MEMORY_MB if memory is None else memory,
    )

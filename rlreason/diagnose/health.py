"""Watches a stage: warns once for each rule, and stops what can't be learning. docs/health.md says what and when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rlreason import extensions
from rlreason.config.health import HealthConfig
from rlreason.diagnose import rules
from rlreason.diagnose.rules import History, Rule
from rlreason.errors import HealthStop
from rlreason.types import StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one rule found. Example: ``Finding(rule="truncated", step=7, text="31% of the completions are…")``."""

    rule: str
    step: int
    text: str


def users_rules(limits: HealthConfig) -> dict[str, Rule]:
    """The rules that the recipe names in ``health.rules``, imported. Raises UsageError."""
    loaded = {name: extensions.load(extensions.HEALTH, name, "health.rules") for name in limits.rules}
    return {extensions.label(name): rule for name, rule in loaded.items()}


@dataclass(slots=True, kw_only=True)
class StageHealth:
    """The rules over one stage: ``StageHealth(stage="grpo", kind="grpo", limits=HealthConfig()).step(report)``.

    It knows nothing but what is in the stage's metrics.jsonl, so a stage that goes on reads that again.
    """

    stage: str
    limits: HealthConfig
    history: History
    #: Rules that have spoken.
    spoken: set[str] = field(default_factory=set)
    #: By name: those that ship, then the user's own.
    rules: Mapping[str, Rule] = field(init=False)

    def __post_init__(self) -> None:
        """Raises UsageError where a rule of the recipe can't be imported."""
        self.rules = {**rules.WARNINGS, **users_rules(self.limits)}

    def replay(self, rows: Iterable[Mapping[str, object]], spoken: Iterable[str]) -> None:
        """Take in the lines of an earlier process, and the names of the rules that spoke in it."""
        for row in rows:
            numbers = {key: float(value) for key, value in row.items() if isinstance(value, (int, float))}
            self.history.add(int(numbers["step"]), numbers)
        self.spoken |= set(spoken)

    def begin(self, *, proved: bool) -> list[Finding]:
        """Before the first step. ``proved``: every delivery of weights is, by the canary."""
        if proved or self.history.kind != "grpo":
            return []
        text = "deliveries are not proved (sampler.canary = false): weights that arrive wrong would not be noticed"
        return self._say("unproved_delivery", 0, text)

    def broke(self, detail: str) -> None:
        """Why the first completion broke of the step that comes next; "": none did."""
        self.history.evidence = detail or self.history.evidence

    def step(self, report: StepReport) -> list[Finding]:
        """Findings of a step that is recorded. Raises HealthStop where all of its verdicts are BROKEN."""
        self.history.add(report.step, report.scalars)
        reason = rules.all_broken(self.history)
        if reason is not None:
            raise HealthStop(f"stage {self.stage}, step {report.step}: {reason}")
        found: list[Finding] = []
        for name, rule in self.rules.items():
            text = None if name in self.spoken else self._asked(name, rule)
            if text is not None:
                found += self._say(name, report.step, text)
        return found

    def _asked(self, name: str, rule: Rule) -> str | None:
        """What the rule says. A rule of the user's own that fails says so, and the run goes on."""
        if name in rules.WARNINGS:
            return rule(self.history, self.limits)
        try:
            text = rule(self.history, self.limits)
        except Exception as error:
            return f"the health rule {name} failed and is not asked again: {type(error).__name__}: {error}"
        return None if text is None else str(text)

    def end(self, trained_tokens: int) -> None:
        """After the last step. Raises HealthStop where the stage learnt nothing."""
        reason = rules.nothing_learnt(self.history, trained_tokens)
        if reason is not None:
            raise HealthStop(f"stage {self.stage}: {reason}")

    def _say(self, rule: str, step: int, text: str) -> list[Finding]:
        if rule in self.spoken:
            return []
        self.spoken.add(rule)
        return [Finding(rule=rule, step=step, text=text)]

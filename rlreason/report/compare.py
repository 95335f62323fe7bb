"""Two runs on one page: what differs in their recipes, what they reached, and their curves over each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

from rlreason.report import findings, page
from rlreason.report.read import Evaluation, Json, Run, Stage
from rlreason.report.verdicts import compare_all, result_line
from rlreason.types import Interval

SCRIPTS = ("draw.js", "charts.js", "panels.js", "compare.js")
#: Recipe keys that are listed; more are counted.
MAX_DIFFERENCES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One model on one suite in both runs. ``gain``: the second's accuracy minus the first's, with its interval."""

    suite: str
    model: str
    first: Evaluation | None
    second: Evaluation | None

    @property
    def gain(self) -> Interval | None:
        """None where one of them was not measured."""
        if self.first is None or self.second is None:
            return None
        return findings.difference(self.second.accuracy, self.first.accuracy)


def differences(first: Run, second: Run) -> list[tuple[str, str, str]]:
    """(key, value in the first, value in the second) of the recipe keys that are not alike."""
    old, new = (dict(_flat("", run.settings)) for run in (first, second))
    keys = [*old, *(key for key in new if key not in old)]
    return [(key, old.get(key, "–"), new.get(key, "–")) for key in keys if old.get(key) != new.get(key)]


def _flat(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), part)
    elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        for place, part in enumerate(value):
            yield from _flat(f"{prefix}.{part.get('name', place)}", part)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def pairs(first: Run, second: Run) -> list[Pair]:
    """Every model that was evaluated in either run, the held-out suite first."""
    found = [{(one.suite, one.model): one for one in run.evaluations} for run in (first, second)]
    keys = sorted(found[0] | found[1], key=lambda key: (key[0] != "heldout", key[0]))
    return [
        Pair(suite=suite, model=model, first=found[0].get((suite, model)), second=found[1].get((suite, model)))
        for suite, model in keys
    ]


def stages(first: Run, second: Run) -> list[Json]:
    """The stages that trained in both runs under one name, with the series of each."""
    theirs = {stage.name: stage for stage in second.stages}
    both = [(one, theirs[one.name]) for one in first.stages if one.name in theirs and one.kind != "eval"]
    return [
        {"name": one.name, "kind": one.kind, "runs": [page.stage_data(one), page.stage_data(other)]}
        for one, other in both
        if one.steps and other.steps
    ]


def alone(first: Run, second: Run) -> list[str]:
    """Stages that only one of the runs has, in words."""

    def missing(run: Run, other: Run, which: str) -> list[str]:
        names: set[str] = {stage.name for stage in other.stages}
        found: list[Stage] = [stage for stage in run.stages if stage.name not in names]
        return [f"{stage.name} ({stage.kind}) is in {which} only" for stage in found]

    return [*missing(first, second, "A"), *missing(second, first, "B")]


def _result(run: Run) -> str | None:
    suites = findings.suites(run)
    return result_line(run, suites, compare_all(run, suites))


def render(first: Run, second: Run) -> str:
    """The whole page."""
    script = "\n".join(page.asset(name) for name in SCRIPTS)
    found = stages(first, second)
    different = differences(first, second)
    return (
        page.environment()
        .from_string(page.asset("compare.html"))
        .render(
            runs=[("A", first), ("B", second)],
            headlines=[_result(run) for run in (first, second)],
            seconds=[page.total_seconds(run) for run in (first, second)],
            hardware=[page.provenance(run.manifest)["machine"] for run in (first, second)],
            differences=different[:MAX_DIFFERENCES],
            left_out=len(different[MAX_DIFFERENCES:]),
            pairs=pairs(first, second),
            alone=alone(first, second),
            stages=found,
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            style=Markup(page.asset("style.css")),
            script=Markup(script),
            script_hash=page.script_hash(script),
            island=page.island({"stages": found}),
        )
    )

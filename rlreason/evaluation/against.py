"""Models that were measured, compared problem by problem: the verdict, its files, and who flipped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from rlreason.errors import UsageError
from rlreason.eval.verdict import Comparison, Contender, judge, sentence
from rlreason.evaluation.page import write_page
from rlreason.evaluation.request import EvalRequest
from rlreason.evaluation.run import Measured, evaluate_models
from rlreason.evaluation.sides import Side, asked_otherwise, side_of, stored_sides
from rlreason.run import atomic

#: Files of a comparison, beside a folder a model.
COMPARISON, PROBLEMS = "comparison.json", "problems.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Every model on every suite, and what comparing them says."""

    sides: Sequence[Side]
    comparisons: Sequence[Comparison]

    @property
    def verdict(self) -> list[str]:
        """One sentence a comparison."""
        return [sentence(one) for one in self.comparisons]


def evaluate_all(
    request: EvalRequest, others: Sequence[str] = (), against: str | None = None, console: Console | None = None
) -> Outcome:
    """Measure ``request.model`` and the ``others`` on the suites, and compare.

    With ``against``, a model or a folder of results that ``--out`` left, that one is compared with each of them; else
    each of the others with the first. In ``request.out``: a folder a model, ``comparison.json``, ``problems.jsonl`` and
    ``report.html``. Raises UsageError before any model is loaded.
    """
    console = console or Console(highlight=False)
    models = [request.model, *others]
    stored = stored_sides(Path(against), request.suites) if against is not None and _is_results(against) else []
    drawn = models if against is None or stored else [*models, against]
    twice = next((name for name in drawn if drawn.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice: a model can't be compared with itself")
    requests = [_request(request, name, place, len(drawn)) for place, name in enumerate(drawn, start=1)]
    measured = evaluate_models(requests, console)
    sides = [*map(side_of, measured), *stored]
    outcome = Outcome(sides=sides, comparisons=judge(list(_pairs(sides, models, against is not None))))
    for text in (*_asked_otherwise(outcome), *outcome.verdict):
        console.print(text, markup=False, soft_wrap=True)
    if request.out is not None:
        _write(request.out, outcome, measured)
        console.print(f"page: {request.out / 'report.html'}", markup=False, soft_wrap=True)
    return outcome


def _is_results(place: str) -> bool:
    """Whether ``place`` is a folder that an evaluation left: no run directory and no model."""
    folder = Path(place)
    kinds = ("manifest.json", "config.json")
    return folder.is_dir() and any(folder.glob("*.completions.jsonl")) and not any((folder / k).exists() for k in kinds)


def _request(request: EvalRequest, model: str, place: int, models: int) -> EvalRequest:
    if request.out is None or models == 1:
        return replace(request, model=model)
    name = "".join(char if char.isalnum() or char in "._-" else "-" for char in model).strip("-.")
    return replace(request, model=model, out=request.out / f"{place}-{name[-60:]}")


def _pairs(sides: Sequence[Side], models: Sequence[str], has_other: bool) -> Iterator[tuple[str, Contender, Contender]]:
    """(suite, first, second): the other one against each model, or each later model against the first."""
    for suite in dict.fromkeys(side.suite for side in sides):
        here = [side.contender for side in sides if side.suite == suite]
        if has_other:
            yield from ((suite, one, here[-1]) for one in here[: len(models)] if len(here) > len(models))
        else:
            yield from ((suite, here[0], one) for one in here[1:])


def _asked_otherwise(outcome: Outcome) -> list[str]:
    """What is not alike in the pairs that are compared, beside the models."""
    sides = {(one.suite, one.model): one for one in outcome.sides}
    pairs = [(sides[one.suite, one.first.model], sides[one.suite, one.second.model]) for one in outcome.comparisons]
    return list(filter(None, (asked_otherwise(*pair) for pair in pairs)))


def _write(out: Path, outcome: Outcome, measured: Sequence[Measured]) -> None:
    rows = [
        {
            "suite": one.suite,
            "first": one.first.model,
            "second": one.second.model,
            **asdict(one.paired),
            "p_corrected": one.p,
            "comparisons": one.family,
            "verdict": sentence(one),
        }
        for one in outcome.comparisons
    ]
    if rows:
        atomic.write_text(out / COMPARISON, json.dumps(rows, indent=2) + "\n")
        lines = [json.dumps(row, ensure_ascii=False) for one in outcome.comparisons for row in problem_rows(one)]
        atomic.write_text(out / PROBLEMS, "\n".join(lines) + "\n")
    prompts = {(one.report.suite, group.problem.id): group.problem for one in measured for group in one.groups}
    write_page(out / "report.html", outcome.sides, outcome.comparisons, prompts)


def problem_rows(one: Comparison) -> Iterator[Mapping[str, object]]:
    """Every problem that both have, with the correct of the verified answers of each."""
    for name, counts in one.first.counts.items():
        if counts[1] and one.second.counts.get(name, (0, 0))[1]:
            pair = {"first": one.first.model, "second": one.second.model}
            yield {
                "suite": one.suite,
                "problem": name,
                **pair,
                "of_first": counts,
                "of_second": one.second.counts[name],
            }

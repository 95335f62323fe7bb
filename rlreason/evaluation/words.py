"""An evaluation in words: what is measured and how, a report in a line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rlreason.evaluation.results import format_of, source
from rlreason.types import EvalReport

if TYPE_CHECKING:
    from rlreason.check import CheckedRecipe
    from rlreason.evaluation.request import Measurement


def what(one: Measurement, checked: CheckedRecipe) -> str:
    """In a few words: on what, and how."""
    stage, form = one.stage, format_of(one, checked)
    given = ", ".join(f"{key} = {value}" for key, value in checked.recipe.data.options.items())
    data = f"{source(one, checked)}{f' ({given})' if given else ''}"
    how = "greedy"
    if stage.temperature:
        cut = (
            f"{f', top-p {stage.top_p:g}' if stage.top_p < 1 else ''}{f', top-k {stage.top_k}' if stage.top_k else ''}"
        )
        how = f"{stage.samples_per_problem} samples at temperature {stage.temperature:g}{cut}"
    shots = f"{len(form.shots)}-shot" if form.shots else "zero-shot"
    prompt = "no system prompt" if form.system is None else f"system prompt {form.system[:40]!r}"
    asked = "the question alone" if form.ask is None else f"asked as {' '.join(form.ask.split())[:60]!r}"
    template = ", ".join(f"{key} = {json.dumps(value)}" for key, value in form.template.items())
    return (
        f"{one.model} on {data}, {shots}, {how}, at most {stage.max_tokens} tokens, answers in {form.style}, "
        f"{prompt}, {asked}{f', chat template with {template}' if template else ''}"
    )


def line(report: EvalReport) -> str:
    """A report in one line."""
    accuracy = report.accuracy
    passes = "".join(f"  pass@{k} {value:.1%}" for k, value in report.pass_at_k.items() if k > 1)
    most = max(report.majority_at_k, default=0)
    voted = f"  maj@{most} {report.majority_at_k[most]:.1%}" if most else ""
    noise = report.rerun_deviation
    reruns = f"  ±{100 * noise:.1f} points between reruns of one sample" if noise is not None else ""
    silent = {kind: report.verdicts[kind] for kind in ("timed_out", "broken") if kind in report.verdicts}
    without = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in silent.items())
    shares = ((report.truncated, "cut off at max_tokens"), (report.unparsed, "without a readable answer"))
    beside = "".join(f", {share:.1%} {label}" for share, label in shares if share)
    return (
        f"{report.suite}: {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] of {accuracy.count} problems"
        f"{passes}{voted}{reruns}  {report.mean_tokens:.1f} tokens{beside}"
        + (f", {report.parameters:,} parameters" if report.parameters else "")
        + (f"; WITHOUT A VERDICT: {without} of {sum(report.verdicts.values())} answers" if without else "")
    )

"""`rlreason eval`: any model folder on any problems, with the verifiers that training uses."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rlreason.data.prompts import PromptFormat
from rlreason.data.source import ProblemSource, SourceSpec, open_source
from rlreason.errors import UsageError
from rlreason.eval.suites import SUITES, Suite
from rlreason.eval.summary import summarize
from rlreason.rewards.mix import RewardMix
from rlreason.run import atomic
from rlreason.scorer import PoolScorer
from rlreason.types import EvalReport, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What to measure. ``samples`` 1 is greedy; more draw at temperature 1 and give pass@k."""

    model: str
    suites: tuple[str, ...]
    data: str | None
    samples: int
    problems: int
    max_tokens: int
    out: Path | None


def evaluate_model(request: EvalRequest) -> list[str]:
    """Measure and return one line a suite. Raises UsageError for unknown suites, data or models."""
    opened = [(suite, _open(suite, request.data)) for suite in _suites(request.suites)]
    from rlreason.policy.model import count_parameters, default_device, quiet_loading, resolve_dtype
    from rlreason.policy.policies import load_policy
    from rlreason.policy.process import prepare_process
    from rlreason.sampler.groups import draw_groups
    from rlreason.sampler.open import inline_sampler

    quiet_loading()
    prepare_process()
    device = default_device()
    policy = load_policy(request.model, resolve_dtype("auto", device), device)
    params = SamplingParams(
        samples_per_problem=request.samples,
        temperature=0.0 if request.samples == 1 else 1.0,
        max_tokens=request.max_tokens,
        stream="eval",
    )
    lines = []
    with PoolScorer(RewardMix.from_table({"accuracy": 1.0}), workers=1) as scorer:
        for suite, source in opened:
            engine = inline_sampler(policy, PromptFormat(style=suite.answer_style), threads=os.cpu_count() or 1)
            groups = scorer.score(list(draw_groups(engine, source.heldout(request.problems), params)))
            report = summarize(groups, request.model, suite.name)
            report = replace(report, parameters=count_parameters(policy.model)[0])
            lines.append(_line(report))
            if request.out is not None:
                _write(report, request)
    return lines


def _suites(names: tuple[str, ...]) -> list[Suite]:
    from rlreason.errors import nearest

    unknown = next((name for name in names if name not in SUITES), None)
    if unknown is not None:
        raise UsageError(f"unknown suite {unknown!r}{nearest(unknown, SUITES)}; suites: {', '.join(SUITES)}")
    return [SUITES[name] for name in names]


def _open(suite: Suite, data: str | None) -> ProblemSource:
    problems = data or suite.data
    if problems is None:
        raise UsageError(f"suite {suite.name!r} has no data of its own: give --data FILE or a task such as arithmetic")
    return open_source(
        SourceSpec(train=problems, heldout=problems, answer_after=suite.answer_after, verifier=suite.verifier)
    )


def _line(report: EvalReport) -> str:
    accuracy = report.accuracy
    passes = "  ".join(f"pass@{k} {value:.1%}" for k, value in report.pass_at_k.items() if k > 1)
    return (
        f"{report.suite}: {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}] of {accuracy.count} problems"
        f"  {passes}  {report.mean_tokens:.1f} tokens, {report.parameters:,} parameters"
    )


def _write(report: EvalReport, request: EvalRequest) -> None:
    assert request.out is not None
    request.out.mkdir(parents=True, exist_ok=True)
    row = {**asdict(report), "samples": request.samples, "temperature": 0.0 if request.samples == 1 else 1.0}
    atomic.write_text(request.out / f"{report.suite}.json", json.dumps(row, indent=2) + "\n")

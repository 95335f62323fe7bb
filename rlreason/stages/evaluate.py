"""Measure trained models on held-out problems and write one eval/*.json each."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from rlreason.config import EvalStage
from rlreason.policy.model import count_parameters
from rlreason.policy.policies import Policy
from rlreason.run import atomic
from rlreason.stages.context import Context, Recorder
from rlreason.stages.rollouts import log_groups
from rlreason.types import EvalReport, SamplingParams, StepReport

SUITE = "heldout"


def measure(stage: EvalStage, context: Context, policy: Policy, model_name: str) -> EvalReport:
    """Sample and score the held-out problems with one model."""
    params = SamplingParams(
        samples_per_problem=stage.samples_per_problem,
        temperature=stage.temperature,
        top_p=stage.top_p,
        max_tokens=stage.max_tokens,
        seed=context.recipe.seed,
        stream=f"{stage.name}/{model_name}",
    )
    problems = context.source.heldout(stage.problems)
    groups = context.scorer.score(context.sampler(policy).sample(problems, params))
    log_groups(context.run, stage.name, 0, groups[:40], None)
    report = context.evaluate(groups, model_name, SUITE)
    return replace(report, parameters=count_parameters(policy.model)[0])


def run_evaluation(
    stage: EvalStage, context: Context, model_name: str, policy: Policy, recorder: Recorder
) -> EvalReport:
    """One model of an eval stage: measured, written to eval/<stage>-<model>.json, one metrics line."""
    report = measure(stage, context, policy, model_name)
    row = {
        "stage": stage.name,
        **asdict(report),
        "samples": stage.samples_per_problem,
        "temperature": stage.temperature,
        "active_parameters": count_parameters(policy.model)[1],
    }
    text = json.dumps(row, indent=2) + "\n"
    atomic.write_text(context.run.root / "eval" / f"{stage.name}-{model_name}.json", text)
    recorder.sampled_tokens += round(report.mean_tokens * report.accuracy.count * stage.samples_per_problem)
    scalars = {"accuracy/heldout": report.accuracy.value}
    index = stage.models.index(model_name)
    recorder.step(StepReport(stage=stage.name, kind=stage.kind, step=index, policy_version=0, scalars=scalars))
    return report

"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) with verified rewards.

problems -> sample groups -> score -> drop uninformative -> advantages -> pack -> loss, backward -> step -> publish

With ``staleness`` above 0 the first two run ahead (``stream.py``); nothing else here changes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.config import GrpoStage
from rlreason.objective.kl import kl_estimate
from rlreason.policy.batch import make_batches, rollout_row
from rlreason.policy.logprobs import takes_packed
from rlreason.policy.microbatches import backward_all
from rlreason.policy.optimizer import PolicyOptimizer
from rlreason.policy.policies import Policy
from rlreason.stages.context import Context, Recorder, StepMeter, is_due
from rlreason.stages.credit import Sample, credit_of, rows_of, samples_of, useful_groups
from rlreason.stages.losses import loss_logprobs, rollout_loss
from rlreason.stages.mismatch import MismatchDoctor
from rlreason.stages.rollouts import log_groups, staleness, summarize
from rlreason.stages.stream import Ask, RolloutStream, scheduled
from rlreason.types import Batch, Group, LossOutput, Problem, Row, SamplingParams, StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoRun:
    """Everything a GRPO step needs."""

    stage: GrpoStage
    context: Context
    policy: Policy
    optimizer: PolicyOptimizer
    #: The policy at the start of the stage, kept only where the objective has a KL term.
    reference: PreTrainedModel | None
    #: Kept only where the stage asks for diagnoses.
    doctor: MismatchDoctor | None = None


def grpo_step(step: int, run: GrpoRun, stream: RolloutStream) -> tuple[dict[str, float], list[Group]]:
    """One step: sampled and verified groups, credit, learn. Publishing the new weights is the caller's next line."""
    began = time.perf_counter()
    groups = stream.take(step)
    if run.doctor is not None:
        run.doctor.look(step, groups)
    taken = time.perf_counter()
    useful = useful_groups(groups, run.stage)
    scalars = summarize(groups, useful) | staleness(groups, step) | learn(step, useful, run)
    done = time.perf_counter()
    scalars |= {
        "seconds/sample": stream.seconds[0],
        "seconds/score": stream.seconds[1],
        "seconds/train": done - taken,
        "tokens_per_second": scalars["tokens"] / (done - began),
    }
    return scalars, groups


def learn(step: int, groups: Sequence[Group], run: GrpoRun) -> dict[str, float]:
    """Advantages, rows, and ``updates_per_step`` optimizer steps; an empty batch leaves the policy as it is."""
    updates = run.stage.updates_per_step
    penalties: list[float] = []
    packed = [_prepare(samples_of(groups[part::updates]), run, penalties) for part in range(updates)]
    packed = [batches for batches in packed if batches]
    if not packed:
        return {}
    # Several updates: the old policy must be read before the first of them changes it.
    several = len(packed) > 1
    old = (
        [[loss_logprobs(run.policy.model, batch, run.stage.temperature) for batch in batches] for batches in packed]
        if several
        else None
    )
    meter, tokens = StepMeter(), 0.0
    for update, batches in enumerate(packed):

        def loss_of(
            index: int, batch: Batch, before: Sequence[Tensor] | None = old[update] if old else None
        ) -> LossOutput:
            return micro_batch_loss(batch, None if before is None else before[index], run)

        for output in backward_all(run.policy.model, batches, loss_of, run.context.threads):
            meter.add(output)
        tokens += sum(float(batch.loss_mask_BT.sum()) for batch in batches)
        grad_norm, rate = run.optimizer.step(step)
    scalars = meter.read(tokens) | {"grad_norm": float(grad_norm), "lr": rate, "trained_tokens": tokens}
    return scalars | ({"kl/penalty": fmean(penalties)} if penalties else {})


def _prepare(samples: Sequence[Sample], run: GrpoRun, penalties: list[float]) -> list[Batch]:
    """Micro-batches of one update's samples. Adds what the KL took off each reward to ``penalties``."""
    taken = _kl_penalties(samples, run) if run.stage.objective.kl_in == "reward" and run.reference is not None else None
    penalties += taken or []
    return _pack(rows_of(samples, credit_of(samples, run.stage, taken)), run)


def _kl_penalties(samples: Sequence[Sample], run: GrpoRun) -> list[float]:
    """kl_coef · Σ_t KL estimate of each sample, between the policy that starts the step and the reference."""
    rows = [rollout_row(one.completion, 0.0, 0.0, one.group_id) for one in samples]
    penalties = [0.0] * len(rows)
    spec = run.stage.objective
    assert run.reference is not None
    for batch in _pack(rows, run):
        current_BT = loss_logprobs(run.policy.model, batch, run.stage.temperature)
        kl_BT, _ = kl_estimate(
            current_BT, loss_logprobs(run.reference, batch, run.stage.temperature), spec.kl_estimator
        )
        sums_B = (kl_BT * batch.loss_mask_BT).sum(dim=1, dtype=torch.float64)
        for place, total in zip(batch.places, sums_B.tolist(), strict=True):
            penalties[place] = spec.kl_coef * total
    return penalties


def micro_batch_loss(batch: Batch, old_BT: Tensor | None, run: GrpoRun) -> LossOutput:
    """Forward pass and loss of one micro-batch; ``old_BT`` None means on-policy: the ratio is 1 with a gradient."""
    stage = run.stage
    reference_BT = None
    if run.reference is not None and stage.objective.kl_in == "loss":
        reference_BT = _logprobs(run.reference, batch, run)
    return rollout_loss(run.policy.model, batch, stage.objective, stage.temperature, old_BT, reference_BT)


def _pack(rows: Sequence[Row], run: GrpoRun) -> list[Batch]:
    return make_batches(
        rows,
        run.stage.micro_batch_tokens,
        run.policy.tokenizer.pad_token_id,
        run.context.device,
        packed=takes_packed(run.policy.model),
    )


def _logprobs(model: PreTrainedModel, batch: Batch, run: GrpoRun) -> Tensor:
    return loss_logprobs(model, batch, run.stage.temperature)


def ask(stage: GrpoStage, context: Context) -> Ask:
    """The problems of each step and how they are drawn: pure functions of (seed, step)."""

    def at(step: int) -> tuple[list[Problem], SamplingParams]:
        first = stage.first_problem + step * stage.problems_per_step
        params = SamplingParams(
            samples_per_problem=stage.samples_per_problem,
            temperature=stage.temperature,
            max_tokens=stage.max_tokens,
            seed=context.recipe.seed,
            stream=f"{stage.name}/{step}",
        )
        return context.source.train(first, stage.problems_per_step), params

    return at


def run_grpo(stage: GrpoStage, context: Context, policy: Policy) -> Recorder:
    """All steps of a GRPO stage."""
    run = GrpoRun(
        stage=stage,
        context=context,
        policy=policy,
        optimizer=PolicyOptimizer(policy.model, stage.optimizer, stage.steps),
        reference=policy.copy_model() if stage.objective.kl_coef > 0 else None,
        doctor=MismatchDoctor(stage, context, policy) if stage.diagnose_every else None,
    )
    sampler = scheduled(context.sampler(policy), stage, context)
    recorder = Recorder(context, stage.name, stage.kind)
    colocated = context.recipe.cluster.colocate
    steps = range(stage.steps)
    with RolloutStream(
        sampler, context.scorer, ask(stage, context), steps, stage.staleness, colocated=colocated
    ) as stream:
        for step in range(stage.steps):
            scalars, groups = grpo_step(step, run, stream)
            stream.publish(policy.model.state_dict(), version=step + 1)
            recorder.sampled_tokens += int(scalars["tokens"])
            recorder.trained_tokens += int(scalars.get("trained_tokens", 0.0))
            if is_due(step, stage.eval_every, stage.steps):
                scalars["accuracy/heldout"] = context.heldout_accuracy(
                    stream.draw, stage.name, stage.eval_problems, stage.max_tokens
                )
            scalars |= sampler.pool.stats.read()
            log_groups(context.run, stage.name, step, groups[: stage.logged_groups], stage)
            recorder.step(
                StepReport(stage=stage.name, kind=stage.kind, step=step, policy_version=step + 1, scalars=scalars)
            )
    return recorder

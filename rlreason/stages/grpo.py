"""Group-relative policy optimisation (GRPO, arXiv 2402.03300) with verified rewards.

problems -> sample groups -> score -> drop uninformative -> advantages -> pack -> loss, backward -> step -> publish
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.config import GrpoStage
from rlreason.objective.advantage import group_advantages, is_informative
from rlreason.objective.loss import policy_loss, token_weights
from rlreason.policy.batch import pack, rollout_row
from rlreason.policy.logprobs import token_logprobs
from rlreason.policy.microbatches import backward_all
from rlreason.policy.optimizer import PolicyOptimizer
from rlreason.policy.policies import Policy
from rlreason.stages.context import Context, Recorder, StepMeter, is_due
from rlreason.stages.rollouts import log_groups, summarize
from rlreason.types import Batch, Group, LossOutput, Row, SamplingParams, StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoRun:
    """Everything a GRPO step needs."""

    stage: GrpoStage
    context: Context
    policy: Policy
    optimizer: PolicyOptimizer
    #: The policy at the start of the stage, kept only where the objective has a KL term.
    reference: PreTrainedModel | None


def grpo_step(step: int, run: GrpoRun, sampler_step: Sampling) -> tuple[dict[str, float], list[Group]]:
    """One step: ask, sample, verify, credit, learn. Publishing the new weights is the caller's next line."""
    clock = [time.perf_counter()]
    groups = sampler_step(step)
    clock.append(time.perf_counter())
    groups = run.context.scorer.score(groups)
    clock.append(time.perf_counter())
    useful = [group for group in groups if is_informative(group.scores_G)] if run.stage.drop_zero_variance else groups
    scalars = summarize(groups, useful) | learn(step, useful, run)
    clock.append(time.perf_counter())
    scalars |= {
        "seconds/sample": clock[1] - clock[0],
        "seconds/score": clock[2] - clock[1],
        "seconds/train": clock[3] - clock[2],
        "tokens_per_second": scalars["tokens"] / (clock[3] - clock[0]),
    }
    return scalars, groups


def learn(step: int, groups: Sequence[Group], run: GrpoRun) -> dict[str, float]:
    """Advantages, rows, and ``updates_per_step`` optimizer steps; an empty batch leaves the policy as it is."""
    chunks = [
        rows_of(groups[part :: run.stage.updates_per_step], run.stage) for part in range(run.stage.updates_per_step)
    ]
    packed = [_pack(rows, run) for rows in chunks if rows]
    if not packed:
        return {}
    # Several updates: the old policy must be read before the first of them changes it.
    old = [[_old_logprobs(batch, run) for batch in batches] for batches in packed] if len(packed) > 1 else None
    meter, tokens = StepMeter(), 0.0
    for update, batches in enumerate(packed):
        denominator = _denominator(batches, run.stage)
        before = old[update] if old else [None] * len(batches)

        def loss_of(
            index: int, batch: Batch, before: Sequence[Tensor | None] = before, denominator: float = denominator
        ) -> LossOutput:
            return micro_batch_loss(batch, before[index], denominator, run)

        for output in backward_all(run.policy.model, batches, loss_of, run.context.threads):
            meter.add(output)
        tokens += sum(float(batch.loss_mask_BT.sum()) for batch in batches)
        grad_norm, rate = run.optimizer.step(step)
    return meter.read(tokens) | {"grad_norm": float(grad_norm), "lr": rate, "trained_tokens": tokens}


def rows_of(groups: Sequence[Group], stage: GrpoStage) -> list[Row]:
    """Training rows of all completions that have an advantage."""
    return [
        rollout_row(completion, advantage, group.group_id)
        for group in groups
        for completion, advantage in zip(
            group.completions_G, group_advantages(group.scores_G, stage.objective.advantage_scale), strict=True
        )
        if advantage is not None
    ]


def micro_batch_loss(batch: Batch, old_BT: Tensor | None, denominator: float, run: GrpoRun) -> LossOutput:
    """Forward pass and loss of one micro-batch; ``old_BT`` None means on-policy: the ratio is 1 with a gradient."""
    stage = run.stage
    current = token_logprobs(run.policy.model, batch, stage.temperature)
    reference_BT = None
    if run.reference is not None:
        with torch.no_grad():
            reference_BT = token_logprobs(run.reference, batch, stage.temperature).logprobs_BT
    output = policy_loss(
        current.logprobs_BT,
        current.logprobs_BT.detach() if old_BT is None else old_BT,
        batch,
        stage.objective,
        token_weights(batch.loss_mask_BT, stage.objective.aggregation, denominator, stage.max_tokens),
        reference_BT,
    )
    entropy = (current.entropy_BT * batch.loss_mask_BT).sum()
    return LossOutput(loss=output.loss, sums={**output.sums, "entropy": entropy}, maxima=output.maxima)


def _pack(rows: Sequence[Row], run: GrpoRun) -> list[Batch]:
    pad_id = run.policy.tokenizer.pad_token_id
    return pack(rows, run.stage.micro_batch_tokens, pad_id, run.context.device)


def _old_logprobs(batch: Batch, run: GrpoRun) -> Tensor:
    with torch.no_grad():
        return token_logprobs(run.policy.model, batch, run.stage.temperature).logprobs_BT


def _denominator(batches: Sequence[Batch], stage: GrpoStage) -> float:
    """Loss tokens of the whole update, or its sequences: one number for all micro-batches."""
    if stage.objective.aggregation == "token":
        return sum(float(batch.loss_mask_BT.sum()) for batch in batches)
    return float(sum(batch.token_ids_BT.shape[0] for batch in batches))


class Sampling:
    """Draws the groups of each step with the newest published weights."""

    def __init__(self, run: GrpoRun) -> None:
        self._run = run
        self.engine = run.context.sampler(run.policy)

    def __call__(self, step: int) -> list[Group]:
        """``problems_per_step`` groups of step ``step``; problems and draws are pure functions of (seed, step)."""
        stage, context = self._run.stage, self._run.context
        first = stage.first_problem + step * stage.problems_per_step
        problems = context.source.train(first, stage.problems_per_step)
        params = SamplingParams(
            samples_per_problem=stage.samples_per_problem,
            temperature=stage.temperature,
            max_tokens=stage.max_tokens,
            seed=context.recipe.seed,
            stream=f"{stage.name}/{step}",
        )
        return self.engine.sample(problems, params)


def run_grpo(stage: GrpoStage, context: Context, policy: Policy) -> Recorder:
    """All steps of a GRPO stage."""
    run = GrpoRun(
        stage=stage,
        context=context,
        policy=policy,
        optimizer=PolicyOptimizer(policy.model, stage.optimizer, stage.steps),
        reference=policy.copy_model() if stage.objective.kl_coef > 0 else None,
    )
    sampling = Sampling(run)
    recorder = Recorder(context, stage.name, stage.kind)
    for step in range(stage.steps):
        scalars, groups = grpo_step(step, run, sampling)
        sampling.engine.publish(policy.model.state_dict(), version=step + 1)
        recorder.sampled_tokens += int(scalars["tokens"])
        recorder.trained_tokens += int(scalars.get("trained_tokens", 0.0))
        if is_due(step, stage.eval_every, stage.steps):
            scalars["accuracy/heldout"] = context.heldout_accuracy(
                sampling.engine, stage.name, stage.eval_problems, stage.max_tokens
            )
        log_groups(context.run, stage.name, step, groups[: stage.logged_groups], stage.objective.advantage_scale)
        recorder.step(
            StepReport(stage=stage.name, kind=stage.kind, step=step, policy_version=step + 1, scalars=scalars)
        )
    return recorder

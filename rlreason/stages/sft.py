"""Supervised training on demonstrations or traces: the cold start, and the sequence part of distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from transformers import PreTrainedModel

from rlreason.config import DistillStage, SftStage
from rlreason.data.streams import permutation
from rlreason.objective.loss import distillation_loss, supervised_loss
from rlreason.policy.batch import make_batches, supervised_row
from rlreason.policy.logprobs import takes_packed, target_logits, target_logprobs
from rlreason.policy.microbatches import backward_all
from rlreason.policy.optimizer import PolicyOptimizer
from rlreason.policy.policies import Policy
from rlreason.stages.context import Context, Recorder, StepMeter, is_due
from rlreason.stages.losses import demonstration_loss
from rlreason.types import Batch, LossOutput, Problem, Row, StepReport

#: Step number (from 0) -> the rows to train on.
RowSource = Callable[[int], list[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedRun:
    """Everything a supervised step needs."""

    policy: Policy
    optimizer: PolicyOptimizer
    micro_batch_tokens: int
    device: torch.device
    threads: int = 1
    teacher: PreTrainedModel | None = None
    #: Weight of KL(teacher || student); the rest is cross-entropy on the tokens.
    teacher_kl: float = 0.0

    @classmethod
    def begin(cls, stage: SftStage | DistillStage, context: Context, policy: Policy) -> Self:
        """The run of a stage at its first step, without a teacher."""
        return cls(
            policy=policy,
            optimizer=PolicyOptimizer(policy.model, stage.optimizer, stage.steps),
            micro_batch_tokens=stage.micro_batch_tokens,
            device=context.device,
            threads=context.threads,
        )


def supervised_step(step: int, rows: Sequence[Row], run: SupervisedRun) -> dict[str, float]:
    """One optimizer step over ``rows``; every micro-batch is divided by the same global token count."""
    tokens = sum(sum(row.loss_mask) for row in rows)
    meter = StepMeter()
    pad_id = run.policy.tokenizer.pad_token_id
    packed = run.teacher is None and takes_packed(run.policy.model)
    batches = make_batches(rows, run.micro_batch_tokens, pad_id, run.device, packed=packed)
    for output in backward_all(run.policy.model, batches, lambda _, batch: batch_loss(batch, tokens, run), run.threads):
        meter.add(output)
    grad_norm, rate = run.optimizer.step(step)
    scalars = meter.read(tokens)
    return scalars | {"grad_norm": float(grad_norm), "lr": rate, "tokens": float(tokens)}


def batch_loss(batch: Batch, tokens: int, run: SupervisedRun) -> LossOutput:
    """(1 − w) cross-entropy + w KL(teacher || student) of one micro-batch, its share of the mean over ``tokens``."""
    if run.teacher is None:
        return demonstration_loss(run.policy.model, batch, tokens)
    logits_BTV = target_logits(run.policy.model, batch)
    output = supervised_loss(target_logprobs(logits_BTV, batch), batch.loss_mask_BT, tokens)
    with torch.no_grad():
        teacher_BTV = target_logits(run.teacher, batch)
    divergence = distillation_loss(logits_BTV, teacher_BTV, batch.loss_mask_BT, tokens)
    loss = (1.0 - run.teacher_kl) * output.loss + run.teacher_kl * divergence.loss
    return LossOutput(loss=loss, sums={**output.sums, **divergence.sums})


def epoch_rows(rows: Sequence[Row], batch_size: int, *key: object) -> RowSource:
    """Batches of ``rows``, shuffled anew each epoch; step i's rows are a pure function of (key, i)."""
    cached: tuple[int, list[int]] = (-1, [])

    def at(step: int) -> list[Row]:
        nonlocal cached
        batch = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, place = divmod(position, len(rows))
            if cached[0] != epoch:
                cached = (epoch, permutation(len(rows), *key, epoch))
            batch.append(rows[cached[1][place]])
        return batch

    return at


def train_supervised(stage: SftStage | DistillStage, context: Context, run: SupervisedRun, rows: RowSource) -> Recorder:
    """Run all steps of a supervised stage and record them."""
    recorder = Recorder(context, stage.name, stage.kind)
    sampler = context.sampler(run.policy) if stage.eval_every else None
    for step in range(stage.steps):
        batch = rows(step)
        run.policy.model.train()
        scalars = supervised_step(step, batch, run)
        recorder.trained_tokens += int(scalars["tokens"])
        if sampler is not None and is_due(step, stage.eval_every, stage.steps):
            sampler.publish(run.policy.model.state_dict(), step + 1)
            scalars["accuracy/heldout"] = context.heldout_accuracy(
                context.draw_with(sampler), stage.name, stage.eval_problems, stage.eval_max_tokens
            )
        recorder.step(
            StepReport(stage=stage.name, kind=stage.kind, step=step, policy_version=step + 1, scalars=scalars)
        )
    return recorder


def run_sft(stage: SftStage, context: Context, policy: Policy) -> Recorder:
    """Train on the demonstrations of the data: the cold start of R1 (arXiv 2501.12948, section 2.3.1)."""
    source = context.source

    def row(problem: Problem) -> Row:
        pair = context.prompt_format.supervised(problem, policy.tokenizer)
        return supervised_row(pair.token_ids, pair.loss_mask)

    rows: RowSource
    if stage.demonstrations is None and source.train_size is None:

        def rows(step: int) -> list[Row]:
            return [row(problem) for problem in source.demonstrations(step * stage.batch_size, stage.batch_size)]

    else:
        count = stage.demonstrations or source.train_size or 0
        fixed = [row(problem) for problem in source.demonstrations(0, count)]
        rows = epoch_rows(fixed, stage.batch_size, context.recipe.seed, stage.name)
    return train_supervised(stage, context, SupervisedRun.begin(stage, context, policy), rows)

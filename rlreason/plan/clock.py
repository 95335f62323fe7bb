"""What a planned stage takes: tokens, operations, seconds by what they wait for, GPU-hours and dollars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlreason.config import GrpoStage, OpdStage, RejectStage
from rlreason.plan.budget import Budgets, Drawing, Trained, adapter_size, step_rows
from rlreason.sizing import clock, flops
from rlreason.sizing.gpus import Gpu
from rlreason.sizing.shape import ModelShape

if TYPE_CHECKING:
    from rlreason.plan.size import Layout, SizeOptions

PF_DAY = 1e15 * 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One step (of a reject stage: all of it)."""

    #: Answers' tokens.
    tokens: int
    flops: float
    #: Seconds at ``efficiency`` of the peaks; a delivery's at its bandwidth.
    seconds: float
    #: How they came about.
    said: str


def time_lines(
    budgets: Budgets, layout: Layout, stage: Trained | RejectStage, rows: int, options: SizeOptions
) -> list[str]:
    """Two lines: of one step, and of the stage."""
    assert layout.gpu is not None
    efficiency = options.efficiency or clock.EFFICIENCY
    work = stage_work(budgets, layout, stage, rows, options)
    steps = 1 if isinstance(stage, RejectStage) else stage.steps
    hours = steps * work.seconds * layout.gpus / 3600
    said = (
        f"in all at most {steps * work.tokens / 1e6:,.1f} M tokens of answers, {steps * work.flops / PF_DAY:,.3g} "
        f"PF-days, {_time(steps * work.seconds)}, {hours:,.1f} GPU-hours"
    )
    if options.price is not None:
        dollars = hours * options.price
        said += f", ${dollars:,.2f}: ${dollars / (steps * work.tokens / 1e6):,.2f} for 1M tokens"
    return [f"{work.said}, at {efficiency:.0%} of the peaks", said]


def stage_work(budgets: Budgets, layout: Layout, stage: Trained | RejectStage, rows: int, options: SizeOptions) -> Work:
    """What one step takes, every answer at full length."""
    assert layout.gpu is not None
    efficiency = options.efficiency or clock.EFFICIENCY
    policy = budgets.policy_of(stage)
    shape, width = budgets.shape(policy), budgets.width(policy)
    prompt, answer = budgets.rows(stage)
    drawn, learnt, parts = 0.0, 0.0, []
    done = 0.0
    count = stage.problems * stage.samples_per_problem if isinstance(stage, RejectStage) else step_rows(stage)
    if isinstance(stage, Drawing):
        parallel = budgets.recipe.sampler.tensor_parallel
        draw = clock.Draw(
            count=count,
            prompt=prompt,
            completion=answer,
            engines=max(1, min(layout.engines, count)),
            rows=rows,
            tensor_parallel=parallel,
            width=width,
        )
        bound = clock.drawing_time(shape, draw, layout.gpu)
        drawn = bound.seconds / efficiency
        tokens = count * (prompt + answer)
        done += flops.pass_of(shape, tokens, count * (prompt + answer) ** 2 / 2, count * answer).total
        parts.append(f"draws {_time(drawn)} ({bound.by})")
    if not isinstance(stage, RejectStage):
        bound, operations = _learning(budgets, stage, shape, layout.gpu)
        learnt = bound.seconds / efficiency
        done += operations
        parts.append(f"learns {_time(learnt)} ({bound.by})")
    if isinstance(stage, (GrpoStage, OpdStage)):
        sent = clock.delivery_time(shape, width, options.delivery or clock.DELIVERY)
        learnt += sent
        parts.append(f"delivers {_time(sent)} ({_rate(options.delivery or clock.DELIVERY)})")
    overlapped = isinstance(stage, GrpoStage) and stage.staleness > 0
    seconds = max(drawn, learnt) if overlapped else drawn + learnt
    what = "the stage" if isinstance(stage, RejectStage) else "a step"
    said = f"{what}: {count * answer:,} tokens of {count:,} answers, {done / 1e15:,.3g} PFLOP; {', '.join(parts)}"
    said += f": {_time(seconds)}{' (side by side)' if overlapped else ''}"
    return Work(tokens=count * answer, flops=done, seconds=seconds, said=said)


def _learning(budgets: Budgets, stage: Trained, shape: ModelShape, gpu: Gpu) -> tuple[clock.Bound, float]:
    """(time at the roofline, operations of all ranks) of one step."""
    setup = budgets.setup(stage)
    batch, ranks = budgets.micro_batch(stage, setup), max(1, setup.ranks)
    micro_batches = math.ceil(step_rows(stage) / batch.rows)
    forward = flops.forward_packed(shape, batch, flex=budgets.flex)
    operations = micro_batches * flops.training(forward, recompute=setup.checkpointing, lora=setup.lora is not None)
    if isinstance(stage, GrpoStage) and stage.objective.kl_coef > 0:
        operations += micro_batches * forward.total
    if isinstance(stage, OpdStage):
        for name in stage.teachers(budgets.recipe.teacher):  # each scores its share of the rows
            teacher = budgets.shape(budgets.teacher_config(budgets.recipe.teacher[name]))
            operations += (
                micro_batches
                * flops.forward_packed(teacher, batch, flex=budgets.flex).total
                / len(budgets.recipe.teacher)
            )
    policy = budgets.policy_of(stage)
    trained = shape.total if setup.lora is None else adapter_size(budgets.config(policy), setup.lora)
    frozen = 0 if setup.lora is None else shape.total
    each = math.ceil(micro_batches / ranks)
    traffic = clock.shard_traffic(trained, frozen, budgets.width(policy), ranks, each)
    return clock.training_time(operations, traffic, gpu, min(ranks, micro_batches)), operations


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.3g} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _rate(bytes_per_second: float) -> str:
    return f"at {bytes_per_second / 1e9:g} GB/s"

"""What a planned stage takes: tokens, operations, seconds by what they wait for, GPU-hours and dollars."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlreason.cluster.plan import over_ray
from rlreason.config import GrpoStage, OpdStage, RejectStage
from rlreason.plan.amounts import duration
from rlreason.plan.budget import Budgets, Drawing, Trained, adapter_size, step_rows
from rlreason.plan.teachers import score_text, scorings, shares
from rlreason.sizing import clock, flops
from rlreason.sizing.activations import MicroBatch
from rlreason.sizing.gpus import Gpu
from rlreason.sizing.shape import ModelShape

if TYPE_CHECKING:
    from rlreason.plan.size import Layout, SizeOptions

PF_DAY = 1e15 * 86400
#: Bytes of an adapter's number, which is float32 whatever the model is.
ADAPTER_WIDTH = 4


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
        f"PF-days, {duration(steps * work.seconds)}, {hours:,.1f} GPU-hours"
    )
    price = budgets.recipe.cluster.dollars_per_hour if options.price is None else options.price
    if price is not None:
        dollars = hours * price
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
        parts.append(f"draws {duration(drawn)} ({bound.by})")
    if not isinstance(stage, RejectStage):
        bound, operations = _learning(budgets, stage, shape, layout.gpu)
        learnt = bound.seconds / efficiency
        done += operations
        parts.append(f"learns {duration(learnt)} ({bound.by})")
    scored = scorings(budgets, layout.gpus, stage) if isinstance(stage, OpdStage) else []
    if scored:  # before the step is learnt from, while the trainer waits
        each = [clock.training_time(one.flops, 0.0, layout.gpu, 1).seconds / efficiency for one in scored]
        learnt += sum(each)
        done += sum(one.flops for one in scored)
        parts.insert(-1, score_text(scored, each))
    if isinstance(stage, (GrpoStage, OpdStage)):
        sent, how = _delivery(budgets, layout, stage, options)
        learnt += sent
        parts.append(f"delivers {duration(sent)} ({how})")
    overlapped = isinstance(stage, GrpoStage) and stage.staleness > 0
    seconds = max(drawn, learnt) if overlapped else drawn + learnt
    what = "the stage" if isinstance(stage, RejectStage) else "a step"
    said = f"{what}: {count * answer:,} tokens of {count:,} answers, {done / 1e15:,.3g} PFLOP; {', '.join(parts)}"
    said += f": {duration(seconds)}{' (side by side)' if overlapped else ''}"
    return Work(tokens=count * answer, flops=done, seconds=seconds, said=said)


def _delivery(budgets: Budgets, layout: Layout, stage: GrpoStage | OpdStage, options: SizeOptions) -> tuple[float, str]:
    """(seconds, what is sent and how fast). A worker's base weights come once and are left out."""
    recipe, policy = budgets.recipe, budgets.policy_of(stage)
    lora, way = budgets.setup(stage).lora, recipe.sampler.delivery
    alone = way == "adapter" or (way == "auto" and over_ray(recipe, layout.gpus))
    size, what = budgets.width(policy) * budgets.shape(policy).total, "all weights"
    if lora is not None and alone:
        size, what = ADAPTER_WIDTH * adapter_size(budgets.config(policy), lora), "the adapter alone"
    if options.delivery is not None:
        return size / options.delivery, f"{what}, {_rate(options.delivery)}"
    packed = recipe.sampler.transport == "host"
    rates = (
        f"packed {_rate(clock.PACKING)}, sent {_rate(clock.DELIVERY)}" if packed else f"sent {_rate(clock.DELIVERY)}"
    )
    return clock.delivery_time(size, packed=packed), f"{what}, {rates}"


def _learning(budgets: Budgets, stage: Trained, shape: ModelShape, gpu: Gpu) -> tuple[clock.Bound, float]:
    """(time at the roofline, operations of all ranks) of one step."""
    setup = budgets.setup(stage)
    batch, cut = budgets.micro_batch(stage, setup), budgets.cut(stage, setup)
    micro_batches = math.ceil(step_rows(stage) / batch.rows)
    forward = flops.forward_packed(shape, batch, flex=budgets.flex)
    operations = micro_batches * flops.training(forward, recompute=setup.checkpointing, lora=setup.lora is not None)
    if isinstance(stage, GrpoStage) and stage.objective.kl_coef > 0:
        operations += micro_batches * forward.total
    if isinstance(stage, OpdStage):
        operations += _asked_here(budgets, stage, batch, micro_batches)
    policy = budgets.policy_of(stage)
    width, each = budgets.width(policy), math.ceil(micro_batches / cut.rows)
    if setup.lora is None:
        traffic = clock.cut_traffic(shape, cut, width, each)
    else:
        adapter = adapter_size(budgets.config(policy), setup.lora)
        traffic = clock.shard_traffic(adapter, shape.total, width, cut.shards, each)
    # Tensor ranks have the same samples, and each computes their head whole.
    operations += (cut.tensor - 1) * micro_batches * 3 * forward.head
    waits = clock.exchanges(shape, cut, width, each * batch.tokens, gpu, recompute=setup.checkpointing)
    busy = min(cut.rows, micro_batches) * cut.tensor
    return clock.training_time(operations, traffic, gpu, busy, waits), operations


def _asked_here(budgets: Budgets, stage: OpdStage, batch: MicroBatch, micro_batches: int) -> float:
    """Operations by which the trainer gets its teachers' distributions: of their whole models that it holds, and of
    their heads where states are sent."""
    found = 0.0
    for name, share in shares(stage, budgets).items():
        table = budgets.recipe.teacher[name]
        forward = flops.forward_packed(budgets.shape(budgets.teacher_config(table)), batch, flex=budgets.flex)
        if table.where == "trainer":
            found += share * micro_batches * forward.total
        elif table.payload == "hidden":
            found += share * micro_batches * forward.head
    return found


def _rate(bytes_per_second: float) -> str:
    return f"at {bytes_per_second / 1e9:g} GB/s"

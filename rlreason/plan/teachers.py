"""What the teachers of an opd stage take that are not the trainer's own models: time, operations, a GPU each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rlreason.cluster.plan import teachers_elsewhere
from rlreason.config import OpdStage
from rlreason.data.source import ProblemSource
from rlreason.errors import UsageError
from rlreason.plan.amounts import duration, gb
from rlreason.plan.budget import RESERVE, Budgets, step_rows
from rlreason.policy.support import longest_sequence
from rlreason.sizing import teaching
from rlreason.sizing.activations import CountingError, MicroBatch, count_activations, micro_batch
from rlreason.sizing.memory import Memory
from rlreason.stages.opd_routes import route_of

#: Problems that say how many of them each teacher gets.
ROUTED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """One teacher's part of a step. Example: ``Scoring(name="math", share=0.5, flops=1e15, own=True)``."""

    name: str
    #: Of the step's rows.
    share: float
    flops: float
    #: On a GPU of its own; else on the one of this process.
    own: bool


def shares(stage: OpdStage, budgets: Budgets) -> dict[str, float]:
    """Which part of the stage's rows each of its teachers is asked."""
    names = stage.teachers(budgets.recipe.teacher)
    return _routed(stage, budgets.data.of(stage.name)) if stage.route else dict.fromkeys(names, 1.0)


def _routed(stage: OpdStage, source: ProblemSource) -> dict[str, float]:
    drawn = source.train(stage.first_problem, min(ROUTED, stage.steps * stage.problems_per_step))
    counts = Counter(route_of(stage, one) for one in drawn)
    return {name: counts[name] / len(drawn) for name in dict.fromkeys(stage.route.values())}


def scorings(budgets: Budgets, gpus: float, stage: OpdStage) -> list[Scoring]:
    """What the stage's teachers outside of the trainer compute in a step, in the order in which they are asked.
    ``gpus``: of the run."""
    own, found = teachers_elsewhere(budgets.recipe, gpus), []
    for name, share in shares(stage, budgets).items():
        table = budgets.recipe.teacher[name]
        if table.where == "trainer" or not share:
            continue
        shape = budgets.shape(budgets.teacher_config(table))
        scored = teaching.Scored(rows=share * step_rows(stage), batch=_batch(budgets, stage, share))
        behind_vllm = table.where == "vllm"
        done = (
            teaching.engine_flops(shape, scored)
            if behind_vllm
            else teaching.scorer_flops(shape, scored, flex=budgets.flex)
        )
        found.append(Scoring(name=name, share=share, flops=done, own=name in own))
    return found


def _batch(budgets: Budgets, stage: OpdStage, share: float) -> MicroBatch:
    """A teacher's micro-batch, of the tokens of the trainer's: of all ranks' rows that are its own."""
    prompt, answer = budgets.rows(stage)
    tokens = budgets.setup(stage).micro_batch_tokens
    found = micro_batch(tokens, prompt, answer, stage.samples_per_problem)
    return replace(found, rows=max(1, min(found.rows, math.ceil(share * step_rows(stage)))))


def teacher_memory(budgets: Budgets, stage: OpdStage, name: str) -> Memory:
    """What a teacher with a GPU of its own holds there. Raises CountingError as ``count_activations`` does."""
    table = budgets.recipe.teacher[name]
    policy = budgets.teacher_config(table)
    shape, config, width = budgets.shape(policy), budgets.config(policy), budgets.width(policy)
    if table.where == "vllm":
        prompt, answer = budgets.rows(stage)
        longest = budgets.recipe.sampler.max_length or longest_sequence(config) or prompt + answer
        return teaching.engine_memory(shape, width, longest)
    batch = _batch(budgets, stage, shares(stage, budgets)[name])
    dtype = torch.bfloat16 if width == 2 else torch.float32
    passed = count_activations(config, batch, dtype, trains=False, flex=budgets.flex)
    return teaching.scorer_memory(shape, width, batch, passed, states=table.payload == "hidden")


def teacher_lines(budgets: Budgets, gpus: float, stage: OpdStage) -> list[str]:
    """The memory of each teacher that has a GPU of its own. Raises UsageError for one that this GPU can't hold."""
    lines = []
    for one in scorings(budgets, gpus, stage):
        if not one.own:
            continue
        try:
            memory = teacher_memory(budgets, stage, one.name)
        except CountingError as error:
            lines.append(f"memory of the teacher {one.name} not known: {error}")
            continue
        parts = ", ".join(f"{part.name} {gb(part.bytes)}" for part in memory.parts)
        limit = "" if budgets.gpu is None else f" of {budgets.gpu.gigabytes:g}"
        place = "in a process of its own" if budgets.gpu is None else "on a GPU of its own"
        lines.append(f"memory of the teacher {one.name}, {place}: {parts}: {gb(memory.total)}{limit}")
        if budgets.gpu is not None and not budgets.fits(memory):
            usable = budgets.gpu.memory * (1 - RESERVE)
            raise UsageError(
                f"stage {stage.name!r}: the teacher {one.name!r} takes {gb(memory.total)} of the one GPU that it "
                f"has ({parts}), and of an {budgets.gpu.name}'s {budgets.gpu.gigabytes:g} GB {gb(usable)} are "
                f'usable: say teacher.{one.name}.where = "trainer", where trainer.ranks share its weights (with '
                'support = "full"), take a smaller teacher, or plan with a larger GPU'
            )
    return lines


def score_text(scored: Sequence[Scoring], seconds: Sequence[float]) -> str:
    """The teachers' part of a step in words."""
    places = {one.own for one in scored}
    where = "a GPU each" if places == {True} else "on the trainer's GPU" if places == {False} else "on GPUs apart"
    each = ", ".join(
        f"{one.name} {duration(took)} for {one.share:.0%} of the rows"
        for one, took in zip(scored, seconds, strict=True)
    )
    return f"teachers score {duration(sum(seconds))} ({each}; {where}, one after the other)"

"""Distillation: a smaller student learns from the traces that rejection sampling kept (R1, section 2.4).

With ``teacher_kl`` it also learns the teacher's distribution on those traces (Hinton et al. 2015, arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlreason.config import DistillStage, OpdStage
from rlreason.errors import UsageError
from rlreason.policy.batch import supervised_sample
from rlreason.stages.context import Context
from rlreason.stages.references import References
from rlreason.stages.reject import Trace, read_traces
from rlreason.stages.sft import Inspected, LearntRows
from rlreason.traces.sets import CARD
from rlreason.traces.similar import Benchmarks
from rlreason.types import TrainingSample


def trace_samples(
    stage: DistillStage | OpdStage, context: Context, student: Inspected, traces: Path
) -> list[TrainingSample]:
    """The traces in the folder ``traces`` as rows of the student's tokenizer and template.

    Raises UsageError where no trace was kept, and for one that is longer than the student's positions, unless
    ``data.overlong_prompts`` leaves such out.
    """
    samples, too_long = [], 0
    positions = student.architecture.get("max_position_embeddings")
    for trace in _traces(stage, context, traces):
        pair = context.prompt_format.supervised(trace.problem, student.tokenizer, trace.response, ended=trace.ended)
        if not isinstance(positions, int) or len(pair.token_ids) <= positions:
            samples.append(supervised_sample(pair.token_ids, pair.loss_mask))
        elif context.recipe.data.overlong_prompts == "drop":
            too_long += 1
        else:
            raise UsageError(
                f"stage {stage.name!r}: the trace of problem {trace.problem.id!r} has {len(pair.token_ids)} tokens, "
                f'and the student {positions} positions; leave such traces out by data.overlong_prompts = "drop"'
            )
    if too_long:
        context.run.tell(f"{stage.name}: {too_long} trace(s) left out as longer than {positions} tokens")
    if not samples:
        raise UsageError(
            f"stage {stage.name!r}: {traces} holds no trace that could be learnt: {_why(stage, traces, too_long)}"
        )
    if not any(sample.loss_mask.any() for sample in samples):
        raise UsageError(
            f"stage {stage.name!r}: no token of the traces in {traces} carries loss: the student's chat template "
            "leaves nothing of the answers behind the mask of the prompt"
        )
    return samples


def _why(stage: DistillStage | OpdStage, traces: Path, too_long: int) -> str:
    if too_long:
        return f"all {too_long} are longer than the student's positions; take a student with more, or shorter traces"
    if isinstance(stage, DistillStage) and stage.which != "kept":
        found = "no draw is wrong and finished" if stage.which == "wrong" else "every draw answers a benchmark"
        return f'{found}: which = "kept" takes the kept ones'
    card = traces / CARD
    return f"nothing was kept there{f'; {card} says what each filter took' if card.is_file() else ''}"


def general_samples(stage: DistillStage, context: Context, student: Inspected, tokens: int) -> list[TrainingSample]:
    """The first demonstrations of ``stage.general`` that together have ``general_share`` of the loss tokens beside
    ``tokens`` of the traces; of a set that has fewer all, which is said."""
    source, wanted = context.data.of(stage.name), tokens * stage.general_share / (1.0 - stage.general_share)
    there = source.demonstration_count
    found: list[TrainingSample] = []
    have = 0
    positions, looked = student.architecture.get("max_position_embeddings"), 0
    while have < wanted and (there is None or looked < there):
        (problem,) = source.demonstrations(looked, 1)
        pair = context.prompt_format.supervised(problem, student.tokenizer)
        looked += 1
        if isinstance(positions, int) and len(pair.token_ids) > positions:
            if context.recipe.data.overlong_prompts == "drop":
                continue
            raise UsageError(
                f"stage {stage.name!r}: the demonstration of problem {problem.id!r} has {len(pair.token_ids)} tokens, "
                f'and the student {positions} positions; leave such out by data.overlong_prompts = "drop"'
            )
        found.append(supervised_sample(pair.token_ids, pair.loss_mask))
        have += int(found[-1].loss_mask.sum())
    context.run.tell(
        f"{stage.name}: {len(found):,} demonstrations of general data beside the traces, {have / (have + tokens):.1%} "
        "of the tokens"
    )
    return found


def _traces(stage: DistillStage | OpdStage, context: Context, folder: Path) -> Iterator[Trace]:
    """Those that the stage learns. Draws that were no kept traces may answer a benchmark's questions, which are learnt
    in no case: what is measured afterwards would be worth nothing."""
    which = stage.which if isinstance(stage, DistillStage) else "kept"
    filters = None if which == "kept" else References(context.recipe).traces_of(stage).filters
    if filters is None:
        yield from read_traces(folder, which)
        return
    wanted, hits = filters.decontaminate, 0
    benchmarks = Benchmarks.read(wanted.against, wanted.n, Path())
    for trace in read_traces(folder, which):
        if benchmarks.hit(trace.problem.prompt) is None:
            yield trace
        else:
            hits += 1
    if hits:
        context.run.tell(f"{stage.name}: {hits} draw(s) left out, whose problems share words with a benchmark")


def distill_rows(stage: DistillStage, context: Context, student: Inspected, traces: Path) -> LearntRows:
    """The traces in the folder ``traces``, and the general data beside them. Raises UsageError as ``trace_samples``."""
    samples = trace_samples(stage, context, student, traces)
    if stage.general is not None:
        samples += general_samples(stage, context, student, sum(int(one.loss_mask.sum()) for one in samples))
    return LearntRows.of(samples, stage, context)

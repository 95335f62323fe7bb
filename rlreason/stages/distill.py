"""Distillation: a smaller student learns from the traces that rejection sampling kept (R1, section 2.4).

With ``teacher_kl`` it also learns the teacher's distribution on those traces (Hinton et al. 2015, arXiv 1503.02531).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from rlreason.config import DistillStage
from rlreason.errors import UsageError
from rlreason.policy.batch import supervised_row
from rlreason.policy.policies import Policy
from rlreason.stages.context import Context, Recorder
from rlreason.stages.reject import read_traces
from rlreason.stages.sft import SupervisedRun, epoch_rows, train_supervised


def run_distill(
    stage: DistillStage, context: Context, student: Policy, traces: Path, teacher: Policy | None
) -> Recorder:
    """Train ``student`` on the traces in the folder ``traces``; ``teacher`` is given where its logits are wanted.

    Raises UsageError where no trace was kept, or where teacher and student do not share a vocabulary.
    """
    rows = []
    for trace in read_traces(traces):
        pair = context.prompt_format.supervised(trace.problem, student.tokenizer, trace.response)
        rows.append(supervised_row(pair.token_ids, pair.loss_mask))
    if not rows:
        raise UsageError(f"stage {stage.name!r}: {traces} holds no trace: the teacher solved nothing; train it further")
    teacher_model = _matching(teacher, student) if teacher is not None else None
    run = replace(SupervisedRun.begin(stage, context, student), teacher=teacher_model, teacher_kl=stage.teacher_kl)
    batches = epoch_rows(rows, stage.batch_size, context.recipe.seed, stage.name)
    return train_supervised(stage, context, run, batches)


def _matching(teacher: Policy, student: Policy) -> PreTrainedModel:
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise UsageError(
            "teacher_kl needs one vocabulary for teacher and student; set teacher_kl = 0 to use traces only"
        )
    return teacher.copy_model()

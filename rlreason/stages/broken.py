"""A step of a stage that draws and learns, all of whose checks broke: it says nothing of the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from rlreason.config import GrpoStage, OpdStage
from rlreason.stages.context import Recorder
from rlreason.stages.rollout_log import log_groups
from rlreason.stages.rollouts import summarize
from rlreason.trainer.protocol import Trainer
from rlreason.types import Group, StepReport


def stop_broken(
    stage: GrpoStage | OpdStage,
    step: int,
    groups: Sequence[Group],
    recorder: Recorder,
    trainer: Trainer,
    position: Mapping[str, JsonValue],
) -> None:
    """Keep the state before the step, write its rollouts and metrics, and raise HealthStop.

    Once the reward is mended, the stage goes on with this step. Called once the step is committed to, so that signals
    wait. ``position``: ``stages.loop.Work.position``.
    """
    recorder.progress.position = dict(position)
    recorder.save(trainer.save_state)
    keep = stage.logged_groups if isinstance(stage, GrpoStage) else None
    log_groups(recorder.context, stage.name, step, groups, keep=keep, decode=trainer.tokenizer.decode)
    report = StepReport(
        stage=stage.name, kind=stage.kind, step=step, policy_version=step, scalars=summarize(groups, ())
    )
    recorder.step(report)

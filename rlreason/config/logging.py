"""The recipe's table for what a run leaves to look at, and who else is told of its numbers: ``[logging]``."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, field_validator

from rlreason import extensions
from rlreason.config.engine import Section

ShippedTracker = Literal["tensorboard", "wandb", "trackio"]


class RolloutLog(Section):
    """What of the sampled completions is kept in rollouts.jsonl."""

    #: Groups of each step of a ``grpo`` or ``reject`` stage, the first ones; ``logged_groups`` of a stage goes before.
    groups: int = Field(4, ge=0)
    #: Completions of each step, beside those groups, whose check broke or timed out.
    failures: int = Field(8, ge=0)
    #: Write rollouts.jsonl.gz, one gzip member a step: ``zcat`` and ``datasets`` read it.
    compress: bool = False
    #: A stage's file stays under so many MiB: from half of it on every 2nd step is written, from three quarters on
    #: every 4th, and so on.
    max_mib: float = Field(1024.0, gt=0)


class LoggingConfig(Section):
    """What a run leaves to look at. metrics.jsonl is always written; nothing here changes a result."""

    #: Told of every step's metrics too. Each needs its package, such as wandb. One of your own: `path/file.py:Class`,
    #: `pkg.mod:Class`, or a name that an installed package offers (docs/extending.md).
    trackers: tuple[ShippedTracker | str, ...] = ()
    #: Project of W&B and trackio; default: the recipe's name.
    project: str | None = Field(None, min_length=1)
    #: Name of the run there; default: the name of the run directory.
    run_name: str | None = Field(None, min_length=1)
    #: User or team of W&B.
    entity: str | None = Field(None, min_length=1)
    #: Folder for the files of trackers; default: the run directory, and trackio's own place.
    dir: str | None = Field(None, min_length=1)
    rollouts: RolloutLog = RolloutLog()
    #: Record what each rollout worker of an asynchronous stage did (schedule.jsonl), which ``--replay`` needs.
    schedule: bool = True

    @field_validator("trackers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a tracker twice")
        for name in value:
            extensions.check(extensions.TRACKERS, name, get_args(ShippedTracker))
        return value

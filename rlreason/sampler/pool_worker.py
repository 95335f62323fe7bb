"""One place of the pool: the worker in it, and what it is doing."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlreason.sampler.handles import Call, Handle
from rlreason.sampler.jobs import Job
from rlreason.sampler.outbox import Delivery
from rlreason.sampler.schedule import Op


@dataclass(frozen=True, slots=True)
class Build:
    """The worker builds its engine."""


@dataclass(frozen=True, slots=True)
class Tell:
    """The worker is told to "sleep", "wake" or "abort"."""

    method: str


@dataclass(slots=True)
class PoolWorker:
    """A worker as the pool sees it."""

    handle: Handle
    version: int | None = None
    #: Whether it holds the frozen weights that adapters of now are added to.
    on_base: bool = False
    #: Jobs handed over and not finished, by key.
    outstanding: dict[str, Job] = field(default_factory=dict)
    op: Op | Build | Tell | None = None
    call: Call | None = None
    #: What ``call`` delivers.
    delivery: Delivery | None = None
    since: float = 0.0
    #: Since when it waits for others that are to take the same weights.
    ready: float | None = None
    #: Whether it has built its engine.
    up: bool = False
    asleep: bool = False
    #: No process came up in its place: nothing more is given to it.
    lost: bool = False

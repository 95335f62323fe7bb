"""What a step and an evaluation say of themselves. Nouns as those of ``types``, which gives them on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One metrics line. Example: ``StepReport(stage="grpo", kind="grpo", step=3, policy_version=3,
    scalars={"reward/mean": 0.61, "length/mean": 31.2})``."""

    stage: str
    kind: str
    step: int
    policy_version: int
    scalars: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A proportion with its 95 % interval. Example: ``Interval(value=0.81, low=0.773, high=0.842, count=500)``."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalReport:
    """One model on one suite, over verified answers (``eval.summary``); the last four: shares of all completions.

    Example: ``EvalReport(model="grpo", suite="heldout", accuracy=Interval(...), verdicts={"correct": 405}, …)``.
    """

    model: str
    suite: str
    accuracy: Interval
    #: Unbiased pass@k (Chen et al. 2021, arXiv 2107.03374) for each k up to the samples drawn.
    pass_at_k: Mapping[int, float]
    verdicts: Mapping[str, int]
    by_tag: Mapping[str, Interval]
    mean_tokens: float
    #: Chance that the answer most given among k samples is right, for each k up to the samples drawn (cons@k).
    majority_at_k: Mapping[int, float] = field(default_factory=dict)
    #: Standard deviation of the accuracy between reruns with one sample a problem; None: one sample was drawn.
    rerun_deviation: float | None = None
    parameters: int = 0
    broken: float = 0.0
    timed_out: float = 0.0
    unparsed: float = 0.0
    #: Completions that ended at ``max_tokens``.
    truncated: float = 0.0

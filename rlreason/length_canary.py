"""`rlreason doctor canary RECIPE`: a reward for short completions must be learned in a few steps, by a recipe's own
engine, cluster, delivery and adapter.

Checksums and probes say that numbers arrived; this says that what is drawn follows what is trained, whatever lies
between: an engine that draws from weights or an adapter that it had before keeps its lengths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, variance
from tempfile import TemporaryDirectory
from typing import Any

from rlreason.config import GrpoStage, OpdStage, Recipe
from rlreason.errors import UsageError
from rlreason.terminal import console

#: Last steps whose lengths are compared with those that were drawn before anything was learned.
LAST = 5
#: Lengths must have fallen by this share, and by so many standard errors: one time in 5,000 by chance.
FALLEN, ERRORS = 0.2, 4.5
#: Largest learning rate that is taken by itself.
FASTEST = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRequest:
    """How it is run. ``lr`` None: ten times that of the recipe's first stage that draws and learns."""

    steps: int = 20
    problems: int = 16
    samples: int = 4
    max_tokens: int = 64
    lr: float | None = None
    #: Run directory to keep.
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the lengths did. Example: ``Learned(first=40.0, last=12.0, change=-9.0)``."""

    #: Mean length of completions before anything was learned and in the last steps, in tokens.
    first: float
    last: float
    #: Their difference in its standard errors.
    change: float

    @property
    def enough(self) -> bool:
        """Whether that is learning, and not chance."""
        return self.last <= (1.0 - FALLEN) * self.first and self.change <= -ERRORS


def canary_recipe(recipe: Recipe, request: CanaryRequest) -> Recipe:
    """``recipe`` with one stage that is rewarded for short completions. Raises UsageError where it has none that draws
    from what it trains."""
    own = next((stage for stage in recipe.stage if isinstance(stage, (GrpoStage, OpdStage))), None)
    if own is None:
        raise UsageError(f"{recipe.name} has no grpo or opd stage: none of its engines is given what is trained")
    lr = request.lr or max(own.optimizer.rate, min(10.0 * own.optimizer.rate, FASTEST))
    staleness = own.staleness if isinstance(own, GrpoStage) else 0
    stage: dict[str, Any] = {
        "kind": "grpo",
        "name": "canary",
        "model": "policy",
        "steps": request.steps + staleness,
        "problems_per_step": request.problems,
        "samples_per_problem": request.samples,
        "max_tokens": request.max_tokens,
        "temperature": own.temperature,
        "staleness": staleness,
        "lora": own.lora,
        "logged_groups": request.problems,
        "optimizer": {"lr": lr},
        "micro_batch_tokens": own.micro_batch_tokens,
    }
    if own.data is not None:
        stage["data"] = own.data
    reward = {"weight": 1.0, "max_tokens": request.max_tokens, "correct": [1.0, 0.0], "wrong": [1.0, 0.0]}
    # What its other stages trained, drew from or kept has no place here.
    gone: dict[str, Any] = {"teacher": {}, "student": None, "endpoint": {}, "logging": {}}
    gone |= {"policy": recipe.student.model_dump()} if own.model == "student" and recipe.student is not None else {}
    trainer = recipe.trainer.model_copy(update={"best_metric": None, "keep_checkpoints": 0})
    table = recipe.model_dump() | gone | {"name": f"{recipe.name}-canary", "stage": [stage]}
    return Recipe.model_validate(table | {"reward": {"length": reward}, "trainer": trainer.model_dump()})


def judged(before: Sequence[float], after: Sequence[float]) -> Learned:
    """Of the mean length of each group, at least two on either side: completions of one prompt are of like lengths."""
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    away = fmean(after) - fmean(before)
    change = away / error if error > 0 else math.copysign(math.inf, away) if away else 0.0
    return Learned(first=fmean(before), last=fmean(after), change=change)


def canary(recipe: Recipe, path: Path, request: CanaryRequest, command: str) -> tuple[bool, list[str]]:
    """Run it: whether it learned, and what is to be said. ``path``: the file of ``recipe``."""
    from rlreason.job import JobOptions, run_job

    made = canary_recipe(recipe, request)
    with ExitStack() as stack:
        folder = request.out or Path(stack.enter_context(TemporaryDirectory(prefix="rlreason-canary-"))) / "run"
        run_job(made, path, JobOptions(folder=folder, command=command), console)
        stage = next(folder.glob("stages/*-canary"))
        rows, drawn = (
            [json.loads(line) for line in (stage / name).read_text(encoding="utf-8").splitlines()]
            for name in ("metrics.jsonl", "rollouts.jsonl")
        )
    (one,) = made.stage
    assert isinstance(one, GrpoStage)
    lengths: dict[tuple[int, str], list[int]] = {}
    for row in drawn:
        lengths.setdefault((row["step"], row["group_id"]), []).append(row["tokens"])
    before = [fmean(group) for (step, _), group in lengths.items() if step <= one.staleness]
    after = [fmean(group) for (step, _), group in lengths.items() if step >= one.steps - LAST]
    found = judged(before, after)
    return found.enough, said(found, rows, made)


def said(found: Learned, rows: Sequence[dict[str, float]], made: Recipe) -> list[str]:
    """What happened, and why if nothing was learned."""
    (stage,) = made.stage
    assert isinstance(stage, GrpoStage)
    how = f"delivery {made.sampler.delivery} by {made.sampler.transport}, staleness {stage.staleness}"
    change = f"{found.change:.1f} standard errors"
    lengths = f"{found.first:.1f} tokens before, {found.last:.1f} in the last {LAST} steps ({change})"
    if found.enough:
        return [f"learned in {len(rows)} steps ({how}): {lengths}"]
    apart = [row["mismatch/k3"] for row in rows if "mismatch/k3" in row]
    lines = [f"NOT learned in {len(rows)} steps ({how}): {lengths}"]
    if min(row["truncated"] for row in rows) > 0.9:
        return [*lines, "nearly all completions were cut off: give more --max-tokens"]
    if apart and apart[-1] > 0.01:
        advice = "the trainer moved away and the engine did not follow, so deliveries do not arrive"
        return [*lines, f"sampler and trainer are {apart[-1]:.2g} nats a token apart in the last step: {advice}"]
    return [*lines, f"sampler and trainer agree, so too little was trained: give more than --lr {stage.optimizer.lr:g}"]

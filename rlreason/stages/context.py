"""What every stage is given, and the little that all training stages share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rlreason.config import Recipe
from rlreason.data.prompts import PromptFormat
from rlreason.data.source import ProblemSource
from rlreason.policy.policies import Policy
from rlreason.run.directory import RunDirectory
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.stages.samplers import Samplers
from rlreason.types import EvalReport, Group, LossOutput, Problem, SamplingParams, Scorer, StepReport

#: (problems, how) -> their groups, scored.
Draw = Callable[[Sequence[Problem], SamplingParams], list[Group]]
#: (scored groups, model name, suite name) -> report. Passed in by the cli, so that stages never import eval.
Evaluate = Callable[[Sequence[Group], str, str], EvalReport]


class Display(Protocol):
    """Shows progress to a person."""

    def begin(self, stage: str, kind: str, total: int) -> None:
        """A stage of ``total`` steps begins."""
        ...

    def advance(self, steps: int, scalars: Mapping[str, float]) -> None:
        """``steps`` more are done; ``scalars`` are the newest numbers."""
        ...

    def end(self, message: str) -> None:
        """The stage is done; ``message`` says in a few words what came out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The run that a stage belongs to."""

    recipe: Recipe
    run: RunDirectory
    source: ProblemSource
    prompt_format: PromptFormat
    scorer: Scorer
    evaluate: Evaluate
    display: Display
    device: torch.device
    #: CPU threads, each working on a micro-batch or a batch of completions.
    threads: int = 1
    samplers: Samplers
    #: Run directory whose recorded schedules are followed.
    replay: Path | None = None

    def sampler(self, policy: Policy) -> PoolSampler:
        """A sampler that holds the policy's weights as version 0; the one opened before is no longer valid."""
        return self.samplers.open(policy)

    def draw_with(self, sampler: PoolSampler) -> Draw:
        """Draws with ``sampler`` and scores."""
        return lambda problems, params: self.scorer.score(sampler.sample(problems, params))

    def heldout_accuracy(self, draw: Draw, stage: str, problems: int, max_tokens: int) -> float:
        """Greedy accuracy of what ``draw`` draws with, on the first ``problems`` held-out problems."""
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, stream=f"{stage}/heldout")
        return self.evaluate(draw(self.source.heldout(problems), params), stage, "heldout").accuracy.value


@dataclass(slots=True)
class Recorder:
    """Writes a stage's metrics lines, one a step, and counts its tokens."""

    context: Context
    stage: str
    kind: str
    started: float = field(default_factory=time.perf_counter)
    sampled_tokens: int = 0
    trained_tokens: int = 0

    def step(self, report: StepReport, steps: int = 1) -> None:
        """Add one line to metrics.jsonl and move the progress bar."""
        now = time.perf_counter()
        line = {key: value for key, value in asdict(report).items() if key != "scalars"}
        line |= {"time": round(time.time(), 3), "seconds": round(now - self.started, 4)}
        self.started = now
        self.context.run.append(self.stage, "metrics.jsonl", {**line, **report.scalars})
        self.context.display.advance(steps, report.scalars)


@dataclass(slots=True)
class StepMeter:
    """Sums loss outputs over the micro-batches of a step; read once at its end, so nothing waits for the device."""

    losses: list[Tensor] = field(default_factory=list)
    sums: dict[str, list[Tensor]] = field(default_factory=dict)
    maxima: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, output: LossOutput) -> None:
        """Take in one micro-batch."""
        self.losses.append(output.loss.detach())
        for key, value in output.sums.items():
            self.sums.setdefault(key, []).append(value)
        for key, value in output.maxima.items():
            self.maxima.setdefault(key, []).append(value)

    def read(self, denominator: float) -> dict[str, float]:
        """Loss, per-token means and maxima as numbers."""
        scalars = {"loss": float(torch.stack(self.losses).sum())} if self.losses else {}
        scalars |= {key: float(torch.stack(values).sum()) / denominator for key, values in self.sums.items()}
        return scalars | {key: float(torch.stack(values).max()) for key, values in self.maxima.items()}


def is_due(step: int, every: int, total: int) -> bool:
    """Whether the held-out evaluation after step ``step`` (from 0) is due."""
    return every > 0 and ((step + 1) % every == 0 or step + 1 == total)

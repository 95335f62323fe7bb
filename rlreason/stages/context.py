"""What every stage is given, and the little that all training stages share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from pydantic import JsonValue, TypeAdapter

from rlreason.config import Recipe
from rlreason.data.prompts import PromptFormat
from rlreason.data.run_data import RunData
from rlreason.diagnose.health import Finding, StageHealth
from rlreason.diagnose.rules import History
from rlreason.run.directory import RunDirectory
from rlreason.run.manifest import StageEntry, WarningEntry
from rlreason.run.sinks import Trackers
from rlreason.run.states import SavedState
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.open import ServedModel
from rlreason.sampler.placement import Samplers
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.stages.ledger import Meter
from rlreason.stages.trainers import Trainers
from rlreason.types import EvalReport, Group, Problem, Sampler, SamplingParams, Scorer, StepReport

#: (problems, how) -> their groups, scored.
Draw = Callable[[Sequence[Problem], SamplingParams], list[Group]]
#: (scored groups, model name, suite name) -> report. Passed in by the cli, so that stages never import eval.
Evaluate = Callable[[Sequence[Group], str, str], EvalReport]


class Display(Protocol):
    """Shows progress to a person."""

    def begin(self, stage: str, kind: str, total: int | None) -> None:
        """A stage of ``total`` steps begins; None: ``lasts`` says how many."""
        ...

    def lasts(self, total: int) -> None:
        """The stage that has begun has ``total`` steps."""
        ...

    def advance(self, steps: int, scalars: Mapping[str, float]) -> None:
        """``steps`` more are done; ``scalars`` are the newest numbers."""
        ...

    def note(self, text: str) -> None:
        """Something that a person should know; nothing is wrong."""
        ...

    def warn(self, text: str) -> None:
        """Something that a person should look at; the stage goes on."""
        ...

    def end(self, message: str) -> None:
        """The stage is done; ``message`` says in a few words what came out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The run that a stage belongs to."""

    recipe: Recipe
    run: RunDirectory
    data: RunData
    prompt_format: PromptFormat
    scorer: Scorer
    #: Asks the verifiers alone, whatever the reward: for evaluations.
    verifier: Scorer
    evaluate: Evaluate
    display: Display
    device: torch.device
    samplers: Samplers
    trainers: Trainers
    #: Run directory whose recorded schedules are followed.
    replay: Path | None = None
    #: Who else is told of the metrics.
    trackers: Trackers = field(default_factory=Trackers)
    #: Of stages that have rewards of their own, by the stage's name.
    stage_scorers: Mapping[str, Scorer] = field(default_factory=dict)

    def scorer_of(self, stage: str) -> Scorer:
        """What scores the completions of ``stage``."""
        return self.stage_scorers.get(stage, self.scorer)

    def sampler(self, model: ServedModel, version: int = 0, *, growth: int = 0, ahead: bool = False) -> PoolSampler:
        """A sampler that holds the model's weights as ``version``; the one opened before is no longer valid.
        ``growth`` and ``ahead`` as in ``Samplers.open``."""
        return self.samplers.open(model, version=version, growth=growth, ahead=ahead)

    def draw_with(self, sampler: Sampler) -> Draw:
        """Draws with ``sampler`` and verifies."""
        return lambda problems, params: self.verifier.score(list(draw_groups(sampler, problems, params)))

    def heldout_asked(self, stage: str, problems: int, max_tokens: int) -> tuple[list[Problem], SamplingParams]:
        """What an evaluation while training asks: the first ``problems`` held-out problems, drawn greedily."""
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, stream=f"{stage}/heldout")
        return list(self.data.of(stage).heldout(problems)), params

    def heldout_metrics(self, groups: Sequence[Group], stage: str) -> dict[str, float]:
        """Accuracy of what was drawn for it, and the shares of answers without a verdict. Without any verdict there is
        no accuracy."""
        report = self.evaluate(groups, stage, "heldout")
        accuracy = {"accuracy/heldout": report.accuracy.value} if report.accuracy.count else {}
        shares = {"heldout/broken": report.broken, "heldout/timed_out": report.timed_out}
        return accuracy | shares | {"heldout/verified": float(report.accuracy.count)}


@dataclass(slots=True)
class Progress:
    """How far a stage is: with the trainer's state, all that it needs to go on."""

    #: Steps (of reject: chunks, of eval: models) that are recorded.
    done: int = 0
    #: Metrics of a step that is trained but not recorded yet.
    pending: dict[str, float] | None = None
    #: What else the stage must know, of its own.
    position: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def trained(self) -> int:
        """Steps that are trained, recorded or not: the version of the weights."""
        return self.done + (self.pending is not None)


_PROGRESS = TypeAdapter(Progress)


@dataclass(slots=True)
class Recorder:
    """What a stage leaves behind: its metrics lines, one a step, its counts (``entry``), its states."""

    context: Context
    #: The stage's line in the manifest; its seconds and tokens are those of the state that it goes on from.
    entry: StageEntry
    #: The state that the stage goes on from; None: it begins.
    saved: SavedState | None = None
    progress: Progress = field(init=False)
    #: ``progress.done`` of the newest state.
    saved_at: int = field(init=False, default=-1)
    health: StageHealth = field(init=False)
    meter: Meter = field(init=False)
    _seconds: float = field(init=False)
    _began: float = field(default_factory=time.perf_counter)
    _last: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._seconds = self.entry.seconds
        self.meter = Meter(entry=self.entry)
        self.progress = Progress() if self.saved is None else _PROGRESS.validate_python(dict(self.saved.progress))
        if self.saved is not None and self.progress.pending is None:
            self.saved_at = self.progress.done
        run, kind = self.context.run, self.entry.kind
        self.health = StageHealth(stage=self.entry.name, limits=self.context.recipe.health, history=History(kind=kind))
        if self.saved is not None:
            self.health.replay(run.rows(self.entry.name, "metrics.jsonl"), run.warned(self.entry.name))
        self.warn(self.health.begin(proved=self.context.recipe.sampler.canary))

    def heldout(self, groups: Sequence[Group]) -> dict[str, float]:
        """Metrics of an evaluation while the stage trains, which counts in the ledger."""
        self.meter.evaluated(groups)
        return self.context.heldout_metrics(groups, self.entry.name)

    def warn(self, findings: Sequence[Finding]) -> None:
        """Say in the manifest and on the screen what the health rules found."""
        for one in findings:
            self.context.run.warn(WarningEntry(stage=self.entry.name, rule=one.rule, step=one.step, text=one.text))
            self.context.display.warn(f"{self.entry.name}, step {one.step}: {one.text}")

    def step(self, report: StepReport, steps: int = 1) -> None:
        """Add one line to metrics.jsonl, move the progress bar, and have the health rules look at it.

        Raises HealthStop where all verdicts are BROKEN.
        """
        now = time.perf_counter()
        line = {key: value for key, value in asdict(report).items() if key != "scalars"}
        line |= {"time": round(time.time(), 3), "seconds": round(now - self._last, 4)}
        self._last = now
        scalars = {key: value if math.isfinite(value) else None for key, value in report.scalars.items()}
        self.context.run.append(self.entry.name, "metrics.jsonl", {**line, **scalars})  # JSON has no NaN
        self.context.trackers.step(self.context.run, report, {**report.scalars, "seconds": line["seconds"]})
        self.context.display.advance(steps, report.scalars)
        self.warn(self.health.step(report))

    def count_seconds(self) -> None:
        """Bring the entry's ledger up to date: of this process and of those before it."""
        self.meter.bring_up_to_date()
        self.entry.seconds = round(self._seconds + time.perf_counter() - self._began, 3)

    def save(self, fill: Callable[[Path], None] | None = None) -> None:
        """Save a state; ``fill`` writes the trainer's part of it into a folder."""
        self.count_seconds()
        self.context.run.save_state(self.entry.name, self.progress.done, asdict(self.progress), fill)
        self.saved_at = self.progress.done if self.progress.pending is None else -1


def is_due(step: int, every: int, total: int) -> bool:
    """Whether the held-out evaluation after step ``step`` (from 0) is due."""
    return every > 0 and ((step + 1) % every == 0 or step + 1 == total)

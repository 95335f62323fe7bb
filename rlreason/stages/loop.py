"""The step loop that the training stages share: train, publish, measure, record, save; and go on where it was left.

A step is *trained* once its weights are the next version (``Progress.pending`` holds its metrics) and *done* once it is
recorded. A state saved between the two goes on with what is left of the step, and trains nothing twice.

Where rollouts run ahead of training, so does a held-out evaluation: the next step is taken and its gradients are
computed while the evaluation is drawn, and the step is recorded just before the next one changes its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import JsonValue

from rlreason.config import DistillStage, GrpoStage, OpdStage, SftStage
from rlreason.errors import HealthStop, nearest
from rlreason.run.interrupt import Interrupted, check, deferred, unwrapped
from rlreason.stages.context import Context, Recorder, is_due
from rlreason.trainer.protocol import NonFiniteError, Trainer
from rlreason.types import StepReport

#: Called before the first thing of a step that lasts: from then on until the step is trained, signals wait.
Commit = Callable[[], None]
#: Waits for an evaluation that was asked for, and returns its metrics.
Heldout = Callable[[], dict[str, float]]
TrainedStage = SftStage | GrpoStage | DistillStage | OpdStage


class Work(Protocol):
    """What a stage does in one step."""

    def train(self, step: int, commit: Commit) -> dict[str, float]:
        """Learn from the samples of ``step``, and return its metrics. Calls ``commit`` before it changes weights or
        files, and always once."""
        ...

    def publish(self, version: int) -> None:
        """The weights have become ``version``: offer them to who draws."""
        ...

    def heldout(self) -> Heldout:
        """Begin to measure the greedy accuracy of the newest weights on held-out problems."""
        ...

    def closing(self, scalars: dict[str, float]) -> dict[str, float]:
        """The step's metrics with those that are known once all else of it is over."""
        ...

    def position(self) -> dict[str, JsonValue]:
        """What a state must hold of the work beside the step."""
        ...


@dataclass(slots=True, kw_only=True)
class StepLoop:
    """The steps of a training stage that are still to be done."""

    stage: TrainedStage
    context: Context
    trainer: Trainer
    recorder: Recorder
    #: Version of the weights that whoever draws was given last.
    published: int
    #: The next step may be taken while an evaluation is drawn.
    ahead: bool = False
    #: A step's weights are changing: what is there now belongs to no step.
    _changing: bool = field(default=False, init=False)
    #: The evaluation of the step that is trained and not recorded yet.
    _evaluation: Heldout | None = field(default=None, init=False)
    _seen: set[str] = field(default_factory=set, init=False)

    def run(self, work: Work) -> None:
        """All of them. A signal or a failure leaves a state of the last step that was trained, and is raised."""
        try:
            with unwrapped():
                for step in range(self.recorder.progress.done, self.stage.steps):
                    check()
                    self._train(step, work)
                    self._finish(step, work)
        except Interrupted:
            self._save(work)
            raise
        except (NonFiniteError, HealthStop):
            raise  # the state that was saved last is from before the trouble
        except Exception:
            if not self._changing:
                with suppress(Exception):  # what failed first is what the user must see
                    self._save(work)
            raise
        if self.recorder.saved_at != self.recorder.progress.done:
            self._save(work)
        self._say_no_best()

    def _train(self, step: int, work: Work) -> None:
        progress = self.recorder.progress
        if progress.pending is not None and self._evaluation is None:
            return
        with ExitStack() as until_trained:

            def commit() -> None:
                if self._evaluation is not None:
                    self._record(work)
                until_trained.enter_context(deferred())
                self._changing = True

            progress.pending = work.train(step, commit)
            self._changing = False

    def _finish(self, step: int, work: Work) -> None:
        stage = self.stage
        if self.published <= step:
            work.publish(step + 1)
            self.published = step + 1
        if is_due(step, stage.eval_every, stage.steps):
            self._evaluation = work.heldout()
            if self.ahead and step + 1 < stage.steps and not self._saves_after(step):
                return
        self._record(work)

    def _saves_after(self, step: int) -> bool:
        every = self.context.recipe.trainer.save_every
        return every > 0 and (step + 1) % every == 0

    def _record(self, work: Work) -> None:
        """Record the step that is trained, once its evaluation is there."""
        stage, progress = self.stage, self.recorder.progress
        assert progress.pending is not None
        step, scalars = progress.done, dict(progress.pending)
        if self._evaluation is not None:
            scalars |= self._evaluation()
            self._evaluation = None
        with deferred():
            scalars = work.closing(scalars)
            self.recorder.step(
                StepReport(stage=stage.name, kind=stage.kind, step=step, policy_version=step + 1, scalars=scalars)
            )
            progress.done, progress.pending = step + 1, None
            self._keep_best(step + 1, scalars)
            if self._saves_after(step):
                self._save(work)
                keep = self.context.recipe.trainer.keep_checkpoints
                if keep:
                    self.context.run.save_checkpoint(stage.name, f"step-{step + 1:06d}", self.trainer.save, keep)

    def _save(self, work: Work) -> None:
        with deferred():
            self.recorder.progress.position = work.position()
            self.recorder.save(self.trainer.save_state)

    def _keep_best(self, done: int, scalars: Mapping[str, float]) -> None:
        metric, best = self.context.recipe.trainer.best_metric, self.recorder.entry.best
        if metric is None:
            return
        self._seen |= scalars.keys()
        value = scalars.get(metric, math.nan)
        if math.isfinite(value) and (best is None or best.metric != metric or value > best.value):
            self.context.run.save_best(self.stage.name, done, metric, value, self.trainer.save)

    def _say_no_best(self) -> None:
        """A metric that no step had is a mistake in its name, or nobody measured it."""
        metric = self.context.recipe.trainer.best_metric
        if metric is not None and self._seen and metric not in self._seen and self.recorder.entry.best is None:
            self.context.display.note(
                f"{self.stage.name}: no step had the metric {metric!r} (trainer.best_metric)"
                f"{nearest(metric, sorted(self._seen))}, so no best checkpoint was kept"
            )

"""Who else is told of a run's numbers: trackers such as TensorBoard, W&B and trackio, beside metrics.jsonl.

Each tracker has a thread and a bounded queue of its own. One that fails, hangs or is gone costs one warning, and no
step: what it can't take is dropped, and only the end of a stage waits for it, for a few seconds.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rlreason.run.directory import RunDirectory
from rlreason.secrets import mask
from rlreason.types import StepReport

#: Lines that wait for a slow tracker; more are dropped.
QUEUE = 10_000
#: Seconds that the end of a stage, and of the run, wait for all trackers together.
FLUSH_SECONDS, CLOSE_SECONDS = 10.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker is told when it starts. Example: ``TrackedRun(project="gsm8k", name="lr-1e-6", …)``."""

    project: str
    name: str
    #: The run directory, where ids are kept under which a resumed run goes on.
    root: Path
    #: Folder for files; None: the run directory, or the tracker's own place.
    folder: Path | None
    entity: str | None
    #: The recipe, without secrets.
    config: Mapping[str, object]
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsLine:
    """One step. Example: ``MetricsLine(stage="grpo", folder="03-grpo", step=5, at=125, scalars={"loss": 0.1})``."""

    stage: str
    #: ``NN-name``, as in the run directory.
    folder: str
    step: int
    #: Lines of the whole run before this one: a step count that never goes back.
    at: int
    scalars: Mapping[str, float]


class Tracker(Protocol):
    """Takes a run's numbers. All calls come from one thread; any may raise."""

    def start(self, run: TrackedRun) -> None:
        """Called once, first."""
        ...

    def log(self, line: MetricsLine) -> None:
        """A step's metrics."""
        ...

    def summarize(self, at: int, values: Mapping[str, float | str]) -> None:
        """Results of a stage or of the run, such as ``eval/heldout/grpo: 0.81``."""
        ...

    def finish(self, failed: bool) -> None:
        """Called once, last."""
        ...


_Task = Callable[[Tracker], None]


class _Worker:
    """A tracker's thread. It is a daemon: one that hangs does not keep the process."""

    def __init__(self, name: str, tracker: Tracker, tell: Callable[[str], None]) -> None:
        self._name, self._tracker, self._tell = name, tracker, tell
        self._tasks: queue.Queue[_Task | None] = queue.Queue(QUEUE)
        self._broken = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, task: _Task) -> None:
        """Have the tracker do ``task``, later; never waits."""
        if self._broken:
            return
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            self._give_up(f"it has not taken {QUEUE:,} lines")

    def flush(self, until: float) -> None:
        """Wait until the tracker has done what it was given, at most until ``until`` (monotonic seconds)."""
        done = threading.Event()
        self.put(lambda _: done.set())
        while not self._broken and time.monotonic() < until and not done.wait(0.05):
            pass

    def close(self, task: _Task, until: float) -> None:
        """Do ``task`` and end, at most until ``until``."""
        if self._broken:
            return
        self.put(task)
        try:
            self._tasks.put_nowait(None)
        except queue.Full:
            self._broken = True
            return
        while not self._broken and time.monotonic() < until and self._thread.is_alive():
            self._thread.join(0.05)
        if self._thread.is_alive() and not self._broken:
            self._give_up("it did not finish in time")

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._broken:
            try:
                task(self._tracker)
            except BaseException as error:  # wandb raises KeyboardInterrupt and SystemExit of its own
                self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                return

    def _give_up(self, why: str) -> None:
        if not self._broken:
            self._broken = True
            self._tell(mask(f"warning: {self._name} gets no more of this run, which goes on without it: {why}"))


@dataclass(slots=True)
class Trackers:
    """All trackers of a run; ``Trackers()`` has none."""

    _workers: list[_Worker] = field(default_factory=list)
    #: Per stage: lines of metrics.jsonl of the stages before it.
    _before: dict[str, int] = field(default_factory=dict)
    _at: int = 0

    @classmethod
    def start(cls, made: Mapping[str, Tracker], run: TrackedRun, tell: Callable[[str], None]) -> Trackers:
        """Start each tracker of ``made`` in its thread; ``tell`` is told once of each that fails."""
        workers = []
        for name, tracker in made.items():
            worker = _Worker(name, tracker, tell)
            worker.put(lambda one: one.start(run))
            workers.append(worker)
        return cls(workers)

    def step(self, run: RunDirectory, report: StepReport, scalars: Mapping[str, float]) -> None:
        """A step that was recorded."""
        if not self._workers:
            return
        if report.stage not in self._before:
            self._before[report.stage] = _lines_before(run, report.stage)
        self._at = self._before[report.stage] + report.step
        folder = run.stage_folder(report.stage).name
        line = MetricsLine(stage=report.stage, folder=folder, step=report.step, at=self._at, scalars=dict(scalars))
        self._put(lambda one: one.log(line))

    def stage_done(self, run: RunDirectory, stage: str) -> None:
        """A stage is over: its evaluations, and a wait for what is still under way."""
        found = evaluations(run.root, stage)
        at = self._at
        if found:
            self._put(lambda one: one.summarize(at, found))
        until = time.monotonic() + FLUSH_SECONDS
        for worker in self._workers:
            worker.flush(until)

    def close(self, run: RunDirectory, *, failed: bool) -> None:
        """The run is over, or its process is: totals and how it ended. The workers are gone afterwards."""
        totals: dict[str, float | str] = {f"total/{name}": value for name, value in run.manifest.totals}
        states = [entry.status for entry in run.manifest.stages]
        totals["status"] = "failed" if failed else "done" if set(states) == {"done"} else "interrupted"
        at, until = self._at, time.monotonic() + CLOSE_SECONDS

        def end(tracker: Tracker) -> None:
            tracker.summarize(at, totals)
            tracker.finish(failed)

        for worker in self._workers:
            worker.close(end, until)
        self._workers.clear()

    def _put(self, task: _Task) -> None:
        for worker in self._workers:
            worker.put(task)


def evaluations(root: Path, stage: str) -> dict[str, float | str]:
    """``eval/<suite>/<model>`` with ``/low`` and ``/high`` of the evaluations that a stage wrote."""
    found: dict[str, float | str] = {}
    for path in sorted((root / "eval").glob(f"{stage}-*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        name = f"eval/{row['suite']}/{row['model']}"
        accuracy = row["accuracy"]
        found |= {name: accuracy["value"], f"{name}/low": accuracy["low"], f"{name}/high": accuracy["high"]}
    return found


def _lines_before(run: RunDirectory, stage: str) -> int:
    names: Sequence[str] = [entry.name for entry in run.manifest.stages]
    count = 0
    for name in names[: names.index(stage)]:
        path = run.stage_folder(name) / "metrics.jsonl"
        if path.is_file():
            with path.open("rb") as file:
                count += sum(1 for _ in file)
    return count

"""The trackers that a recipe may name: TensorBoard, W&B, trackio. Each needs its package, imported when it starts."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlreason import extensions
from rlreason.run import atomic
from rlreason.run.sinks import MetricsLine, TrackedRun, Tracker

#: Ids under which a resumed run goes on in the same place.
IDS = "trackers.json"


def make_trackers(names: Sequence[str]) -> dict[str, Tracker]:
    """A tracker for each name of ``logging.trackers``, not started.

    Raises UsageError where one of the user's own can't be imported.
    """
    return {extensions.label(name): _MADE[name]() if name in _MADE else _OwnTracker(name) for name in names}


class _OwnTracker:
    """A class of the user's own with the methods of ``Tracker``, made without arguments when the run starts."""

    def __init__(self, name: str) -> None:
        self._class: Callable[[], Tracker] = extensions.load(extensions.TRACKERS, name, "logging.trackers")

    def start(self, run: TrackedRun) -> None:
        """Made here, as here it may fail: that costs a warning, not the run."""
        self._tracker = self._class()
        self._tracker.start(run)

    def log(self, line: MetricsLine) -> None:
        """Passed on."""
        self._tracker.log(line)

    def summarize(self, at: int, values: Mapping[str, float | str]) -> None:
        """Passed on."""
        self._tracker.summarize(at, values)

    def finish(self, failed: bool) -> None:
        """Passed on."""
        self._tracker.finish(failed)


class TensorBoard:
    """Event files, a folder (in TensorBoard: a run) for each stage; steps are the stage's own."""

    def start(self, run: TrackedRun) -> None:
        """Find the package; nothing is written yet."""
        import tensorboard  # noqa: F401  a missing package is said at the start, not at the first step

        self._folder = (run.folder / run.name if run.folder else run.root) / "tensorboard"
        self._config = json.dumps(run.config, indent=2, default=str)
        self._stages: dict[str, _Events] = {}

    def log(self, line: MetricsLine) -> None:
        """Scalars under their names. Of a stage that was gone on with, later events are purged."""
        if line.folder not in self._stages:
            self._stages[line.folder] = _Events(self._folder / line.folder, purge=line.step)
            self._stages[line.folder].add(line.step, {"recipe": f"```json\n{self._config}\n```"})
        self._stages[line.folder].add(line.step, line.scalars)

    def summarize(self, at: int, values: Mapping[str, float | str]) -> None:
        """Scalars and texts of the whole run."""
        if "" not in self._stages:
            self._stages[""] = _Events(self._folder)
        self._stages[""].add(at, values)
        for events in self._stages.values():
            events.writer.flush()

    def finish(self, failed: bool) -> None:
        """Close the files."""
        for events in self._stages.values():
            events.writer.close()


class _Events:
    """One event file. With ``purge``, TensorBoard forgets what earlier files of the folder have from that step on."""

    def __init__(self, folder: Path, purge: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event: Any = Event
        self.writer: Any = EventFileWriter(str(folder))
        if purge:
            start = Event(wall_time=time.time(), step=purge, session_log=SessionLog(status=SessionLog.START))
            self.writer.add_event(start)

    def add(self, step: int, values: Mapping[str, float | str]) -> None:
        """Scalars and texts of one step."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        text = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        found = [
            Summary.Value(tag=name, simple_value=value)
            if not isinstance(value, str)
            else Summary.Value(
                tag=name, metadata=text, tensor=TensorProto(dtype=DT_STRING, string_val=[value.encode()])
            )
            for name, value in values.items()
        ]
        self.writer.add_event(self._event(wall_time=time.time(), step=step, summary=Summary(value=found)))


class Wandb:
    """Weights & Biases: ``<stage>/<metric>`` over ``<stage>/step``. WANDB_MODE=offline writes files only."""

    def start(self, run: TrackedRun) -> None:
        """Open the run, the same one where this run directory had one. Raises where there is no key or no network."""
        import wandb
        from wandb.sdk.lib.import_hooks import unregister_all_post_import_hooks

        folder = run.folder or run.root
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=run.project,
            name=run.name,
            entity=run.entity,
            id=_kept_id(run.root, "wandb"),
            resume="allow",
            dir=folder,
            config=dict(run.config),
            settings=wandb.Settings(
                silent=True,
                console="off",  # the progress bar is not for the log
                x_disable_meta=True,  # it would hold the command line, with whatever keys are on it
                disable_git=True,
                save_code=False,
                login_timeout=1,  # ask nobody for a key in the middle of a run
                init_timeout=60,
                finish_timeout=20,
            ),
        )
        # They tell W&B's service of each import that it counts, in the thread that imports: with the service gone,
        # `import openai`, as vLLM does, would end the run.
        unregister_all_post_import_hooks()
        self._named: set[str] = set()

    def log(self, line: MetricsLine) -> None:
        """One history row; W&B leaves out steps that it has already."""
        if line.stage not in self._named:
            self._run.define_metric(f"{line.stage}/*", step_metric=f"{line.stage}/step")
            self._named.add(line.stage)
        row = {f"{line.stage}/{name}": value for name, value in line.scalars.items()}
        self._run.log(row | {f"{line.stage}/step": line.step}, step=line.at)

    def summarize(self, at: int, values: Mapping[str, float | str]) -> None:
        """The run's summary."""
        self._run.summary.update(dict(values))

    def finish(self, failed: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=1 if failed else 0)


class Trackio:
    """trackio: ``<stage>/<metric>`` in a local store, or where its own environment variables say."""

    def start(self, run: TrackedRun) -> None:
        """Open the run; a run directory that goes on goes on there too."""
        if run.folder is not None:
            os.environ.setdefault("TRACKIO_DIR", str(run.folder / "trackio"))  # read when trackio is imported
        import trackio

        self._run: Any = trackio.init(
            project=run.project,
            name=run.name,
            config=dict(run.config),
            resume="allow" if run.resumed else "never",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log(self, line: MetricsLine) -> None:
        """One row."""
        row = {f"{line.stage}/{name}": value for name, value in line.scalars.items()}
        self._run.log(row | {f"{line.stage}/step": line.step}, step=line.at)

    def summarize(self, at: int, values: Mapping[str, float | str]) -> None:
        """Rows too, as trackio has no summary."""
        self._run.log(dict(values), step=at)

    def finish(self, failed: bool) -> None:
        """Write what is left."""
        self._run.finish()


_MADE: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def _kept_id(root: Path, name: str) -> str:
    """The id of this run directory's run with a tracker, made at the first call."""
    path = root / IDS
    ids: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if name not in ids:
        ids[name] = uuid.uuid4().hex[:12]
        atomic.write_text(path, json.dumps(ids) + "\n")
    return ids[name]

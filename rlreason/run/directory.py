"""Layout of a run directory, and taking one up again after it was interrupted."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from rlreason.errors import UsageError
from rlreason.run import atomic, lock, manifest
from rlreason.run.inputs import InputFile, keep_inputs
from rlreason.run.interrupt import deferred
from rlreason.run.manifest import BestEntry, Change, Manifest, StageEntry, WarningEntry
from rlreason.run.states import SavedState, StageStates, StateRecord, cut_files, file_lengths, row_files

Fill = Callable[[Path], None]
#: What a Python call handed over (rlreason.grpo): its model and problems, there before the run begins.
GIVEN = "given"


def now() -> str:
    """Current time, ISO-8601 in UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunDirectory:
    """A run on disk: ``manifest.json`` says which stages are done; a stage that isn't goes on from its newest state.

    ``notes`` collects what a person should know, such as a damaged state; ``tell`` is called with each as it comes.
    """

    def __init__(self, root: Path, record: Manifest) -> None:
        self.root = root
        self.manifest = record
        self.notes: list[str] = []
        self.tell: Callable[[str], None] = lambda note: None
        #: The stage that was begun last and is not finished.
        self.current: str | None = None

    @classmethod
    def create(cls, root: Path, recipe_toml: str, record: Manifest, inputs: Sequence[InputFile] = ()) -> RunDirectory:
        """Start a run in an empty or new folder, with copies of the files that the recipe names.

        Raises UsageError where one is already there.
        """
        refuse_used(root)
        root.mkdir(parents=True, exist_ok=True)
        record.inputs = keep_inputs(root, inputs)
        (root / "stages").mkdir(exist_ok=True)
        (root / "eval").mkdir(exist_ok=True)
        atomic.write_text(root / "recipe.toml", recipe_toml)
        directory = cls(root, record)
        directory.save()
        return directory

    @classmethod
    def resume(cls, root: Path) -> RunDirectory:
        """Take up a run. Raises UsageError where there is none. That its recipe fits is for the caller to see to."""
        directory = cls(root, manifest.read(root / "manifest.json"))
        for entry in directory.manifest.stages:
            for folder in (directory.stage_folder(entry.name), directory.stage_folder(entry.name) / "checkpoints"):
                atomic.recover(folder)
        return directory

    def change(self, recipe_toml: str, what: Sequence[str]) -> None:
        """Replace the recipe and note in the manifest what is different."""
        self.manifest.changes += [Change(time=now(), what=line) for line in what]
        self.save()
        atomic.write_text(self.root / "recipe.toml", recipe_toml)

    def note_change(self, what: str) -> None:
        """Note in the manifest what is different from here on."""
        self.manifest.changes.append(Change(time=now(), what=what))
        self.save()

    def extend(self, name: str) -> list[str]:
        """Let a stage that is done go on from its last state; stages that descend from it are to be done anew.

        Returns the names of the latter. Raises UsageError where the stage has no state.
        """
        entry = self.manifest.stage(name)
        if entry.status != "done":
            return []
        if not self._states(name).exist():
            raise UsageError(f"stage {name!r} is done and has no state to go on from in {self._states_folder(name)}")
        entry.status, entry.finished = "pending", None
        redo = {name}
        for later in self.manifest.stages:
            made_from = {one.partition("@")[0] for one in later.parents}
            if later.name != name and redo & made_from and later.status != "pending":
                redo.add(later.name)
                self._clear(later.name)
        self.save()
        return [other.name for other in self.manifest.stages if other.name in redo - {name}]

    def save(self) -> None:
        """Write the manifest atomically. Raises DiskFull."""
        self.manifest.save(self.root / "manifest.json")

    def stage_folder(self, name: str) -> Path:
        """``stages/NN-name``, counted from 01."""
        names = [entry.name for entry in self.manifest.stages]
        return self.root / "stages" / f"{names.index(name) + 1:02d}-{name}"

    def checkpoint(self, name: str) -> Path:
        """Checkpoint folder of a training stage, its checksum verified: of ``grpo`` the last, once it is finished; of
        ``grpo@best`` its best, of ``grpo@50`` that of step 50, also before. Raises UsageError where it isn't there."""
        name, _, which = name.partition("@")
        if which:
            return self._kept(name, which)
        folder = self.stage_folder(name) / "checkpoint"
        if not folder.is_dir():
            raise UsageError(f"stage {name!r} has no checkpoint in {folder}")
        if atomic.folder_sha256(folder) != self.manifest.stage(name).sha256:
            raise UsageError(f"{folder} changed since stage {name!r} wrote it (checksum differs); start anew")
        return folder

    def checkpoint_sha256(self, name: str) -> str | None:
        """The checksum of what ``checkpoint(name)`` gives."""
        stage, _, which = name.partition("@")
        return atomic.folder_sha256(self.checkpoint(name)) if which else self.manifest.stage(stage).sha256

    def begin(self, name: str, parents: list[str]) -> tuple[StageEntry, SavedState | None]:
        """Mark a stage as running, and give the state that it goes on from; None: from its start.

        Its *.jsonl files are cut back to where they were when that state was saved, to nothing without one; nothing
        else is touched. The entry's seconds and tokens become those of the state. Raises UsageError where states are
        there and none verifies.
        """
        entry = self.manifest.stage(name)
        folder = self.stage_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        found = self._states(name).newest(self._note)
        record = found[0] if found else StateRecord(step=0)
        cut_files(folder, record.files, self._note)
        if entry.started is None:
            entry.started = now()
        else:
            entry.resumed += 1
        entry.status, entry.error, entry.finished, entry.parents = "running", None, None, parents
        entry.seconds, entry.sampled_tokens = record.seconds, record.sampled_tokens
        entry.trained_tokens, entry.work = record.trained_tokens, record.work.model_copy(deep=True)
        entry.best = record.best
        if entry.best is not None and not (self.root / entry.best.checkpoint).is_dir():
            self._note(f"{name}: its best checkpoint, {entry.best.checkpoint}, is gone; the next one measured is kept")
            entry.best = None
        self._prune_best(name)
        if not found:  # it begins anew, and what was wrong may no longer be
            self.manifest.warnings = [one for one in self.manifest.warnings if one.stage != name]
        self.current = name
        self.save()
        if found:
            self.tell(f"{name}: going on from its state of step {record.step}")
        elif entry.resumed:
            self.tell(f"{name}: beginning anew, as it has no state")
        return entry, SavedState(step=record.step, progress=record.progress, folder=found[1]) if found else None

    def save_state(self, name: str, step: int, progress: Mapping[str, JsonValue], fill: Fill | None = None) -> None:
        """Save what the stage needs to go on after ``step`` steps: ``progress`` and what ``fill`` writes into a folder.

        All or nothing, signals wait, and the state before stays. The entry's seconds and tokens are saved as they are.
        Raises DiskFull, the last good state kept.
        """
        entry, folder, states = self.manifest.stage(name), self.stage_folder(name), self._states(name)
        with deferred():
            for path in row_files(folder):
                atomic.sync_file(path)
            record = StateRecord(
                step=step,
                progress=dict(progress),
                files=file_lengths(folder),
                seconds=entry.seconds,
                sampled_tokens=entry.sampled_tokens,
                trained_tokens=entry.trained_tokens,
                work=entry.work.model_copy(deep=True),
                best=entry.best,
            )
            try:
                states.save(record, fill)
                self._prune_best(name)
            except atomic.DiskFull as error:
                last = states.newest_step()
                kept = "nothing of the stage is saved yet" if last is None else f"the state of step {last} is kept"
                raise atomic.DiskFull(f"{error}; {kept}: make room, then `rlreason resume {self.root}`") from error
            self.save()

    def save_checkpoint(self, name: str, label: str, fill: Fill, keep: int | None = None) -> Path:
        """Write ``checkpoints/<label>`` of a stage, all or nothing. ``label``: such as "step-000050".

        With ``keep``, only the newest so many of the step checkpoints stay. Raises DiskFull.
        """
        folder = self.stage_folder(name) / "checkpoints"
        folder.mkdir(exist_ok=True)
        with deferred():
            atomic.write_folder(folder / label, fill)
            if keep is not None:
                for old in sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name))[: -keep or None]:
                    shutil.rmtree(old)
        return folder / label

    def save_best(self, name: str, step: int, metric: str, value: float, fill: Fill) -> None:
        """Write ``checkpoints/best-000050`` of a stage, the model after ``step`` steps, as its best by ``metric``.

        Those that kept states speak of stay beside it, so that a run finds the best of the state that it goes on from.
        Raises DiskFull.
        """
        folder = self.stage_folder(name) / "checkpoints" / f"best-{step:06d}"
        folder.parent.mkdir(exist_ok=True)
        with deferred():
            checksum = atomic.write_folder(folder, fill)
            place = folder.relative_to(self.root).as_posix()
            best = BestEntry(step=step, metric=metric, value=value, checkpoint=place, sha256=checksum)
            self.manifest.stage(name).best = best
            self.save()
            self._prune_best(name)

    def newest_state(self, name: str) -> int | None:
        """Step of the newest state of a stage, by its name; None: it has none."""
        return self._states(name).newest_step()

    def finish(self, name: str) -> None:
        """Mark a stage as done. Its newest state stays, so that it may be given more steps."""
        entry = self.manifest.stage(name)
        self._states(name).prune(1)
        self._prune_best(name)
        entry.status, entry.finished, entry.error = "done", now(), None
        self.current = None
        self.save()

    def interrupted(self, reason: str) -> str | None:
        """Mark the stage that was running as interrupted and return its name; None: none was."""
        if self.current is None:
            return None
        entry = self.manifest.stage(self.current)
        entry.status, entry.error = "interrupted", reason
        self.save()
        return entry.name

    def rows(self, stage: str, file_name: str) -> Iterator[dict[str, Any]]:
        """The lines of a JSON lines file of the stage; nothing where there is none."""
        path = self.stage_folder(stage) / file_name
        if path.exists():
            with path.open(encoding="utf-8") as file:
                for line in file:
                    yield json.loads(line)

    def warn(self, warning: WarningEntry) -> None:
        """Note a warning in the manifest."""
        self.manifest.warnings.append(warning)
        self.save()

    def warned(self, stage: str) -> list[str]:
        """The rules that have warned of the stage."""
        return [one.rule for one in self.manifest.warnings if one.stage == stage]

    def append(self, stage: str, file_name: str, row: Mapping[str, object]) -> None:
        """Add one JSON line to a file of the stage. Raises DiskFull."""
        self.append_rows(stage, file_name, [row])

    def append_rows(self, stage: str, file_name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Add JSON lines to a file of the stage, all in one write; to a ``.gz`` file as one gzip member.

        Lone surrogates, which no file of text can hold, are written out. Raises DiskFull.
        """
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        data = text.encode("utf-8", "backslashreplace")
        if file_name.endswith(".gz"):
            data = gzip.compress(data, compresslevel=6, mtime=0)
        folder = self.stage_folder(stage)
        with atomic.naming_full_disk(folder, f"to write {file_name}"), (folder / file_name).open("ab", 0) as file:
            while data:
                data = data[os.write(file.fileno(), data) :]

    def _kept(self, name: str, which: str) -> Path:
        folder, best = self.stage_folder(name) / "checkpoints", self.manifest.stage(name).best
        if which == "best":
            if best is None:
                raise UsageError(
                    f"stage {name!r} has kept no best checkpoint: trainer.best_metric names the metric to keep it by, "
                    "and a step must have had it"
                )
            found = self.root / best.checkpoint
            if not found.is_dir() or atomic.folder_sha256(found) != best.sha256:
                raise UsageError(f"{found} is gone or changed since stage {name!r} wrote it (checksum differs)")
            return found
        kept = {int(one.name.removeprefix("step-")): one for one in folder.glob("step-[0-9]*")}
        if not which.isdecimal() or int(which) not in kept:
            there = ", ".join(f"{name}@{step}" for step in sorted(kept))
            raise UsageError(
                f"stage {name!r} has kept no checkpoint {which!r} ({there or 'trainer.keep_checkpoints keeps some'}); "
                f"{name}@best is its best, {name} its last one"
            )
        return kept[int(which)]

    def _prune_best(self, name: str) -> None:
        """Remove every best checkpoint that neither the entry nor a state speaks of: it was surpassed, or is of a
        session that the run does not go on from."""
        best, wanted = self.manifest.stage(name).best, self._states(name).best_steps()
        wanted |= set() if best is None else {best.step}
        for folder in (self.stage_folder(name) / "checkpoints").glob("best-[0-9]*"):
            if int(folder.name.removeprefix("best-")) not in wanted:
                shutil.rmtree(folder)

    def _states_folder(self, name: str) -> Path:
        return self.stage_folder(name) / "state"

    def _states(self, name: str) -> StageStates:
        return StageStates(self._states_folder(name))

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.tell(text)

    def _clear(self, name: str) -> None:
        """Undo a stage whose parents change: its folder, its evaluations, its entry."""
        shutil.rmtree(self.stage_folder(name), ignore_errors=True)
        for path in (self.root / "eval").glob(f"{name}-*.json"):
            path.unlink()
        self.manifest.warnings = [one for one in self.manifest.warnings if one.stage != name]
        index = self.manifest.stages.index(self.manifest.stage(name))
        self.manifest.stages[index] = StageEntry(name=name, kind=self.manifest.stages[index].kind)


def refuse_used(root: Path) -> None:
    """Raise UsageError where a run can't be begun in ``root``: a file, or a folder with something in it."""
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file: --out names a folder for the run")
    if root.exists() and any(path.name not in {lock.NAME, GIVEN} for path in root.iterdir()):
        raise UsageError(f"{root} is not empty: add --resume to continue that run, or choose another --out")

"""Layout of a run directory, and taking one up again after it was interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from rlreason.errors import UsageError
from rlreason.run import atomic, manifest
from rlreason.run.manifest import Manifest, StageEntry


def now() -> str:
    """Current time, ISO-8601 in UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunDirectory:
    """A run on disk: ``manifest.json`` says which stages are done; only those are trusted on resume."""

    def __init__(self, root: Path, record: Manifest) -> None:
        self.root = root
        self.manifest = record

    @classmethod
    def create(cls, root: Path, recipe_toml: str, record: Manifest) -> RunDirectory:
        """Start a run in an empty or new folder. Raises UsageError where one is already there."""
        if root.exists() and any(root.iterdir()):
            raise UsageError(f"{root} is not empty: add --resume to continue that run, or choose another --out")
        (root / "stages").mkdir(parents=True, exist_ok=True)
        (root / "eval").mkdir(exist_ok=True)
        atomic.write_text(root / "recipe.toml", recipe_toml)
        directory = cls(root, record)
        directory.save()
        return directory

    @classmethod
    def resume(cls, root: Path, recipe_toml: str) -> RunDirectory:
        """Take up a run. Raises UsageError when the recipe is not the one it was started with."""
        directory = cls(root, manifest.read(root / "manifest.json"))
        started_with = (root / "recipe.toml").read_text(encoding="utf-8")
        if started_with != recipe_toml:
            changed = _first_difference(started_with, recipe_toml)
            raise UsageError(f"{root} was started with another recipe ({changed}); resume with the same or start anew")
        for entry in directory.manifest.stages:
            if entry.status != "done":
                shutil.rmtree(directory.stage_folder(entry.name), ignore_errors=True)
                entry.status, entry.error = "pending", None
        directory.save()
        return directory

    def save(self) -> None:
        """Write the manifest atomically."""
        self.manifest.save(self.root / "manifest.json")

    def stage_folder(self, name: str) -> Path:
        """``stages/NN-name``, counted from 01."""
        names = [entry.name for entry in self.manifest.stages]
        return self.root / "stages" / f"{names.index(name) + 1:02d}-{name}"

    def checkpoint(self, name: str) -> Path:
        """Checkpoint folder of a finished training stage, its checksum verified."""
        folder = self.stage_folder(name) / "checkpoint"
        if not folder.is_dir():
            raise UsageError(f"stage {name!r} has no checkpoint in {folder}")
        if atomic.folder_sha256(folder) != self.manifest.stage(name).sha256:
            raise UsageError(f"{folder} changed since stage {name!r} wrote it (checksum differs); start anew")
        return folder

    def begin(self, name: str, parents: list[str]) -> StageEntry:
        """Mark a stage as running, its folder empty."""
        entry = self.manifest.stage(name)
        entry.status, entry.started, entry.parents = "running", now(), parents
        folder = self.stage_folder(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.save()
        return entry

    def append(self, stage: str, file_name: str, row: Mapping[str, object]) -> None:
        """Add one JSON line to a file of the stage."""
        with (self.stage_folder(stage) / file_name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _first_difference(old: str, new: str) -> str:
    for before, after in zip(old.splitlines(), new.splitlines(), strict=False):
        if before != after:
            return f"`{before}` became `{after}`"
    return "lines were added or removed"

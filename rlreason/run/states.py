"""States inside a stage: what it takes to go on from a step as if nothing had happened.

    stages/03-grpo/state/step-00000050/
        progress.json    step, the stage's own progress, its counters, the length of each of its *.jsonl files
        SHA256SUMS       of every file, as `sha256sum --check` reads it
        ...              what the stage wrote: weights, moments, ledgers

The two newest are there, so that one that turns out to be damaged costs the steps since the one before.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rlreason.errors import UsageError
from rlreason.run import atomic
from rlreason.run.manifest import BestEntry, Work

#: States that are kept while a stage runs.
KEPT = 2
PROGRESS, SUMS = "progress.json", "SHA256SUMS"
_NAME = re.compile(r"step-\d{8,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A state that verified. Example: ``SavedState(step=50, progress={"seen": 3200}, folder=Path(…/step-00000050))``.

    ``step``: steps that are done; the next one is ``step`` itself, as steps count from 0.
    """

    step: int
    progress: Mapping[str, JsonValue]
    folder: Path


class StateRecord(BaseModel):
    """progress.json. Example: ``StateRecord(step=50, progress={"problems": 3200}, files={"metrics.jsonl": 18211})``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    progress: dict[str, JsonValue] = {}
    #: Bytes of each *.jsonl and *.jsonl.gz file of the stage; what was written later is cut off when the run goes on.
    files: dict[str, int] = {}
    seconds: float = 0.0
    sampled_tokens: int = 0
    trained_tokens: int = 0
    work: Work = Field(default_factory=Work)
    best: BestEntry | None = None


class StageStates:
    """The states of one stage, in its folder ``state``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, record: StateRecord, fill: Callable[[Path], None] | None) -> Path:
        """Write a state, all or nothing, and drop those before the last two. Raises DiskFull; old states stay."""
        target = self._folder / f"step-{record.step:08d}"
        if self._is_saved(target, record):
            return target

        def write(folder: Path) -> None:
            if fill is not None:
                fill(folder)
            (folder / PROGRESS).write_text(json.dumps(record.model_dump(), indent=1) + "\n", encoding="utf-8")
            sums = [f"{atomic.file_sha256(path)}  {name}\n" for name, path in _files(folder).items()]
            (folder / SUMS).write_text("".join(sums), encoding="utf-8")

        self._folder.mkdir(parents=True, exist_ok=True)
        before = self._all()
        needed = atomic.folder_bytes(before[-1]) if before else None
        with atomic.naming_full_disk(self._folder, f"for the state of step {record.step}", needed):
            _write_synced(target, write)
        self.prune(KEPT)
        return target

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep``."""
        for folder in self._all()[:-keep]:
            # Out of sight first: half a state must never be taken for a damaged one.
            gone = folder.with_name(f".{folder.name}.tmp")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def exist(self) -> bool:
        """Whether any state is there, verified or not."""
        return bool(self._all())

    def newest_step(self) -> int | None:
        """Step of the newest state by its name, not verified; None without one."""
        found = self._all()
        return int(found[-1].name.removeprefix("step-")) if found else None

    def best_steps(self) -> set[int]:
        """Steps of the best checkpoints that the states here speak of."""
        found = [_read(folder).best for folder in self._all() if (folder / PROGRESS).is_file()]
        return {best.step for best in found if best is not None}

    def newest(self, tell: Callable[[str], None]) -> tuple[StateRecord, Path] | None:
        """The newest state that verifies; None where there is none at all.

        ``tell`` is told of each one that doesn't verify. Raises UsageError where there are some and none does.
        """
        if not self._folder.is_dir():
            return None
        atomic.recover(self._folder)
        faults: list[str] = []
        for folder in reversed(self._all()):
            wrong = fault(folder)
            if wrong is None:
                if faults:
                    self._put_aside(newer_than=folder)
                    tell(f"going on from {folder.name}, as a newer state is damaged: {'; '.join(faults)}")
                return _read(folder), folder
            faults.append(f"{folder.name}: {wrong}")
        if faults:
            raise UsageError(
                f"no state in {self._folder} can be gone on from: {'; '.join(faults)}; put back what changed, or "
                "remove that folder to begin the stage anew"
            )
        return None

    def _put_aside(self, newer_than: Path) -> None:
        """Damaged states stay, for a person to look at, under a name that counts as no state."""
        for folder in self._all()[self._all().index(newer_than) + 1 :]:
            aside = folder.with_name(f"{folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)

    def _all(self) -> list[Path]:
        """Oldest first."""
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _is_saved(self, target: Path, record: StateRecord) -> bool:
        """Whether the newest state is this very one: a signal came just after it was saved."""
        if self._all()[-1:] != [target] or fault(target) is not None:
            return False
        old = _read(target)
        return (old.step, old.progress, old.files) == (record.step, record.progress, record.files)


def file_lengths(folder: Path) -> dict[str, int]:
    """Bytes of each *.jsonl and *.jsonl.gz file of a stage folder."""
    return {path.name: path.stat().st_size for path in row_files(folder)}


def row_files(folder: Path) -> list[Path]:
    """The files of a stage folder that rows are appended to, sorted."""
    return sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])


def cut_files(folder: Path, lengths: Mapping[str, int], tell: Callable[[str], None]) -> None:
    """Cut each *.jsonl and *.jsonl.gz file of a stage folder back to its recorded length, 0 where none is; never
    removes one.

    A torn line or gzip member at the end goes too. ``tell`` is told of a file that is shorter than it was.
    """
    for name, size in file_lengths(folder).items():
        keep = lengths.get(name, 0)
        if size < keep:
            tell(f"{folder / name} has lost {keep - size:,} bytes since the state was saved; going on without them")
        truncate = _truncate_members if name.endswith(".gz") else _truncate
        truncate(folder / name, min(size, keep))


def _truncate(path: Path, length: int) -> None:
    """Keep ``length`` bytes of a file, or fewer: up to the end of a line."""
    with path.open("r+b") as file:
        end = length
        while end > 0:
            start = max(0, end - (1 << 16))
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        file.truncate(end)
        os.fsync(file.fileno())


def _truncate_members(path: Path, length: int) -> None:
    """Keep ``length`` bytes of a gzip file, or fewer: up to the end of a member."""
    with path.open("r+b") as file:
        end = 0
        member = zlib.decompressobj(wbits=31)
        while file.tell() < length:
            block = file.read(min(1 << 20, length - file.tell()))
            if not block:
                break
            while block:
                try:
                    member.decompress(block)
                except zlib.error:
                    block = b""
                    length = 0  # nothing behind it can be read
                    break
                block = member.unused_data
                if not member.eof:
                    break
                end = file.tell() - len(block)
                member = zlib.decompressobj(wbits=31)
        file.truncate(end)
        os.fsync(file.fileno())


def _write_synced(target: Path, write: Callable[[Path], None]) -> None:
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write(temporary)
        atomic.sync_tree(temporary)
    except BaseException as error:
        atomic.mark_full_disk(error, target.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    atomic.replace_folder(temporary, target)


def _files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != SUMS
    }


def fault(folder: Path) -> str | None:
    """What is wrong with a state's files by its checksums, in a few words; None: it verifies."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return f"{SUMS} can't be read"
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = _files(folder)
    for name in sorted({PROGRESS, *sums, *files}):
        if name not in files:
            return f"{name} is missing"
        if name not in sums:
            return f"{name} has no checksum"
        if atomic.file_sha256(files[name]) != sums[name]:
            return f"{name}: checksum differs"
    return None


def _read(folder: Path) -> StateRecord:
    try:
        return StateRecord.model_validate(json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
    except ValueError as error:
        raise UsageError(f"{folder / PROGRESS} is of another version: {str(error).splitlines()[0]}") from error

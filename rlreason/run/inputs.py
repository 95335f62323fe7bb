"""The files that a recipe names: copied into the run directory, and compared when the run is taken up again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlreason.errors import UsageError
from rlreason.run import atomic
from rlreason.run.manifest import InputEntry

FOLDER = "inputs"
#: Larger data files are not copied.
LARGEST_COPY = 1 << 30
Kind = Literal["data", "reward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file that a recipe names.

    Example: ``InputFile(kind="data", path="/data/sums.jsonl", file=Path("/data/sums.jsonl"))``.

    ``path`` is what the recipe and the manifest say; ``file`` is what is read: that, where it has moved to, or the copy
    in the run directory.
    """

    kind: Kind
    path: str
    file: Path
    #: Of an installed plug-in, whose ``path`` is a module: it is compared and never copied.
    is_module: bool = False


@dataclass(slots=True, kw_only=True)
class KnownInputs:
    """What a run's manifest says of its inputs, to resolve a recipe's names with."""

    root: Path
    entries: tuple[InputEntry, ...]
    #: Whether a file that is there must be as it was. Without, copies only stand in for files that are gone.
    must_match: bool = True
    #: Take changed files instead of refusing them; ``changes`` says which.
    accept: bool = False
    changes: list[str] = field(default_factory=list)

    def resolve(self, kind: Kind, name: str, found: Path | None) -> InputFile | None:
        """The file that ``name`` means, where ``found`` is what was found under that name (absolute), if anything.

        Raises UsageError where the run was begun with another content.
        """
        entries = [entry for entry in self.entries if entry.kind == kind]
        if found is None:
            named = next((entry for entry in entries if _is_named(entry, name)), None)
            return None if named is None else InputFile(kind=kind, path=named.path, file=self._copy(named))
        same = InputFile(kind=kind, path=str(found), file=found)
        if not self.must_match or not entries:
            return same
        known = next((entry for entry in entries if entry.path == str(found)), None)
        if known is not None:
            self.compare(known, found)
            return same
        digest = atomic.file_sha256(found)
        moved = next((entry for entry in entries if entry.sha256 == digest and not Path(entry.path).exists()), None)
        return same if moved is None else InputFile(kind=kind, path=moved.path, file=found)

    def compare(self, entry: InputEntry, file: Path) -> None:
        """Raise UsageError where ``file`` is not what it was, or note the change."""
        digest = atomic.file_sha256(file)
        if digest == entry.sha256:
            return
        what = f"{entry.kind} {entry.path}: sha256 was {entry.sha256[:16]}… and is {digest[:16]}…"
        if not self.accept:
            copy = f"; what it was is in {self.root / entry.copied_to}" if entry.copied_to else ""
            raise UsageError(
                f"{entry.path} changed since {self.root} was begun: its sha256 was {entry.sha256} and is {digest}"
                f"{copy}. Put it back, or go on with it as it is now by --accept-changes"
            )
        if what not in self.changes:
            self.changes.append(what)

    def module(self, name: str, file: Path) -> InputFile:
        """An installed plug-in ``name`` in ``file``, compared."""
        for entry in self.entries:
            if self.must_match and entry.path == name and entry.kind == "reward":
                self.compare(entry, file)
        return InputFile(kind="reward", path=name, file=file, is_module=True)

    def _copy(self, entry: InputEntry) -> Path:
        if entry.copied_to is None:
            raise UsageError(f"{entry.path} is gone, and {self.root} has no copy of it ({entry.note}): put it back")
        copy = self.root / entry.copied_to
        if not copy.is_file() or atomic.file_sha256(copy) != entry.sha256:
            raise UsageError(f"{entry.path} is gone, and its copy {copy} is missing or changed: put one of them back")
        return copy


def _is_named(entry: InputEntry, name: str) -> bool:
    """Whether ``name`` can mean the file of ``entry``, seen from a folder that is no longer known."""
    if Path(name).is_absolute():
        return entry.path == name
    return Path(entry.path).parts[-len(Path(name).parts) :] == Path(name).parts


def keep_inputs(root: Path, files: Iterable[InputFile]) -> list[InputEntry]:
    """Copy files into ``root``/inputs and say what they are. Raises DiskFull."""
    entries = []
    for one in dict.fromkeys(files):
        digest = atomic.file_sha256(one.file)
        size = one.file.stat().st_size
        note = copied_to = None
        if one.is_module:
            note = f"installed, {one.file}"
        elif one.kind == "data" and size > LARGEST_COPY:
            note = f"not copied: {size / 2**30:.1f} GiB, and files over {LARGEST_COPY / 2**30:.0f} GiB are not"
        else:
            copied_to = f"{FOLDER}/{digest[:8]}-{Path(one.path).name}"
            _copy_file(one.file, root / copied_to)
        entries.append(InputEntry(kind=one.kind, path=one.path, sha256=digest, copied_to=copied_to, note=note))
    return entries


def _copy_file(file: Path, copy: Path) -> None:
    if copy.exists():
        return
    copy.parent.mkdir(exist_ok=True)
    temporary = copy.with_name(f".{copy.name}.tmp")
    with atomic.naming_full_disk(copy.parent, f"to copy {file}", file.stat().st_size):
        try:
            shutil.copyfile(file, temporary)
            atomic.sync_file(temporary)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    os.replace(temporary, copy)
    atomic.sync_folder(copy.parent)

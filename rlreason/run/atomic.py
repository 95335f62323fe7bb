"""Writing that survives `kill -9` and a full disk: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class DiskFull(OSError):
    """A file system has no room left. What was being written was taken back; what was there before is still there."""


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` as a whole: a reader sees the old text or the new, never half. Raises DiskFull."""
    write_lines(path, (text,))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """The same with lines that are made one at a time, their ends included."""
    temporary = path.with_name(f".{path.name}.tmp")
    with naming_full_disk(path.parent, f"to write {path.name}"):
        try:
            with temporary.open("w", encoding="utf-8") as file:
                for line in lines:
                    file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        temporary.replace(path)
        sync_folder(path.parent)


def write_folder(folder: Path, fill: Callable[[Path], None]) -> str:
    """Create ``folder`` with what ``fill`` writes into it, all or nothing; returns its checksum.

    A folder of that name is there, old or new, at every moment but between two renames; `recover` sees to that one.
    Raises DiskFull.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with naming_full_disk(folder.parent, f"to write {folder.name}"):
        try:
            temporary.mkdir(parents=True)
            fill(temporary)
            sync_tree(temporary)
            checksum = folder_sha256(temporary)
        except BaseException as error:
            mark_full_disk(error, folder.parent)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        replace_folder(temporary, folder)
    return checksum


def replace_folder(temporary: Path, folder: Path) -> None:
    """Give ``temporary`` the name ``folder``; what had that name is removed only after."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(parent: Path) -> None:
    """Clear away what a killed `write_folder` left in ``parent``; a folder that it had just put aside comes back."""
    for old in parent.glob(".*.old"):
        folder = parent / old.name[1 : -len(".old")]
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)
    for temporary in parent.glob(".*.tmp"):
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder under ``folder``, itself included."""
    for path in folder.rglob("*"):
        if path.is_file():
            sync_file(path)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def sync_file(path: Path) -> None:
    """fsync one file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """fsync one folder: the names in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """SHA-256 over names and contents of all files of ``folder``, in sorted order."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files of ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def naming_full_disk(folder: Path, purpose: str, needed: int | None = None) -> Iterator[None]:
    """Turn "no space left" inside into a DiskFull that names the file system and, where known, the bytes needed."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise DiskFull(_full_message(folder, purpose, needed)) from error


def mark_full_disk(error: BaseException, folder: Path) -> None:
    """Note on ``error`` that no space was left, to be called before space is freed again.

    Libraries raise errors of their own: torch says "unexpected pos", with no error number.
    """
    if isinstance(error, Exception) and not _is_full(error) and shutil.disk_usage(folder).free < (1 << 16):
        error.add_note(_FULL)


_FULL = "no space was left on the device"


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        notes: list[str] = getattr(error, "__notes__", [])
        if _FULL in notes or "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _full_message(folder: Path, purpose: str, needed: int | None) -> str:
    place = folder.resolve()
    while not place.is_mount():
        place = place.parent
    free = shutil.disk_usage(folder).free
    size = f", about {mebibytes(needed)} needed" if needed else ""
    return f"no space left on the file system {place} {purpose}: {mebibytes(free)} free{size}"


def mebibytes(count: int) -> str:
    """``count`` bytes for a person: "12.5 MiB"."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"

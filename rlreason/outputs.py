"""A file or folder that a command writes: looked at before the work begins, and there only when it is whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rlreason.errors import UsageError


def checked_output(path: Path, option: str) -> Path:
    """The file behind ``path``. Raises UsageError where no file can be written there, naming ``option``."""
    path = path.resolve()
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder: give a file")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: the folder {path.parent} does not exist")
    if not os.access(path if _is_special(path) else path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: no right to write there")
    return path


def check_new_folder(path: Path) -> None:
    """Raise UsageError where ``path`` can't become a new folder."""
    if path.exists():
        raise UsageError(f"{path} exists: name a new folder")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"the folder {path.absolute().parent} does not exist")


def _is_special(path: Path) -> bool:
    """Whether ``path`` is there and no plain file: a pipe or a device, which nothing may replace."""
    return path.exists() and not path.is_file()


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """``path`` to write to: all or nothing where it is a file."""
    if _is_special(path):
        with path.open("w", encoding="utf-8") as out:
            yield out
        return
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

"""One process a run directory: a second one would write into the files of the first."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from rlreason.errors import UsageError

NAME = ".lock"
#: File systems without locks answer with one of these.
_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
#: Descriptors held by this process. A forked child closes its copies: it must not hold the lock longer than we live.
_held: set[int] = set()


def _close_inherited() -> None:
    while _held:
        with suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def locked(root: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold ``root``, which must exist; the system lets go of it when this process ends, however it ends.

    Raises UsageError naming pid, host and start of the process that holds it. Where the file system has no locks,
    ``tell`` is told so and nothing is held.
    """
    descriptor = os.open(root / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in _UNSUPPORTED:
            raise UsageError(f"{root} is in use by {_holder(root)}: wait for it or end it first") from error
        tell(f"{root}: this file system has no locks, so that a second process on this run would not be refused")
        yield
        return
    _held.add(descriptor)
    try:
        holder = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _holder(root: Path) -> str:
    """Who holds the lock, in words."""
    try:
        row = json.loads((root / NAME).read_text(encoding="utf-8"))
        return f"process {row['pid']} on {row['host']} since {row['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

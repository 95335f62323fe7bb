"""Runs beside each other, and now and then one alone: a run that a busy host has starved gets a second, quiet one.

Two locks on files, shared by all processes of this user on this host. Ordinary runs pass the gate and are in the hall,
together; who wants to be alone shuts the gate and waits until the hall is empty. Nobody waits for ever: after its
patience a run goes on all the same. Where the files can't be had, nobody waits at all.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator

_PAUSE_SECONDS = 0.02
#: An ordinary run waits longer than one that wants to be alone, which waits for those in the hall, and then runs.
_ORDINARY_PATIENCE, _ALONE_PATIENCE = 45.0, 15.0


@contextlib.contextmanager
def beside_others() -> Iterator[None]:
    """An ordinary run: not while another is alone."""
    gate = _lock("gate", exclusive=False, patience=_ORDINARY_PATIENCE)
    try:
        hall = _lock("hall", exclusive=False, patience=_ORDINARY_PATIENCE)
    finally:
        _release(gate)
    try:
        yield
    finally:
        _release(hall)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A run while no other one is under way, as far as that can be had in time."""
    held = [_lock("gate", exclusive=True, patience=_ORDINARY_PATIENCE)]
    try:
        held.append(_lock("hall", exclusive=True, patience=_ALONE_PATIENCE))
        yield
    finally:
        for lock in held:
            _release(lock)


def _release(lock: int) -> None:
    if lock >= 0:
        os.close(lock)


def _lock(name: str, *, exclusive: bool, patience: float) -> int:
    """A descriptor that holds the lock ``name``; or does not, where it can't be had within ``patience`` seconds.

    -1 where there is no such file.
    """
    if sys.platform == "win32":
        return -1
    import fcntl

    path = os.path.join(tempfile.gettempdir(), f"rlreason-runs-{os.getuid()}.{name}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return -1
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= end:
                return descriptor
        except OSError:  # a file system without locks
            return descriptor
        try:
            time.sleep(_PAUSE_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise

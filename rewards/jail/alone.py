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
    with contextlib.ExitStack() as held:
        with contextlib.ExitStack() as passing:
            _lock(passing, "gate", exclusive=False, patience=_ORDINARY_PATIENCE)
            _lock(held, "hall", exclusive=False, patience=_ORDINARY_PATIENCE)
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A run while no other one is under way, as far as that can be had in time."""
    with contextlib.ExitStack() as held:
        _lock(held, "gate", exclusive=True, patience=_ORDINARY_PATIENCE)
        _lock(held, "hall", exclusive=True, patience=_ALONE_PATIENCE)
        yield


def _lock(held: contextlib.ExitStack, name: str, *, exclusive: bool, patience: float) -> None:
    """Hold the lock ``name`` until ``held`` ends; or not, where it can't be had within ``patience`` seconds."""
    if sys.platform == "win32":
        return
    import fcntl

    path = os.path.join(tempfile.gettempdir(), f"rlreason-runs-{os.getuid()}.{name}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return
    held.callback(os.close, descriptor)
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                return
            time.sleep(_PAUSE_SECONDS)

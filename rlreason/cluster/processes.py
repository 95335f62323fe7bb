"""A process that another one may have to end: by its number, and by when it began, as numbers are given again and mean
another process in another container."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """Example: ``ProcessId(host="gpu-7", number=4711, began="88214")``."""

    host: str
    number: int
    #: By the kernel's clock, as /proc says it; "" where there is no /proc.
    began: str


def own_process() -> ProcessId:
    """Of this process."""
    return ProcessId(socket.gethostname(), os.getpid(), _began(os.getpid()))


def end_process(one: ProcessId) -> None:
    """End it, also where it is stopped (SIGSTOP) and hears nothing else. One that can't be seen from here, or is not
    the same any more, is left alone."""
    if one.host == socket.gethostname() and one.began and one.began == _began(one.number):
        with contextlib.suppress(OSError):
            os.kill(one.number, signal.SIGKILL)


def _began(number: int) -> str:
    try:
        line = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return line.rpartition(")")[2].split()[19]  # behind the name, which may have any letters

"""The child side of ``pool``: reads chunks of items, answers one row at a time. Imports nothing heavy itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from rlreason.rewards import limit

Job = Callable[[object], object]


def die_with_parent(lifeline: int) -> None:
    """Have the kernel end this process when the parent's end of the pipe closes, however the parent ended.

    SIGIO's default action needs no Python code to run, so it also works inside one long C call. (PR_SET_PDEATHSIG
    fires when the *thread* that started us ends; a polling thread needs the GIL.)
    """
    import fcntl

    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    try:
        closed = os.read(lifeline, 1) == b""
    except BlockingIOError:
        closed = False
    if closed:  # it went before we asked for the signal
        os._exit(1)


def limit_memory(megabytes: int | None) -> None:
    """Address space limit: an allocation beyond it is a MemoryError here, not the machine's OOM killer."""
    if megabytes is None:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = megabytes << 20
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))


def main(channel_fd: int, lifeline: int) -> None:
    """Serve until the parent closes the channel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    die_with_parent(lifeline)
    channel = Connection(channel_fd)
    try:
        job, memory_mb = channel.recv()
        limit_memory(memory_mb)
        channel.send("ready")
        while True:
            for item, seconds in channel.recv():
                with limit.item(seconds, channel.send):
                    answer = _answer(job, item)
                channel.send(answer)
    except (EOFError, ConnectionError):
        sys.exit(0)


def _answer(job: Job, item: object) -> tuple[bool, object]:
    try:
        return True, job(item)
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"[:500]

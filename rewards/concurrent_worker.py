"""The child side of ``concurrent_pool``: one event loop, many calls at a time, each with a limit of its own.

The thread that reads from the parent is not the loop's, so it can say which call holds the loop up.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

from rlreason.rewards.worker import die_with_parent, limit_memory

Job = Callable[[object], Awaitable[object]]
#: Exit status of a process that ran out of memory: its call is tried again in a fresh one.
OUT_OF_MEMORY = 97


class _Served:
    """The calls under way. Answers: ("done", number, fine, value) and ("at", number of the call that holds the
    loop)."""

    def __init__(self, channel: Connection, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self._channel, self._job, self._loop = channel, job, loop
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()  # the loop alone does not keep them

    def answer(self, *message: object) -> None:
        """Tell the parent."""
        with self._lock:
            self._channel.send(message)

    def read(self) -> None:
        """The parent's messages, until it goes."""
        try:
            while True:
                match self._channel.recv():
                    case ("call", int() as number, item, float() as seconds):
                        self._loop.call_soon_threadsafe(self._begin, number, item, seconds)
                    case ("who",):
                        task = asyncio.current_task(self._loop)
                        self.answer("at", int(task.get_name()) if task is not None else -1)
                    case other:
                        raise TypeError(f"not a message of the pool: {other!r}")
        except (EOFError, OSError):
            os._exit(0)
        except BaseException:  # in this thread nobody would see it, and calls would wait for ever
            traceback.print_exc()
            os._exit(1)

    def _begin(self, number: int, item: object, seconds: float) -> None:
        task = self._loop.create_task(self._run(number, item, seconds), name=str(number))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, number: int, item: object, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds) as limit:
                value = await self._job(item)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        except TimeoutError as error:
            if limit.expired():
                self.answer("late", number)
            else:
                self.answer("done", number, False, f"TimeoutError: {error}"[:500])
        except Exception as error:
            self.answer("done", number, False, f"{type(error).__name__}: {error}"[:500])
        else:
            self.answer("done", number, True, value)


def main(channel_fd: int, lifeline: int) -> None:
    """Serve until the parent goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(lifeline)
    channel = Connection(channel_fd)
    try:
        job, memory_mb = channel.recv()
    except EOFError:
        return
    limit_memory(memory_mb)
    loop = asyncio.new_event_loop()
    served = _Served(channel, job, loop)
    served.answer("ready")
    threading.Thread(target=served.read, daemon=True).start()
    loop.run_forever()

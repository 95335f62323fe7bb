"""Asynchronous rewards that no other process can load, such as a notebook's: many at a time in a thread of this one."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future

from rlreason.rewards.pool import Outcome


class ConcurrentThread:
    """What ``ConcurrentPool`` is, with a thread for a process: a call past its limit is cancelled, but one that holds
    the event loop up holds all of them up, and can't be killed."""

    def __init__(
        self,
        job: Callable[..., Awaitable[object]],
        *,
        seconds: Callable[[object], float],
        concurrency: int = 32,
    ) -> None:
        self._job, self._seconds, self._concurrency = job, seconds, concurrency
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._turn: asyncio.Semaphore | None = None

    def submit_all(self, items: Iterable[object]) -> list[Future[Outcome]]:
        """The outcome of each, some time."""
        if self._loop is None:
            self._loop, self._turn = asyncio.new_event_loop(), asyncio.Semaphore(self._concurrency)
            self._thread = threading.Thread(target=self._loop.run_forever, name="asynchronous rewards", daemon=True)
            self._thread.start()
        return [asyncio.run_coroutine_threadsafe(self._outcome(copy.deepcopy(item)), self._loop) for item in items]

    def close(self) -> None:
        """End the thread; what is under way is cancelled."""
        loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return

        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            loop.stop()

        asyncio.run_coroutine_threadsafe(cancel(), loop)
        thread.join(timeout=10.0)

    async def _outcome(self, item: object) -> Outcome:
        assert self._turn is not None
        async with self._turn:
            began, seconds = time.monotonic(), self._seconds(item)
            try:
                async with asyncio.timeout(seconds) as limit:
                    value = await self._job(item)
            except TimeoutError as error:
                took = time.monotonic() - began
                if limit.expired():
                    return Outcome(failure="timed_out", detail=f"ran past {seconds:g} s", seconds=took)
                return Outcome(failure="raised", detail=f"TimeoutError: {error}"[:500], seconds=took)
            except Exception as error:
                detail = f"{type(error).__name__}: {error}"[:500]
                return Outcome(failure="raised", detail=detail, seconds=time.monotonic() - began)
            return Outcome(value=value, seconds=time.monotonic() - began)

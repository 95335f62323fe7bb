"""Rewards that no other process can load, such as a notebook's functions: run in a thread of this one."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import SimpleQueue

from rlreason.rewards import limit
from rlreason.rewards.pool import Outcome

_Job = tuple[object, "Future[object]", Callable[[float], None]]


class LocalPool:
    """What ``rewards.pool.Pool`` is, with threads for processes: one item at a time, with a limit for each.

    The same outcomes, but a function that runs past its limit can't be killed: its thread is left behind and its item
    is timed out. It is given copies, as worker processes are. What it allocates is not limited.
    """

    def __init__(self, function: Callable[..., object], *, timeout: float | Callable[[object], float] = 10.0) -> None:
        """``timeout``: seconds for an item, or what gives them for one."""
        self._function = function
        self._timeout = timeout
        self._items: SimpleQueue[tuple[object, Future[Outcome]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit_all(self, items: Iterable[object]) -> list[Future[Outcome]]:
        """The outcome of each, some time."""
        answers: list[Future[Outcome]] = []
        for item in items:
            answer: Future[Outcome] = Future()
            answers.append(answer)
            self._items.put((item, answer))
        if answers and self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="rewards", daemon=True)
            self._thread.start()
        return answers

    def close(self) -> None:
        """End the threads that are not hung, once what was submitted is done."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._items.put(None)
            thread.join()

    def _serve(self) -> None:
        jobs = self._worker()
        while (entry := self._items.get()) is not None:
            item, answer = entry
            found: Future[object] = Future()
            extra: list[float] = []
            jobs.put((copy.deepcopy(item), found, extra.append))
            seconds = self._seconds(item)
            try:
                answer.set_result(Outcome(value=_wait(found, seconds, extra)))
            except TimeoutError:
                answer.set_result(Outcome(failure="timed_out", detail=f"ran past {seconds:g} s"))
                jobs.put(None)
                jobs = self._worker()
            except Exception as error:
                answer.set_result(Outcome(failure="raised", detail=f"{type(error).__name__}: {error}"[:500]))
        jobs.put(None)

    def _seconds(self, item: object) -> float:
        return self._timeout(item) if callable(self._timeout) else self._timeout

    def _worker(self) -> SimpleQueue[_Job | None]:
        """Jobs of a thread that was just begun."""
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        threading.Thread(target=self._work, args=(jobs,), name="reward", daemon=True).start()
        return jobs

    def _work(self, jobs: SimpleQueue[_Job | None]) -> None:
        while (job := jobs.get()) is not None:
            item, found, tell = job
            try:
                with limit.item(self._seconds(item), tell):
                    value = self._function(item)
                found.set_result(value)
            except Exception as error:
                found.set_exception(error)


def _wait(found: Future[object], seconds: float, extra: list[float]) -> object:
    """Raises TimeoutError at the limit, or where the function keeps it by itself, some time later."""
    try:
        return found.result(seconds)
    except TimeoutError:
        if not extra or found.done():
            raise
        return found.result(extra[-1])

"""The limit on one item of a reward pool, as seen by what runs in a worker: who knows it can end in time and say so.

A reward that is cut off by its pool has no score. One that keeps the limit itself, such as the code verifier with its
programs, gives a verdict instead: it asks for ``item_seconds``, and tells the pool that it needs no killing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Here(threading.local):
    """Of the item that this thread is at."""

    seconds: float | None = None
    tell: Callable[[float], object] | None = None


_here = _Here()


def item_seconds() -> float | None:
    """Wall seconds that the pool gives to the item at hand; None outside of a pool."""
    return _here.seconds


def keeps_own_limit(extra: float) -> None:
    """Tell the pool that the item at hand ends by itself: it is killed ``extra`` seconds after its limit at the
    earliest, as a guard."""
    if _here.tell is not None:
        _here.tell(float(extra))


@contextmanager
def item(seconds: float | None, tell: Callable[[float], object]) -> Iterator[None]:
    """For a pool's worker: this thread is at an item with that limit. ``tell``: hears of ``keeps_own_limit``."""
    _here.seconds, _here.tell = seconds, tell
    try:
        yield
    finally:
        _here.seconds = _here.tell = None

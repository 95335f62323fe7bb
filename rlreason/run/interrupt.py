"""SIGTERM and Ctrl-C as an exception that a stage can save its state on.

with catching_signals():            # around the run, in the main thread
    for step in steps:
        check()                     # a signal whose exception was swallowed is raised again
        with deferred():            # what must not be cut in two
            ...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Signals this many seconds apart count as one: `timeout` and batch systems send to a process and to its group.
ONE_SIGNAL = 0.5


class Interrupted(BaseException):
    """The run was told to end. Like KeyboardInterrupt it is no Exception, so that nothing swallows it by chance."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(f"interrupted by {self.signal.name}")

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.signal


@dataclass(slots=True)
class _State:
    """What the handler knows. One a process: signals are a process's."""

    catching: int = 0
    depth: int = 0
    received: int | None = None
    received_at: float = 0.0
    #: The exception was raised; what runs now is unwinding.
    raised: bool = False


_state = _State()


def _forget_in_child() -> None:
    """A child that was forked off dies of a signal as if nothing caught it."""
    if _state.catching:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


os.register_at_fork(after_in_child=_forget_in_child)


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.received is not None:
        if now - _state.received_at > ONE_SIGNAL:
            _end_at_once(number)
        return
    _state.received, _state.received_at = number, now
    if not _state.depth:
        _state.raised = True
        raise Interrupted(number)


def _end_at_once(number: int) -> None:
    """The default action: the process ends here and now."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


@contextmanager
def catching_signals() -> Iterator[None]:
    """Inside, the first SIGTERM or SIGINT raises Interrupted in the main thread; one that comes later, while that is
    being dealt with, ends the process at once. May be nested; in another thread than the main one it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _state.catching += 1
    reinstall()
    try:
        with unwrapped():
            yield
    finally:
        _state.catching -= 1
        if not _state.catching:
            _state.received, _state.raised = None, False
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def reinstall() -> None:
    """Take the handlers back: `ray.init` sets one of its own for SIGTERM, which ends the process without a word."""
    if _state.catching and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not _handle:
                signal.signal(number, _handle)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal waits; Interrupted is raised at the end of the outermost one. For the main thread.

    A save made while an Interrupted is being dealt with is not interrupted again: nothing is raised at its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reinstall()
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
    # Not after a failure inside, which says more; `check` raises it where that failure is dealt with.
    if _state.received is not None and not _state.depth and not _state.raised:
        _state.raised = True
        raise Interrupted(_state.received)


@contextmanager
def unwrapped() -> Iterator[None]:
    """Inside, an exception that a library made of an Interrupted is raised as one again: pydantic wraps whatever comes
    while it serialises. A failure of what is done about an Interrupted, such as saving, stays what it is."""
    try:
        yield
    except Exception as error:
        here = threading.current_thread() is threading.main_thread()
        if _state.received is not None and _state.raised and here and _made_of_it(error):
            raise Interrupted(_state.received) from error
        raise


def _made_of_it(error: BaseException) -> bool:
    """Whether an Interrupted is what caused ``error``, as far as is known: compiled code names no cause."""
    return _leads_to_it(error, "__cause__") or not _leads_to_it(error, "__context__")


def check() -> None:
    """Raise Interrupted where a signal came and its exception got lost, as in a finalizer; once a step is enough."""
    reinstall()
    if _state.received is not None and not _state.depth and not _unwinding():
        _state.raised = True
        raise Interrupted(_state.received)


def _unwinding() -> bool:
    """Whether an Interrupted is being handled further up."""
    return _leads_to_it(sys.exception(), "__context__")


def _leads_to_it(error: BaseException | None, link: str) -> bool:
    while error is not None:
        if isinstance(error, Interrupted):
            return True
        error = getattr(error, link)
    return False

"""Signals: at once or at the end of what must not be cut in two; a second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, PlainSerializer

from rlreason.run import interrupt
from rlreason.run.interrupt import Interrupted, catching_signals, check, deferred

ROOT = Path(__file__).parents[2]


def interruption(work: Callable[[], object]) -> Interrupted:
    """What ``work`` ends with, signals caught."""
    with pytest.raises(Interrupted) as caught, catching_signals():
        work()
    return caught.value


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_raised_at_once(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    reached = []

    def work() -> None:
        signal.raise_signal(number)
        reached.append(1)

    error = interruption(work)
    assert not reached
    assert str(error) == f"interrupted by {number.name}"
    assert (error.signal, error.exit_code) == (number, code)
    assert signal.getsignal(number) is before


def test_a_signal_waits_for_the_end_of_the_outermost_deferral() -> None:
    steps = []

    def work() -> None:
        with deferred():
            with deferred():
                signal.raise_signal(signal.SIGTERM)
                steps.append("inner")
            steps.append("outer")
        steps.append("after")

    interruption(work)
    assert steps == ["inner", "outer"]


def test_a_failure_inside_a_deferral_is_not_hidden_by_the_signal() -> None:
    def work() -> None:
        with deferred():
            signal.raise_signal(signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), catching_signals():
        work()


def test_saving_while_the_interruption_is_dealt_with() -> None:
    saved = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            check()
            with deferred():
                saved.append(1)
            raise

    interruption(work)
    assert saved == [1]


def test_a_swallowed_interruption_is_raised_again() -> None:
    steps = []

    def work() -> None:
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        steps.append("went on")
        check()
        steps.append("never")

    interruption(work)
    assert steps == ["went on"]


class Wrapping(BaseModel):
    """Pydantic makes an error of its own of whatever is raised while it serialises."""

    value: Annotated[int, PlainSerializer(lambda value: signal.raise_signal(signal.SIGTERM))] = 0


def with_a_cause() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException as error:
        raise RuntimeError("in the library") from error


@pytest.mark.parametrize("library", [Wrapping().model_dump_json, Wrapping().model_dump, with_a_cause])
def test_what_a_library_made_of_an_interruption_is_one_again(library: Callable[[], object]) -> None:
    with pytest.raises(Exception, match=r"in the library|Interrupted") as plain, catching_signals_as_they_come():
        library()
    assert not isinstance(plain.value, Interrupted)
    interruption(library)


@contextmanager
def catching_signals_as_they_come() -> Iterator[None]:
    """The canary: as Python's handlers are, without what catching_signals does about it."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: raise_(Interrupted(number)))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def raise_(error: BaseException) -> None:
    raise error


def test_what_fails_while_an_interruption_is_dealt_with_is_a_failure() -> None:
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise OSError("no space left")  # noqa: B904

    with pytest.raises(OSError, match="no space left"), catching_signals():
        work()


def test_a_failure_without_a_signal_is_left_alone() -> None:
    with pytest.raises(ZeroDivisionError), catching_signals():
        raise ZeroDivisionError


def test_a_handler_that_was_replaced_is_put_back() -> None:
    def work() -> None:
        # As `ray.init` does.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        check()
        signal.raise_signal(signal.SIGTERM)

    interruption(work)


def test_two_in_a_row_are_one() -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    interruption(work)


def test_another_thread_is_left_alone() -> None:
    handlers = []

    def work() -> None:
        with catching_signals(), deferred():
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


SLOW_SAVE = """
import signal, sys, time
from rlreason.run.interrupt import Interrupted, catching_signals
with catching_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except Interrupted:
        print("saving", flush=True)
        time.sleep(60)
        print("saved", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SAVE],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "saving\n"
    # Signals closer together count as one.
    time.sleep(2 * interrupt.ONE_SIGNAL)
    process.send_signal(number)
    assert process.stdout.read() == ""
    assert process.wait() == -number


FORKED = """
import os, signal, time
from rlreason.run.interrupt import catching_signals
reading, writing = os.pipe()
with catching_signals():
    child = os.fork()
    if not child:
        os.write(writing, b"x")
        time.sleep(60)
        os._exit(1)
    os.read(reading, 1)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_dies_of_a_signal_as_ever() -> None:
    command = [sys.executable, "-c", FORKED]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(-signal.SIGTERM)

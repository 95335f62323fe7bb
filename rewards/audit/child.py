"""The audited side: loads the reward, answers one call at a time, and says what each call did. ``runner`` starts it."""

from __future__ import annotations

import math
import numbers
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import ModuleType

from rlreason.rewards.audit.subject import MEMORY_MB, Answer, Call, Event, Loaded, Record, Subject
from rlreason.rewards.audit.watch import Print, Watch, differences, inputs_of, plugin_modules, state_changes, state_of
from rlreason.rewards.calling import as_result
from rlreason.rewards.environment import from_option, without_secrets
from rlreason.rewards.registry import Reward, resolve_verifier
from rlreason.rewards.worker import die_with_parent, limit_memory
from rlreason.types import RewardResult, Verdict

_SHOWN = 300


def main(channel_fd: int, lifeline: int) -> None:
    """Serve until the parent closes the channel. What the reward prints goes nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(lifeline)
    channel = Connection(channel_fd)
    try:
        subject: Subject = channel.recv()
        silence = os.open(os.devnull, os.O_WRONLY)
        watch = Watch(subject.allowed)
        before = set(sys.modules)
        try:
            entry = subject.entry()
        except Exception as error:
            channel.send(f"{error}")
            return
        modules = plugin_modules(before, subject.package)
        memory = subject.memory_mb if subject.memory_mb is not None else entry.memory_mb
        limit_memory(MEMORY_MB if memory is None else memory or None)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        channel.send(_loaded(subject, entry))
        witness = Witness(subject=subject, entry=entry, watch=watch, modules=modules)
        while True:
            channel.send(witness.answer(pickle.loads(channel.recv())))
    except (EOFError, BrokenPipeError):
        sys.exit(0)


def _loaded(subject: Subject, entry: Reward) -> Loaded:
    judge = resolve_verifier(subject.verifier) if entry.name == "accuracy" else entry
    return Loaded(
        per=entry.per,
        verifier=judge.verifier,
        deterministic=judge.deterministic,
        seconds=judge.seconds,
        memory_mb=judge.memory_mb,
        doc=entry.doc,
    )


@dataclass(slots=True)
class Witness:
    """Makes calls and looks at them from all sides."""

    subject: Subject
    entry: Reward
    watch: Watch
    modules: list[ModuleType]
    #: Globals after the last call.
    state: dict[str, Print] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = state_of(self.modules)

    def answer(self, call: Call) -> Record:
        """One call with what was seen of it."""
        inputs = inputs_of(call)
        started = time.perf_counter()
        answers, events = self._called(call)
        seconds = time.perf_counter() - started
        before, self.state = self.state, state_of(self.modules)
        return Record(
            answers=answers,
            seconds=seconds,
            slept=self.watch.slept,
            events=events,
            changed=differences(inputs, inputs_of(call)),
            state=(*state_changes(before, self.state), *of_kind(events, "state")),
            resident_mb=resident_mb(),
        )

    def _called(self, call: Call) -> tuple[tuple[Answer, ...], tuple[Event, ...]]:
        self.watch.start()
        try:
            values = self.subject.call(self.entry, call)
            failure = None
        except MemoryError:
            failure = Answer(fault="memory", shown="MemoryError")
        except Exception as error:
            failure = Answer(fault="raised", shown=self._public(f"{type(error).__name__}: {error}"))
        except BaseException as error:
            failure = Answer(fault="raised", shown=self._public(f"{type(error).__name__} (ends the worker): {error}"))
        events = self.watch.stop()
        if failure is not None:
            return (failure,) * len(call.completions), events
        return tuple(read(value) for value in values), events

    def _public(self, text: str) -> str:
        """Cut short, without what options take from the environment."""
        return without_secrets(text, [(key, from_option(value)) for key, value in self.subject.options])[:_SHOWN]


def read(value: object) -> Answer:
    """A returned value as an answer, with what is wrong with it."""
    shown = repr(value)[:_SHOWN]
    if value is None:
        return Answer(fault="none", shown="None")
    if isinstance(value, RewardResult):
        return _read_result(value, shown)
    if not _is_number(value):
        return Answer(fault="type", shown=f"{type(value).__name__} {shown}")
    score = float(value)  # type: ignore[arg-type]
    if not math.isfinite(score):
        return Answer(fault="nan", shown=shown)
    return Answer(score=score, verdict=str(Verdict.CORRECT if score > 0 else Verdict.WRONG), shown=shown)


def _read_result(value: RewardResult, shown: str) -> Answer:
    verdict: object = value.verdict
    if not isinstance(verdict, Verdict):
        return Answer(fault="type", shown=f"verdict is {type(verdict).__name__} {verdict!r}, no Verdict")
    if value.score is None:
        return Answer(fault="none", verdict=str(verdict), shown=f"{verdict}: {value.detail}"[:_SHOWN])
    if not _is_number(value.score):
        return Answer(fault="type", shown=f"score is {type(value.score).__name__} {value.score!r}"[:_SHOWN])
    if not math.isfinite(float(value.score)):
        return Answer(fault="nan", shown=f"score {value.score}")
    try:
        whole = as_result(value)
    except (TypeError, ValueError, AttributeError) as error:
        return Answer(fault="type", shown=f"{error}"[:_SHOWN])
    return Answer(score=whole.score, verdict=str(verdict), shown=shown)


def _is_number(value: object) -> bool:
    """A bool, an int, a float, or a scalar of NumPy or torch."""
    if isinstance(value, (bool, numbers.Real)):
        return True
    shape, item = getattr(value, "shape", None), getattr(value, "item", None)
    return shape is not None and tuple(shape) == () and callable(item) and isinstance(item(), (bool, numbers.Real))


def resident_mb() -> float:
    """Memory of this process now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def of_kind(events: tuple[Event, ...], kind: str) -> list[str]:
    """Details of the events of one kind."""
    return [one.detail for one in events if one.kind == kind]

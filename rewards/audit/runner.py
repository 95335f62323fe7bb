"""The auditor's side of a child process: asks, waits no longer than the limit, starts another where one was lost."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Self

from rlreason.rewards.audit.subject import Answer, Call, Loaded, Record, Subject
from rlreason.types import Completion, Problem, Verdict

_START_SECONDS = 120.0
#: Calls that hang or crash, in a row and in all, before the rest is left out.
_PATIENCE, _PATIENCE_IN_ALL = 2, 5
_BOOT = "import sys; sys.path[:] = {path!r}; from rlreason.rewards.audit.child import main; main({channel}, {lifeline})"


class LoadFailed(ValueError):
    """The reward does not load in a process of its own."""


class Runner:
    """One process at a time that has loaded the reward: ``Runner(subject).ask(problem, completion)``. A context
    manager."""

    def __init__(self, subject: Subject, *, hash_seed: int) -> None:
        self._subject = subject
        self._hash_seed = hash_seed
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Connection | None = None
        self._lifeline = -1
        self._loaded: Loaded | None = None
        self._fresh = True
        self._lost = self._in_a_row = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def gave_up(self) -> bool:
        """Whether so many calls hung or crashed that no more are made."""
        return self._in_a_row >= _PATIENCE or self._lost >= _PATIENCE_IN_ALL

    def start(self) -> Loaded:
        """Start the process and wait until it has loaded the reward; ``ask`` does too. Raises LoadFailed."""
        self.launch()
        if self._loaded is None:
            self._loaded = self._greet()
        return self._loaded

    def launch(self) -> None:
        """Start the process, and don't wait for it."""
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        reading, self._lifeline = os.pipe()
        code = _BOOT.format(path=sys.path, channel=theirs.fileno(), lifeline=reading)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=(theirs.fileno(), reading),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": str(self._hash_seed)},
        )
        theirs.close()
        os.close(reading)
        self._channel = Connection(ours.detach())
        self._channel.send(self._subject)

    def _greet(self) -> Loaded:
        assert self._channel is not None
        try:
            said = self._channel.recv() if self._channel.poll(_START_SECONDS) else "it did not load in 120 s"
        except (EOFError, ConnectionError):
            said = "its process ended while it was loaded"
        if isinstance(said, Loaded):
            return said
        self.close()
        raise LoadFailed(str(said))

    def ask(self, problem: Problem, completion: Completion, verdict: Verdict = Verdict.WRONG) -> Record:
        """Score one completion."""
        return self.ask_many(Call(problems=(problem,), completions=(completion,), verdicts=(verdict,)))

    def ask_many(self, call: Call) -> Record:
        """Score completions at once."""
        count = len(call.completions)
        if self.gave_up:
            return _lost("timed_out", "left out: earlier calls hung or crashed", count)
        limit = self._subject.limit(self.start().seconds)
        assert self._channel is not None
        try:
            self._channel.send(pickle.dumps(call))
            # What a reward loads at its first call is not that completion's time.
            if self._channel.poll(2 * limit if self._fresh else limit):
                self._fresh = False
                record = self._channel.recv()
                assert isinstance(record, Record)
                self._in_a_row = 0
                return record
            lost = _lost("timed_out", f"ran past {limit:g} s", count, limit)
        except (EOFError, ConnectionError):
            lost = _lost("crashed", "its process ended", count)
        self._lost, self._in_a_row = self._lost + 1, self._in_a_row + 1
        self.close()
        return lost

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        assert self._channel is not None
        self._process.kill()
        self._process.wait()
        self._channel.close()
        os.close(self._lifeline)
        self._process = self._channel = None
        self._fresh = True
        self._loaded = None


def _lost(fault: str, shown: str, count: int, seconds: float = 0.0) -> Record:
    return Record(answers=(Answer(fault=fault, shown=shown),) * count, seconds=seconds)

"""Test code in a judge's process, the program in another, and this process between them.

What the program says goes to the judge only as an answer to what the judge asked; what the judge says decides.
"""

from __future__ import annotations

import secrets
import time

from rlreason.rewards import jail_data
from rlreason.rewards.jail_data import NotPlain, Tree
from rlreason.rewards.jail_run import Run, pump
from rlreason.rewards.program_run import FunctionServer, Session, Tally, ending
from rlreason.rewards.program_tests import BadTests, CodeTests
from rlreason.types import Verdict

_WEAKER = "weaker: the tests shared the program's process, as {}"


class _Together(Exception):
    """The tests hand over what can't cross; they have to run in the program's process."""


def run_code(session: Session, source: str, tests: CodeTests, *, partial: bool) -> Tally:
    """Run test code: apart from the program, or together with it where the tests' own arguments can't cross."""
    try:
        return _apart(session, source, tests, partial=partial)
    except _Together as reason:
        tally = _Judge(session, source, tests, server=None).run(partial=partial)
        tally.notes.append(_WEAKER.format(reason))
        return tally


def _apart(session: Session, source: str, tests: CodeTests, *, partial: bool) -> Tally:
    server = FunctionServer(session, source, cases=tests.steps)
    try:
        problem = server.start()
        if problem is not None:
            tally = Tally(total=tests.steps)
            tally.fail("", *problem)
            return tally
        return _Judge(session, source, tests, server=server).run(partial=partial)
    finally:
        server.close()


class _Judge:
    """One judge's process, with the program's (``server``) or with the program in itself (None)."""

    def __init__(self, session: Session, source: str, tests: CodeTests, *, server: FunctionServer | None) -> None:
        self._session = session
        self._source = source
        self._tests = tests
        self._server = server
        self._nonce = secrets.token_hex(16)
        self._tally = Tally(total=tests.steps)
        self._step = -1  # the last that is through; step 0 is the set-up
        self._asked = False
        self._done = False

    def run(self, *, partial: bool) -> Tally:
        """Serve the judge until it has decided. Raises _Together, BadTests."""
        cpu = min(self._session.limits.total_seconds, self._session.limits.cpu_seconds * self._tests.steps)
        judge = self._session.jail.spawn(self._session.limits, cpu_seconds=cpu)
        try:
            judge.feed(b"")
            judge.send(self._job())
            self._serve(judge)
        finally:
            judge.close()
        return self._tally

    def _job(self) -> list[Tree]:
        test: Tree = {"pieces": list(self._tests.pieces), "entry_point": self._tests.entry_point}
        apart = self._server is not None
        names: Tree = list(self._server.names) if self._server is not None else None
        return [self._tests.kind, None if apart else self._source, test, names]

    def _serve(self, judge: Run) -> None:
        program = self._server.run if self._server is not None else None
        runs = [judge] if program is None else [judge, program]
        deadline = self._session.case_deadline()

        def something() -> bool:
            ended = judge.report is not None or (program is not None and program.report is not None)
            return ended or bool(judge.frames) or (program is not None and bool(program.frames))

        while not self._done:
            if not pump(runs, deadline, something):
                self._fail(Verdict.TIMED_OUT, "ran past its limit")
                return
            if program is not None and self._from_program(judge, program):
                return
            if judge.frames and not judge.flooded:
                if self._from_judge(judge, program):
                    deadline = self._session.case_deadline()
            elif judge.report is not None:
                problem = ending(judge, self._session.limits) or (Verdict.WRONG, "the tests ended before their end")
                self._fail(problem[0], problem[1])
                return

    def _from_program(self, judge: Run, program: Run) -> bool:
        """Hand an answer on. True when the program has ended, which decides against it."""
        if program.frames and not program.flooded:
            answer = program.frames.popleft()
            if self._asked:  # else nobody asked: not for the judge's ears
                self._asked = False
                judge.send_bytes(answer)
        elif program.report is not None:
            problem = ending(program, self._session.limits)
            self._fail(*(problem or (Verdict.WRONG, "the program ended before it answered")))
            return True
        return False

    def _from_judge(self, judge: Run, program: Run | None) -> bool:
        """Act on a frame of the judge's. True when a step is through."""
        try:
            frame = jail_data.loads(judge.frames.popleft())
        except NotPlain:
            frame = None
        match frame:
            case ["ask", list() as request] if program is not None:
                self._asked = True
                program.send(request)
            case ["passed", int() as step] if step == self._step + 1:
                self._step = step
                return True
            case ["finished"]:
                judge.send([self._nonce])
            case ["done", str() as nonce] if secrets.compare_digest(nonce, self._nonce) and self._complete():
                self._tally.passed = self._tally.total
                self._done = True
            case ["failed", int(), str() as reason]:
                self._fail(Verdict.WRONG, reason)
                self._done = True
            case ["together", str() as reason]:
                raise _Together(reason)
            case ["broken", str() as reason]:
                raise BadTests(f"tests: {reason}")
            case _:
                self._fail(Verdict.WRONG, "the tests ended before their end")
                self._done = True
        return False

    def _complete(self) -> bool:
        return self._step == self._tests.steps

    def _fail(self, verdict: Verdict, reason: str) -> None:
        number = self._step + 1
        self._tally.passed = max(0, self._step)
        place = f"test {number} of {self._tally.total}" if number > 0 and self._tally.total > 1 else ""
        if time.monotonic() >= self._session.deadline:
            reason = f"all tests together ran past {self._session.limits.total_seconds:g} s"
        self._tally.fail(place, verdict, reason)

"""Test code in a judge's process, the program in another, and this process between them.

What the program says goes to the judge only as an answer to what the judge asked; what the judge says decides.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain, Tree
from rlreason.rewards.jail.run import Run, pump
from rlreason.rewards.programs.server import FunctionServer
from rlreason.rewards.programs.session import Session, Tally, ending
from rlreason.rewards.programs.tests import BadTests, CodeTests
from rlreason.types import Verdict

#: Frames of the program that are questions, and parts of answers that are no plain data.
_BACK = (b'["input",', b'["print",')
_KEPT = (b'["h",', b'["u",', b'["x",')
_WEAKER = "weaker: the tests shared the program's process, as {}"


class _Together(Exception):
    """The tests hand over what can't cross; they have to run in the program's process."""


#: Calls that are kept for a replay, and bytes of them.
_MOST_CALLS, _MOST_BYTES = 2000, 8 << 20


@dataclass(slots=True)
class _Calls:
    """The calls of one judgement with their answers, as long as all are plain data both ways."""

    count: int = 0
    #: All were calls of functions by name, with plain data both ways.
    plain: bool = True
    requests: list[list[Tree]] = field(default_factory=list)
    answers: list[Tree] = field(default_factory=list)
    size: int = 0

    def add(self, request: list[Tree], answer: bytes) -> None:
        """Keep one call with its answer, where there is room."""
        self.size += len(answer)
        if len(self.requests) < _MOST_CALLS and self.size < _MOST_BYTES:
            self.requests.append(request)
            self.answers.append(_comparable(answer))


def _comparable(answer: bytes) -> Tree:
    """An answer without the number under which the program's process keeps an exception."""
    try:
        tree = jail_data.loads(answer)
    except NotPlain:
        return None
    match tree:
        case [*parts, {**more}]:
            return [*parts, {key: value for key, value in more.items() if key != "error"}]
    return tree


def run_code(session: Session, source: str, tests: CodeTests, *, partial: bool) -> Tally:
    """Run test code: apart from the program, or together with it where the tests' own arguments can't cross."""
    try:
        return _apart(session, source, tests, partial=partial)
    except _Together as reason:
        tally = _Judge(session, source, tests, server=None).run(partial=partial)
        tally.notes.append(_WEAKER.format(reason))
        return tally


def _apart(session: Session, source: str, tests: CodeTests, *, partial: bool) -> Tally:
    server = FunctionServer(session, source, cases=tests.steps, prelude=tests.prelude)
    try:
        problem = server.start()
        if problem is not None:
            tally = Tally(total=tests.steps)
            tally.fail("", *problem)
            return tally
        judge = _Judge(session, source, tests, server=server)
        tally = judge.run(partial=partial)
        if tally.failed or _repeats(server, judge.calls):
            return tally
        if _depends_on_earlier(server, judge.calls):
            tally.notes.append("the answers depend on earlier calls")
            return tally
        # Random, perhaps. It must pass with every call as the first one, too.
        tally = _Judge(session, source, tests, server=server, afresh=True).run(partial=partial)
        if tally.failed:
            tally.detail += " (each call in a fresh process)"
        return tally
    finally:
        server.close()


def _repeats(server: FunctionServer, calls: _Calls) -> bool:
    """Whether the last call gives the same answer as the first call of a fresh process.

    Programs that answer by the number of the call do not. Calls on objects, and without arguments, may well depend
    on what was before: they count as repeatable.
    """
    if calls.count < 2 or not calls.plain or not calls.requests or calls.requests[-1][3:5] == [["l"], ["d"]]:
        return True
    return _replay(server, calls.requests[-1:]) == calls.answers[-1:]


def _depends_on_earlier(server: FunctionServer, calls: _Calls) -> bool:
    """Whether answers follow from the calls before, rather than from how many there were.

    In fresh processes: the same calls give the same answers; in another order, some call is answered by what it is, not
    by its place.
    """
    if len(calls.requests) < calls.count or _replay(server, calls.requests) != calls.answers:
        return False
    return _replay(server, [*calls.requests[1:], calls.requests[0]]) != calls.answers


def _replay(server: FunctionServer, requests: list[list[Tree]]) -> list[Tree]:
    """The answers of a fresh process to ``requests``; empty where it fails."""
    server.close()
    answers: list[Tree] = []
    if server.start() is not None:
        return []
    for request in requests:
        if server.run is None:
            return []
        server.run.send(request)
        answer = server.receive_bytes()
        if isinstance(answer, tuple):
            return []
        answers.append(_comparable(answer))
    return answers


class _Judge:
    """One judge's process, with the program's (``server``) or with the program in itself (None).

    ``afresh``: every call goes to a program that has just been loaded.
    """

    def __init__(
        self,
        session: Session,
        source: str,
        tests: CodeTests,
        *,
        server: FunctionServer | None,
        afresh: bool = False,
    ) -> None:
        self._session = session
        self._source = source
        self._tests = tests
        self._server = server
        self._afresh = afresh
        self._nonce = secrets.token_hex(16)
        self._tally = Tally(total=tests.steps)
        self._step = -1  # the last that is through; step 0 is the set-up
        self._passed = 0
        #: What the judge has asked the program to do and has no answer to.
        self._asked = ""
        self._request: list[Tree] = []
        self._done = False
        self.calls = _Calls()

    def run(self, *, partial: bool) -> Tally:
        """Serve the judge until it has decided. Raises _Together, BadTests."""
        cpu = min(self._session.limits.total_seconds, self._session.limits.cpu_seconds * self._tests.steps)
        judge = self._session.jail.spawn(self._session.limits, cpu_seconds=cpu)
        try:
            judge.feed(b"")
            judge.send(self._job(partial=partial))
            self._serve(judge)
        finally:
            judge.close()
        return self._tally

    def _job(self, *, partial: bool) -> list[Tree]:
        tests = self._tests
        test: Tree = {
            "pieces": list(tests.pieces),
            "entry_point": tests.entry_point,
            "partial": partial,
            "largest": self._session.limits.output_bytes - 1024,
        }
        apart = self._server is not None
        names: Tree = list(self._server.names) if self._server is not None else None
        packages: Tree = dict(self._session.packages.tests)
        return [tests.kind, None if apart else self._source, test, names, tests.prelude, packages]

    def _program(self) -> Run | None:
        return self._server.run if self._server is not None else None

    def _serve(self, judge: Run) -> None:
        deadline = self._session.case_deadline()
        while not self._done:
            runs = [run for run in (judge, self._program()) if run is not None]

            def something(runs: list[Run] = runs) -> bool:
                return any(run.frames or run.report is not None for run in runs)

            if not pump(runs, deadline, something):
                self._fail(Verdict.TIMED_OUT, "ran past its limit")
                return
            program = self._program()
            if program is not None and self._from_program(judge, program):
                return
            if judge.frames and not judge.flooded:
                if self._from_judge(judge):
                    deadline = self._session.case_deadline()
            elif judge.report is not None:
                problem = ending(judge, self._session.limits) or (Verdict.WRONG, "the tests ended before their end")
                self._fail(*problem)
                return

    def _from_program(self, judge: Run, program: Run) -> bool:
        """Hand an answer on. True when the program has ended, which decides against it."""
        if program.frames and not program.flooded:
            answer = program.frames.popleft()
            if self._asked and answer.startswith(_BACK):  # it asks back: the tests stand in for its input
                self.calls.plain = False
                judge.send_bytes(answer)
            elif self._asked:  # else nobody asked: not for the judge's ears
                if self._asked == "call":
                    self.calls.plain = self.calls.plain and not any(tag in answer for tag in _KEPT)
                    if self.calls.plain:
                        self.calls.add(self._request, answer)
                self._asked = ""
                judge.send_bytes(answer)
        elif program.report is not None:
            problem = ending(program, self._session.limits)
            self._fail(*(problem or (Verdict.WRONG, "the program ended before it answered")))
            return True
        return False

    def _from_judge(self, judge: Run) -> bool:
        """Act on a frame of the judge's. True when a step is through."""
        try:
            frame = jail_data.loads(judge.frames.popleft())
        except NotPlain:
            frame = None
        match frame:
            case ["ask", [_, str() as operation, target, _, _, _] as request] if self._server is not None:
                self._ask(operation, target, list(request))
            case ["passed", int() as step] if step == self._step + 1:
                self._step = step
                self._passed += step > 0
                return True
            case ["missed", int() as step, str() as reason] if step == self._step + 1:
                self._tally.fail(self._place(), Verdict.WRONG, reason)
                self._step = step
                return True
            case ["finished"]:
                judge.send([self._nonce])
            case ["done", str() as nonce] if secrets.compare_digest(nonce, self._nonce) and self._complete():
                self._tally.passed = self._passed
                self._done = True
            case ["failed", int(), str() as reason]:
                self._fail(Verdict.WRONG, reason)
            case ["reply", list() as reply] if self._server is not None and self._server.run is not None:
                self._server.run.send(reply)
            case ["together", str() as reason] if self._server is not None:
                raise _Together(reason)
            case ["broken", str() as reason] if self._server is not None:
                raise BadTests(f"tests: {reason}")
            case _:
                self._fail(Verdict.WRONG, "the tests ended before their end")
        return False

    def _ask(self, operation: str, target: Tree, request: list[Tree]) -> None:
        """Pass a request of the judge's on to the program."""
        assert self._server is not None
        data = jail_data.dumps(request)
        if operation == "call":
            self.calls.count += 1
            self._request = request
        if operation != "get":
            by_name = operation == "call" and isinstance(target, str)
            self.calls.plain = self.calls.plain and by_name and not any(tag in data for tag in _KEPT)
        if self._afresh and operation == "call":
            self._server.close()
            problem = self._server.start()
            if problem is not None:
                self._fail(*problem)
                return
        if self._server.run is not None:
            self._asked = operation
            self._server.run.send_bytes(data)

    def _complete(self) -> bool:
        return self._step == self._tests.steps

    def _fail(self, verdict: Verdict, reason: str) -> None:
        self._done = True
        self._tally.passed = self._passed
        if time.monotonic() >= self._session.deadline:
            reason = f"all tests together ran past {self._session.limits.total_seconds:g} s"
        self._tally.fail(self._place(), verdict, reason)

    def _place(self) -> str:
        number = self._step + 1
        return f"test {number} of {self._tally.total}" if number > 0 and self._tally.total > 1 else ""

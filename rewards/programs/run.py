"""Drives one program through its cases in the jail, and says of each case what came of it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain, Tree
from rlreason.rewards.jail.jail import Jail, Limits
from rlreason.rewards.jail.run import Report, Run, pump
from rlreason.rewards.limit import item_seconds
from rlreason.rewards.programs.compare import same_output, same_value
from rlreason.rewards.programs.tests import BadTests, CallCase, CallTests, StdinCase, StdinTests, draws_of
from rlreason.types import Verdict

#: What a case came to, where it did not pass, and why.
Problem = tuple[Verdict, str]
Case = TypeVar("Case", StdinCase, CallCase)


@dataclass(slots=True)
class Tally:
    """Cases passed so far, and the first that did not pass."""

    total: int
    passed: int = 0
    verdict: Verdict = Verdict.CORRECT
    #: Of the first failure: ``case 2 of 5: expected '7', got '6'``.
    detail: str = ""
    notes: list[str] = field(default_factory=list)

    def fail(self, place: str, verdict: Verdict, reason: str) -> None:
        """Record a failure; only the first is told."""
        if self.verdict is Verdict.CORRECT:
            self.verdict, self.detail = verdict, f"{place}: {reason}" if place else reason

    @property
    def failed(self) -> bool:
        """Whether anything did not pass."""
        return self.verdict is not Verdict.CORRECT


@dataclass(slots=True)
class Session:
    """What all cases of one check share."""

    jail: Jail
    limits: Limits
    #: End of the total limit, on the monotonic clock.
    deadline: float

    @classmethod
    def start(cls, jail: Jail, limits: Limits) -> Session:
        """The total limit runs from now; within a reward pool it is no longer than what that gives to the item."""
        total = min(limits.total_seconds, item_seconds() or math.inf)
        return cls(jail=jail, limits=replace(limits, total_seconds=total), deadline=time.monotonic() + total)

    def case_deadline(self) -> float:
        """End of a case that starts now."""
        return min(self.deadline, time.monotonic() + self.limits.wall_seconds)

    def out_of_time(self) -> bool:
        """Whether the total limit has passed."""
        return time.monotonic() >= self.deadline


def quote(value: object, limit: int = 80) -> str:
    """A short ``repr`` of trusted or plain data."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer too long to print, a nest too deep
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}…"


def ending(run: Run, limits: Limits, *, cpu_seconds: float | None = None) -> Problem | None:
    """What a run's end says against it; None for a normal end."""
    report = run.report
    assert report is not None
    if run.flooded:
        return Verdict.WRONG, f"wrote more than {limits.output_bytes} bytes"
    if report.killed == "memory":
        return Verdict.WRONG, f"its processes took more than {limits.memory_mb} MB"
    if report.killed or _cpu_spent(report, cpu_seconds or limits.cpu_seconds):
        return Verdict.TIMED_OUT, "ran past its limit"
    if report.exit_code < 0:
        return Verdict.WRONG, f"died of signal {-report.exit_code}{_last_line(run)}"
    if report.exit_code > 0:
        return Verdict.WRONG, f"exit status {report.exit_code}{_last_line(run)}"
    return None


def _cpu_spent(report: Report, cpu_seconds: float) -> bool:
    killed = report.exit_code in {-signal.SIGKILL, -signal.SIGXCPU}
    return killed and report.cpu_seconds >= cpu_seconds - 0.5


def _last_line(run: Run) -> str:
    lines = run.stderr.decode("utf-8", "replace").strip().splitlines()
    return f" ({lines[-1][:200]})" if lines else ""


def _tally(
    session: Session, cases: Sequence[Case], problem_of: Callable[[Case], Problem | None], *, partial: bool
) -> Tally:
    """Case after case, until the first failure unless ``partial``, and within the total limit."""
    tally = Tally(total=len(cases))
    for number, case in enumerate(cases, start=1):
        place = f"case {number} of {tally.total}"
        if session.out_of_time():
            tally.fail(place, Verdict.TIMED_OUT, f"all cases together ran past {session.limits.total_seconds:g} s")
            break
        problem = problem_of(case)
        if problem is None:
            tally.passed += 1
            continue
        tally.fail(place, *problem)
        if not partial:
            break
    return tally


# --- whole programs -------------------------------------------------------------------------------------------------


def run_stdin(session: Session, source: str, tests: StdinTests, *, partial: bool) -> Tally:
    """Each case in a process of its own: input on standard input, output compared here or by the checker."""
    with Checker(session, tests.checker) as checker:
        return _tally(session, tests.cases, lambda case: _run_case(session, source, case, checker), partial=partial)


def _run_case(session: Session, source: str, case: StdinCase, checker: Checker) -> Problem | None:
    run = session.jail.spawn(session.limits)
    try:
        run.feed(case.input.encode("utf-8", "surrogateescape"))
        run.send(["stdin", source])
        in_time = pump([run], session.case_deadline(), lambda: run.drained)
    finally:
        run.close()
    if not in_time:
        return Verdict.TIMED_OUT, "ran past its limit"
    problem = ending(run, session.limits)
    if problem is not None:
        return problem
    return checker.problem(case, bytes(run.stdout))


class Checker:
    """Compares outputs: by the contest's rule, or by the problem's own ``check`` in a jailed process."""

    def __init__(self, session: Session, source: str | None) -> None:
        self._session = session
        self._server = None if source is None else FunctionServer(session, source, cases=1000)

    def __enter__(self) -> Checker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()

    def problem(self, case: StdinCase, output: bytes) -> Problem | None:
        """What is wrong with ``output`` as an answer to ``case``.

        A checker that fails on an output says no to it: a program must not choose to be left without a score. Raises
        BadTests where the checker fails by itself: it does not load, or rejects its own expected output in that way.
        """
        got = output.decode("utf-8", "replace")
        if self._server is None:
            accepted, why = same_output(case.output, output), ""
        else:
            accepted, why = self._ask(self._server, case, got)
            if why and case.output.strip():
                self._server.close()  # nothing that a program printed has a say in this
                _, fault = self._ask(self._server, case, case.output)
                if fault:
                    raise BadTests(f"the checker failed on the expected output: {fault}")
        if accepted:
            return None
        reason = f"expected {quote(case.output)}, got {quote(got)}"
        return Verdict.WRONG, f"{reason}; the checker {why}" if why else reason

    def _ask(self, server: FunctionServer, case: StdinCase, output: str) -> tuple[bool, str]:
        """Whether the checker accepts ``output``, and how it failed if it did. Raises BadTests if it doesn't load."""
        problem = server.start()
        if problem is not None:
            raise BadTests(f"the checker does not load: {problem[1]}")
        answer = server.call("check", [case.input, output, case.output], {})
        if answer.problem is not None:
            return False, answer.problem[1]
        if type(answer.tree) is not bool:
            return False, "returned neither True nor False"
        return answer.tree, ""


# --- functions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A call's result as a tree, or what went wrong."""

    tree: Tree = None
    problem: Problem | None = None


class FunctionServer:
    """A jailed process with the program loaded, that answers calls. Started at the first, and again after a death."""

    def __init__(self, session: Session, source: str, *, cases: int) -> None:
        self._session = session
        self._source = source
        self._cpu = min(session.limits.total_seconds, session.limits.cpu_seconds * cases)
        self.run: Run | None = None
        #: What the program defines; known once it is loaded.
        self.names: list[str] = []

    def close(self) -> None:
        """End the process."""
        run, self.run = self.run, None
        if run is not None:
            run.close()

    def start(self) -> Problem | None:
        """Load the program, unless it is loaded. What went wrong, if anything did."""
        if self.run is not None:
            return None
        self.run = self._session.jail.spawn(self._session.limits, cpu_seconds=self._cpu)
        self.run.feed(b"")
        self.run.send(["serve", self._source])
        answer = self._receive()
        if isinstance(answer, tuple):
            return answer
        if len(answer) == 2 and answer[0] == "ready" and isinstance(answer[1], list):
            self.names = [name for name in answer[1] if isinstance(name, str)]
            return None
        return self._give_up(Verdict.WRONG, "spoke out of turn")

    def call(self, name: str, arguments: list[object], named: dict[str, object]) -> Answer:
        """Call ``name``; arguments are copied anew for each call."""
        problem = self.start()
        if problem is not None:
            return Answer(problem=problem)
        assert self.run is not None
        try:
            self.run.send([False, "call", name, jail_data.to_tree(arguments), jail_data.to_tree(named)])
        except NotPlain as error:
            raise BadTests(f"tests: an argument is no plain data: {error}") from None
        answer = self._receive()
        if isinstance(answer, tuple):
            return Answer(problem=answer)
        if len(answer) == 2 and answer[0] == "value":
            return Answer(tree=answer[1])
        if len(answer) == 3 and answer[0] == "raised":
            return Answer(problem=(Verdict.WRONG, f"raised {quote(answer[1])[1:-1]} {quote(answer[2])}"))
        reason = quote(answer[1], 200) if len(answer) == 2 and answer[0] == "opaque" else "spoke out of turn"
        return Answer(problem=(Verdict.WRONG, f"its result does not cross: {reason}"))

    def _receive(self) -> list[Tree] | Problem:
        answer = self.receive_bytes()
        if isinstance(answer, tuple):
            return answer
        try:
            tree = jail_data.loads(answer)
        except NotPlain:
            tree = None
        return tree if isinstance(tree, list) else self._give_up(Verdict.WRONG, "spoke out of turn")

    def receive_bytes(self) -> bytes | Problem:
        """The next frame, not decoded; or what ended the program instead."""
        run = self.run
        assert run is not None
        in_time = pump([run], self._session.case_deadline(), lambda: bool(run.frames) or run.report is not None)
        if not in_time:
            return self._give_up(Verdict.TIMED_OUT, "ran past its limit")
        if run.frames and not run.flooded:
            return run.frames.popleft()
        self.close()
        problem = ending(run, self._session.limits, cpu_seconds=self._cpu)
        return problem or (Verdict.WRONG, "ended before it answered")

    def _give_up(self, verdict: Verdict, reason: str) -> Problem:
        self.close()
        return verdict, reason


def run_calls(session: Session, source: str, tests: CallTests, *, partial: bool) -> Tally:
    """All cases in one process, one call at a time; then two of them again, see ``_repeats``."""
    server = FunctionServer(session, source, cases=len(tests.cases))
    try:
        tally = _tally(session, tests.cases, lambda case: _call_case(server, tests, case), partial=partial)
        if tally.failed:
            return tally
        for at in _repeats(source, tally.total):
            problem = _call_case(server, tests, tests.cases[at])
            if problem is not None:
                tally.passed -= 1
                tally.fail(f"case {at + 1} of {tally.total}, called again", *problem)
                break
    finally:
        server.close()
    return tally


def _repeats(source: str, cases: int) -> list[int]:
    """Which of ``cases`` that all passed to call again, against answers by the number of the call.

    Never the first at once, where answers that start over would fit, and not the same one twice, where the last
    answer given for ever would fit. Which they are follows from the program's text, so its verdict stays the same.
    """
    if cases < 2:
        return []
    draw = draws_of(source)
    first = draw.randrange(1, cases)
    second = draw.choice([at for at in range(cases) if at != first])
    return [first, second]


def _call_case(server: FunctionServer, tests: CallTests, case: CallCase) -> Problem | None:
    answer = server.call(tests.entry_point, case.args, case.kwargs)
    if answer.problem is not None:
        return answer.problem
    if same_value(case.expected, answer.tree, tests.tolerance):
        return None
    return Verdict.WRONG, f"expected {quote(case.expected)}, got {quote(answer.tree)}"

"""Drives one program through its cases in the jail, and says of each case what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rlreason.rewards.jail.data import Tree
from rlreason.rewards.jail.run import pump
from rlreason.rewards.programs.checker import Checker
from rlreason.rewards.programs.compare import same_value
from rlreason.rewards.programs.server import FunctionServer, header_of
from rlreason.rewards.programs.session import Problem, Session, Tally, ending, quote
from rlreason.rewards.programs.tests import CallCase, CallTests, StdinCase, StdinTests, draws_of
from rlreason.types import Verdict

Case = TypeVar("Case", StdinCase, CallCase)


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
    with Checker(session, tests) as checker:
        job: list[Tree] = ["stdin", source, tests.prelude or "", dict(session.packages.program)]
        return _tally(session, tests.cases, lambda case: _run_case(session, job, case, checker), partial=partial)


def _run_case(session: Session, job: list[Tree], case: StdinCase, checker: Checker) -> Problem | None:
    run = session.jail.spawn(session.limits)
    try:
        run.feed(case.input.encode("utf-8", "replace"))  # half a surrogate pair, of data that was cut, is a "?"
        run.send(job)
        in_time = pump([run], session.case_deadline(), lambda: run.drained)
    finally:
        run.close()
    if run.frames:
        header_of(run.frames.popleft())
    if not in_time:
        return Verdict.TIMED_OUT, "ran past its limit"
    problem = ending(run, session.limits)
    if problem is not None:
        return problem
    return checker.problem(case, bytes(run.stdout))


# --- functions ------------------------------------------------------------------------------------------------------


def run_calls(session: Session, source: str, tests: CallTests, *, partial: bool) -> Tally:
    """All cases in one process, one call at a time; then two of them again, see ``_repeats``."""
    server = FunctionServer(session, source, cases=2 * len(tests.cases) + 2, prelude=tests.prelude)
    try:
        tally = _tally(session, tests.cases, lambda case: _call_case(server, tests, case), partial=partial)
        if tally.failed:
            return tally
        for at in _repeats(source, tally.total):
            problem = _call_case(server, tests, tests.cases[at])
            if problem is not None:
                if _depends_on_earlier(server, tests):
                    tally.notes.append("the answers depend on earlier calls")
                    break
                tally.passed -= 1
                tally.fail(f"case {at + 1} of {tally.total}, called again", *problem)
                break
    finally:
        server.close()
    return tally


def _depends_on_earlier(server: FunctionServer, tests: CallTests) -> bool:
    """Whether answers follow from the calls before, rather than from how many there were.

    In fresh processes: the same calls pass again; in another order, some call is answered by what it is, not by its
    place.
    """
    server.close()
    if any(_call_case(server, tests, case) is not None for case in tests.cases):
        return False
    server.close()
    turned = [*tests.cases[1:], tests.cases[0]]
    answers = [server.call(tests.entry_point, case.args, case.kwargs, answer_in=case.argument) for case in turned]
    return any(
        answer.problem is None and not same_value(case.expected, answer.tree, tests.tolerance)
        for case, answer in zip(tests.cases, answers, strict=True)
    )


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
    answer = server.call(tests.entry_point, case.args, case.kwargs, answer_in=case.argument)
    if answer.problem is not None:
        return answer.problem
    if same_value(case.expected, answer.tree, tests.tolerance):
        return None
    return Verdict.WRONG, f"expected {quote(case.expected)}, got {quote(answer.tree)}"

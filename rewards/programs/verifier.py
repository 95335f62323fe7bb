"""The code verifier: does a program pass its tests, run in the jail, with a verdict that it can't forge?

Program and checker never share a process: expected values stay here or in a judge's own jailed process, results come
back as plain data, and neither exit status, printed words, files nor exceptions pass a test. ``docs/sandbox.md`` has
the threat model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from rlreason.rewards.jail.jail import Jail, JailUnavailable, Limits, Require
from rlreason.rewards.jail.run import RunLost
from rlreason.rewards.programs.attempts import attempt
from rlreason.rewards.programs.extract import extract_program
from rlreason.rewards.programs.judge import run_code
from rlreason.rewards.programs.run import Session, Tally, run_calls, run_stdin
from rlreason.rewards.programs.tests import BadTests, CallTests, StdinTests, Tests, read_tests
from rlreason.rewards.registry import verifier
from rlreason.types import Completion, Problem, RewardResult, Verdict


@verifier("code")
def code(
    problem: Problem,
    completion: Completion,
    *,
    partial: bool = False,
    require: Require = "best",
    whole_text: bool = False,
    timeout: float = 10.0,
) -> RewardResult:
    """Take the program out of the response and run it against ``problem.reference``, a mapping of tests.

    ``partial``: score the share of tests passed. ``require``: the isolation without which nothing runs, see
    ``jail``. ``timeout``: wall seconds for one case.
    """
    source = extract_program(completion.response, whole_text=whole_text)
    if source is None:
        return RewardResult(score=0.0, verdict=Verdict.UNPARSED, detail="no program found")
    if not isinstance(problem.reference, Mapping):
        return _broken("the problem's reference is no mapping of tests")
    limits = Limits(wall_seconds=timeout, cpu_seconds=timeout)
    result = check_program(source, problem.reference, limits=limits, partial=partial, require=require)
    return replace(result, extracted=source)


def check_program(
    source: str,
    tests: Mapping[str, object],
    *,
    limits: Limits | None = None,
    partial: bool = False,
    require: Require = "best",
) -> RewardResult:
    """Run the Python program ``source`` against ``tests``, whose ``type`` is one of:

    - ``stdin``: ``cases`` of ``input`` and ``output``; a ``checker`` where several outputs are right.
    - ``function``: ``entry_point`` and ``cases`` of ``args``, ``kwargs``, ``expected`` (plain data), or ``code``
      that defines ``check(candidate)``.
    - ``asserts``: ``setup`` and a list of ``asserts``.
    - ``unittest``: ``code`` of test cases.

    Stops at the first failure, unless ``partial`` asks for the share of tests passed. A program that runs past a
    limit of time is TIMED_OUT with the score of a failure. BROKEN, without a score: the tests are malformed, or
    this host can't give the isolation that ``require`` asks for. Never raises for what a program does.
    """
    started = time.perf_counter()
    limits = limits or Limits()
    try:
        wanted = read_tests(tests)
        tally = attempt(lambda jail: _run(jail, source, wanted, limits, partial=partial), limits, require=require)
    except (BadTests, JailUnavailable, RunLost) as error:
        return _broken(str(error), time.perf_counter() - started)
    share = tally.passed / tally.total
    score = share if partial else float(not tally.failed)
    if tally.failed and score == 1.0:  # all cases passed, but not when called again
        score = 0.0
    return RewardResult(
        score=score,
        verdict=tally.verdict,
        detail="; ".join(filter(None, (tally.detail, *tally.notes)))[:1000],
        seconds=time.perf_counter() - started,
    )


def _run(jail: Jail, source: str, tests: Tests, limits: Limits, *, partial: bool) -> Tally:
    session = Session.start(jail, limits)
    if isinstance(tests, StdinTests):
        return run_stdin(session, source, tests, partial=partial)
    if isinstance(tests, CallTests):
        return run_calls(session, source, tests, partial=partial)
    return run_code(session, source, tests, partial=partial)


def _broken(reason: str, seconds: float = 0.0) -> RewardResult:
    return RewardResult(score=None, verdict=Verdict.BROKEN, detail=reason[:500], seconds=seconds)

"""The code verifier: does a program pass its tests, run in the jail, with a verdict that it can't forge?

Program and checker never share a process: expected values stay here or in a judge's own jailed process, results come
back as plain data, and neither exit status, printed words, files nor exceptions pass a test. ``docs/sandbox.md`` has
the threat model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rlreason.rewards.jail.jail import Jail, JailUnavailable, Limits, Require
from rlreason.rewards.jail.outer import Outer
from rlreason.rewards.jail.run import RunLost
from rlreason.rewards.programs.attempts import attempt
from rlreason.rewards.programs.extract import extract_program
from rlreason.rewards.programs.judge import run_code
from rlreason.rewards.programs.packages import NoSuchPackage, locate
from rlreason.rewards.programs.run import run_calls, run_stdin
from rlreason.rewards.programs.session import Session, Tally
from rlreason.rewards.programs.tests import BadTests, CallTests, StdinTests, Tests, read_limits, read_tests
from rlreason.rewards.registry import verifier
from rlreason.types import Completion, Problem, RewardResult, Verdict


@verifier("code")
def code(  # noqa: PLR0913  # its parameters are a recipe's options
    problem: Problem,
    completion: Completion,
    *,
    partial: bool = False,
    require: Require = "best",
    whole_text: bool = False,
    timeout: float = 10.0,
    total_timeout: float | None = None,
    memory_mb: int = 1024,
    output_mb: int = 16,
    packages: Sequence[str] | None = None,
    outer: Outer = "",
) -> RewardResult:
    """Take the program out of the response and run it against ``problem.reference``, a mapping of tests.

    ``partial``: score the share of tests passed. ``require``: the isolation without which nothing runs, see
    ``jail``. ``timeout``: wall seconds for one case; ``total_timeout`` for all of them, six times that unless given.
    ``memory_mb``, ``output_mb``: what one case may use and print. ``packages``: what programs may import besides the
    standard library, as installed here; unless given, numpy and sortedcontainers where they are. ``outer``: "bwrap"
    puts bubblewrap around the jail. ``limits`` in the tests come before these.
    """
    source = extract_program(completion.response, whole_text=whole_text)
    if source is None:
        return RewardResult(score=0.0, verdict=Verdict.UNPARSED, detail="no program found")
    if not isinstance(problem.reference, Mapping):
        return _broken("the problem's reference is no mapping of tests")
    limits = Limits(
        wall_seconds=timeout,
        cpu_seconds=timeout,
        total_seconds=6 * timeout if total_timeout is None else total_timeout,
        memory_mb=memory_mb,
        output_bytes=output_mb << 20,
    )
    result = check_program(
        source, problem.reference, limits=limits, partial=partial, require=require, packages=packages, outer=outer
    )
    return replace(result, extracted=source)


def check_program(
    source: str,
    tests: Mapping[str, object],
    *,
    limits: Limits | None = None,
    partial: bool = False,
    require: Require = "best",
    packages: Sequence[str] | None = None,
    outer: Outer = "",
) -> RewardResult:
    """Run the Python program ``source`` against ``tests``, whose ``type`` is one of:

    - ``stdin``: ``cases`` of ``input`` and ``output``; a ``checker`` where several outputs are right.
    - ``function``: ``entry_point`` and ``cases`` of ``args``, ``kwargs``, ``expected`` (plain data), or ``code``
      that defines ``check(candidate)``.
    - ``asserts``: ``setup`` and a list of ``asserts``.
    - ``unittest`` or ``pytest``: ``code`` of a test file.

    Each may have a ``prelude``, which runs before the program and before the tests, and ``limits``.

    Stops at the first failure, unless ``partial`` asks for the share of tests passed. A program that runs past a
    limit of time is TIMED_OUT with the score of a failure. BROKEN, without a score: the tests are malformed, or
    this host can't give the isolation that ``require`` asks for. Never raises for what a program does.
    """
    started = time.perf_counter()
    try:
        wanted = read_tests(tests)
        limits = read_limits(tests, limits or Limits())
        here = locate(None if packages is None else tuple(packages)).if_named([source, *wanted.texts])

        def check(jail: Jail) -> Tally:
            return _run(Session.start(jail, limits, here), source, wanted, partial=partial)

        tally = attempt(check, limits, require=require, visible=here.paths, outer=outer)
    except (BadTests, JailUnavailable, RunLost, NoSuchPackage) as error:
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


def _run(session: Session, source: str, tests: Tests, *, partial: bool) -> Tally:
    if isinstance(tests, StdinTests):
        return run_stdin(session, source, tests, partial=partial)
    if isinstance(tests, CallTests):
        return run_calls(session, source, tests, partial=partial)
    return run_code(session, source, tests, partial=partial)


def _broken(reason: str, seconds: float = 0.0) -> RewardResult:
    return RewardResult(score=None, verdict=Verdict.BROKEN, detail=reason[:500], seconds=seconds)

"""Programs in worker processes from asyncio: order, back-pressure, tests sent once, nothing left behind."""

import asyncio
import contextlib
import inspect
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rlreason.config.engine import ClusterConfig
from rlreason.local_pool import LocalPool
from rlreason.rewards.jail.alone import alone, beside_others
from rlreason.rewards.jail.jail import Jail, Limits, capabilities
from rlreason.rewards.jail.run import RunLost
from rlreason.rewards.pool import Pool
from rlreason.rewards.programs.attempts import attempt
from rlreason.rewards.programs.pool import ProgramPool, _check, _Item, _Settings, _Unknown, check_programs
from rlreason.rewards.programs.session import Tally
from rlreason.rewards.programs.verifier import code
from rlreason.score_file import _mix
from rlreason.types import Completion, Problem, RewardResult, Verdict

RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a\n"
TESTS = {"type": "function", "entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]}
Job = tuple[str, dict[str, object]]


def jobs(count: int) -> Iterator[Job]:
    for at in range(count):
        yield (RIGHT if at % 3 else WRONG), TESTS


def expected(count: int) -> list[Verdict]:
    return [Verdict.CORRECT if at % 3 else Verdict.WRONG for at in range(count)]


def family(pid: int) -> list[int]:
    """``pid`` and its descendants: a worker, its zygote, what runs there."""
    found = [pid]
    for one in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a program that ends while it is looked at
            for path in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, path.read_text().split())
    return found


def gone(pid: int) -> bool:
    """Whether the process ends within ten seconds."""
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


async def verdicts(source: object, **options: object) -> list[Verdict]:
    return [result.verdict async for result in check_programs(source, **options)]  # type: ignore[arg-type]


def test_in_order() -> None:
    assert asyncio.run(verdicts(jobs(40), workers=2)) == expected(40)
    assert asyncio.run(verdicts([], workers=1)) == []


def test_an_async_source() -> None:
    async def source() -> AsyncIterator[Job]:
        for job in jobs(7):
            await asyncio.sleep(0)
            yield job

    assert asyncio.run(verdicts(source(), workers=2, in_flight=3)) == expected(7)


def test_a_slow_reader_slows_the_source() -> None:
    taken = 0

    def source() -> Iterator[Job]:
        nonlocal taken
        for job in jobs(60):
            taken += 1
            yield job

    async def read() -> None:
        read = 0
        async with ProgramPool(workers=2) as pool:
            async for _ in pool.stream(source(), in_flight=5):
                read += 1
                assert taken - read <= 5
                await asyncio.sleep(0.02)
        assert read == 60

    asyncio.run(read())


def test_leaving_early_ends_everything() -> None:
    async def leave() -> list[int]:
        async with ProgramPool(workers=2) as pool:
            async for result in pool.stream(jobs(1_000)):
                assert result.verdict is Verdict.WRONG
                break
            return [one for pid in pool.pids for one in family(pid)]

    pids = asyncio.run(leave())
    assert len(pids) > 1  # a worker and its zygote at least
    assert all(gone(pid) for pid in pids)


def test_one_pool_in_several_loops() -> None:
    pool = ProgramPool(workers=1)
    try:
        for _ in range(2):
            assert asyncio.run(pool.check(RIGHT, TESTS)).verdict is Verdict.CORRECT
        assert len(pool.pids) == 1
    finally:
        pool.close()


def test_a_group_and_a_lost_worker() -> None:
    async def run() -> None:
        async with ProgramPool(workers=1) as pool:
            group = [RIGHT, WRONG, RIGHT]
            wanted = [Verdict.CORRECT, Verdict.WRONG, Verdict.CORRECT]
            assert [r.verdict for r in await pool.check_group(group, TESTS)] == wanted
            (pid,) = pool.pids
            zygotes = family(pid)[1:]
            os.kill(pid, signal.SIGKILL)
            # The new worker never had the tests: they are sent again.
            assert [r.verdict for r in await pool.check_group(group, TESTS)] == wanted
            assert pool.pids != (pid,)
            assert zygotes
            assert all(gone(one) for one in zygotes)

    asyncio.run(run())


def test_tests_travel_once() -> None:
    settings = _Settings(limits=None, partial=False, require="best")
    assert isinstance(_check(settings, _Item(RIGHT, b"never seen", None)), _Unknown)

    async def run() -> None:
        async with ProgramPool(workers=1) as pool:
            lane = pool._lanes[0]
            sent: list[bool] = []
            inner = lane.pool.map

            def counting(items: list[_Item]) -> list[object]:
                sent.extend(item.tests is not None for item in items)
                return list(inner(items))

            lane.pool.map = counting  # type: ignore[method-assign,assignment]
            for _ in range(3):
                assert (await pool.check(RIGHT, TESTS)).verdict is Verdict.CORRECT
            assert sent == [True, False, False]
            # Same tests in another object; other tests.
            assert (await pool.check(RIGHT, dict(TESTS))).verdict is Verdict.CORRECT
            others = {**TESTS, "cases": [{"args": [1, 2], "expected": 4}]}
            assert (await pool.check(RIGHT, others)).verdict is Verdict.WRONG
            assert sent == [True, False, False, False, True]
            # More tests than a worker keeps, then the first again.
            for at in range(20):
                many = {**TESTS, "cases": [{"args": [at, 2], "expected": at + 2}]}
                assert (await pool.check(RIGHT, many)).verdict is Verdict.CORRECT
            assert (await pool.check(RIGHT, TESTS)).verdict is Verdict.CORRECT

    asyncio.run(run())


def test_odd_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="in_flight"):
        asyncio.run(verdicts(jobs(1), in_flight=0))
    with pytest.raises(ValueError, match="workers"):
        ProgramPool(workers=0)


def test_tests_that_make_no_sense_are_broken_not_raised() -> None:
    async def run() -> Verdict:
        async with ProgramPool(workers=1) as pool:
            return (await pool.check(RIGHT, {"type": "riddle"})).verdict

    assert asyncio.run(run()) is Verdict.BROKEN


def verify(text: str) -> RewardResult:
    """In a worker: the verifier with all its defaults, and two cases."""
    cases = [{"input": "7\n", "output": "7\n"}] * 8
    problem = Problem(id="p", prompt="", verifier="code", reference={"type": "stdin", "cases": cases})
    completion = Completion(prompt_ids=(), token_ids=(), sampler_logprobs=None, text=text, finish_reason="stop")
    return code(problem, completion)


HANG = "```python\nwhile True: pass\n```"
SLOW = "```python\nimport time\ntime.sleep(0.4)\nprint(input())\n```"
QUICK = "```python\nprint(input())\n```"


@pytest.mark.parametrize("kind", [Pool, LocalPool])
def test_a_program_that_runs_out_of_time_has_a_score_whatever_the_pool_allows(kind: type[Pool | LocalPool]) -> None:
    """Limits nest: a case, a program, the reward pool. The pool's clock starts first, and yet it is not first."""
    pool = kind(verify, timeout=1.5)
    try:
        results = [one.result(120) for one in pool.submit_all([HANG, SLOW, QUICK])]
    finally:
        pool.close()
    assert [one.failure for one in results] == [""] * 3
    scored = [one.value for one in results if isinstance(one.value, RewardResult)]
    assert [(one.verdict, one.score) for one in scored] == [
        (Verdict.TIMED_OUT, 0.0), (Verdict.TIMED_OUT, 0.0), (Verdict.CORRECT, 1.0)
    ]  # fmt: skip


def test_the_defaults_nest() -> None:
    limits = Limits()
    assert limits.wall_seconds < limits.total_seconds <= ClusterConfig().reward_timeout
    defaults = inspect.signature(code).parameters
    assert defaults["timeout"].default == limits.wall_seconds
    assert _mix("code", limits.wall_seconds, {})[1] >= limits.total_seconds  # ``score``'s limit for a row


def test_a_jail_that_a_program_ends_is_no_way_to_be_left_out() -> None:
    def lost(jail: Jail) -> Tally:
        os.kill(jail.pid, signal.SIGKILL)
        raise RunLost("gone")

    tally = attempt(lost, Limits())
    assert (tally.verdict, tally.detail) == (Verdict.WRONG, "its jail was lost 2 times")


def test_a_run_that_was_kept_from_the_processor_gets_another_one_alone() -> None:
    """Once, and only where it ran out of time while it waited."""
    for waited, verdict, times in ((2.5, Verdict.TIMED_OUT, 2), (0.1, Verdict.TIMED_OUT, 1), (2.5, Verdict.WRONG, 1)):
        seen = []

        def check(jail: Jail, waited: float = waited, verdict: Verdict = verdict, seen: list[int] = seen) -> Tally:
            seen.append(1)
            jail.waited_seconds = waited
            tally = Tally(total=1)
            tally.fail("", verdict, "")
            return tally

        assert attempt(check, Limits(wall_seconds=3.0)).verdict is verdict
        assert len(seen) == times


def test_alone_waits_for_the_others_and_they_for_it() -> None:
    order: list[str] = []
    inside, done = threading.Event(), threading.Event()

    def ordinary(name: str) -> None:
        with beside_others():
            order.append(name)
            inside.set()
            assert done.wait(30) or name != "first"
            order.append(f"{name} ends")

    def by_itself() -> None:
        with alone():
            order.append("alone")
            order.append("alone ends")

    first = threading.Thread(target=ordinary, args=("first",))
    first.start()
    inside.wait(30)
    second = threading.Thread(target=by_itself)
    second.start()
    time.sleep(0.1)
    done.set()
    first.join()
    second.join()
    assert order == ["first", "first ends", "alone", "alone ends"]


def test_a_pool_that_is_closed_leaves_no_control_group() -> None:
    """Its idle workers end by themselves, and their jails with them."""
    pool = Pool(verify, timeout=60)
    assert [one.value.verdict for one in pool.map([QUICK])] == [Verdict.CORRECT]
    mine = f"**/rlreason-{pool.pids[0]}-*"
    assert bool(list(Path("/sys/fs/cgroup").glob(mine))) == (capabilities().extras["cgroup"] == "")
    pool.close()
    assert list(Path("/sys/fs/cgroup").glob(mine)) == []

"""Worker processes for many callers: nobody waits for another's slow item, nothing is lost or counted twice."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path

import pytest

from rlreason.rewards import pool as pool_module
from rlreason.rewards.pool import Outcome, Pool


def work(item: tuple[str, str]) -> str:
    """("hang", _) hangs, ("die", _) ends its process, ("note", path) leaves a line there,
    ("nap", path) does so after a while, ("say", text) says it."""
    what, argument = item
    if what == "hang":
        time.sleep(600)
    if what == "die":
        os._exit(3)
    if what == "nap":
        time.sleep(0.5)
    if what in ("note", "nap"):
        with Path(argument).open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    return argument


def values(answers: list[Future[Outcome]]) -> list[object]:
    return [answer.result(60).value for answer in answers]


def test_a_hanging_item_holds_back_no_other_caller() -> None:
    with Pool(work, workers=2, timeout=60) as pool:
        hanging = pool.submit(("hang", ""))
        assert [one.value for one in pool.map([("say", str(i)) for i in range(200)])] == [str(i) for i in range(200)]
        assert not hanging.done()


def test_what_waits_behind_a_hanging_item_goes_to_another_worker() -> None:
    """Quick items travel 32 at a time; one of them hangs, and a worker is started for the others of its chunk."""
    with Pool(work, workers=2, timeout=60) as pool:
        pool.map([("say", "warm")] * 300)
        answers = [pool.submit(("hang" if i == 40 else "say", str(i))) for i in range(100)]
        others = [answer for i, answer in enumerate(answers) if i != 40]
        assert values(others) == [str(i) for i in range(100) if i != 40]
        assert not answers[40].done()


def test_one_worker_goes_on_after_the_limit() -> None:
    with Pool(work, workers=1, timeout=0.5) as pool:
        outcomes = pool.map([("say", "a"), ("hang", ""), ("say", "b"), ("die", ""), ("say", "c")])
    assert [one.failure for one in outcomes] == ["", "timed_out", "", "crashed", ""]
    assert [one.value for one in outcomes] == ["a", None, "b", None, "c"]


def test_a_worker_that_died_while_it_was_free_loses_nothing() -> None:
    with Pool(work, workers=1, timeout=60) as pool:
        for number in range(20):
            assert pool.map([("say", str(number))])[0].value == str(number)
            os.kill(pool.pids[0], signal.SIGKILL)


def test_slow_items_travel_alone_and_are_done_once(tmp_path: Path) -> None:
    """They may cost something. An item of half a second is long enough to be taken for one that hangs."""
    file = tmp_path / "pids"
    with Pool(work, workers=2, timeout=60) as pool:
        pool.map([("nap", str(file))] * 8)
    assert len(file.read_text(encoding="utf-8").split()) == 8


def test_threads_share_the_workers() -> None:
    found: dict[int, list[object]] = {}

    def call(number: int) -> None:
        found[number] = [one.value for one in pool.map([("say", f"{number}-{i}") for i in range(300)])]

    with Pool(work, workers=2) as pool:
        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(pool.pids) <= 2
    assert found == {number: [f"{number}-{i}" for i in range(300)] for number in range(4)}


def test_an_abandoned_call_disturbs_no_later_one(tmp_path: Path) -> None:
    with Pool(work, workers=1) as pool:
        file = tmp_path / "done"
        stream = pool.imap([("note", str(file))] * 10_000)
        assert next(stream).value == str(file)
        stream.close()
        assert pool.map([("say", "later")])[0].value == "later"
    assert len(file.read_text(encoding="utf-8").split()) < 10_000, "what nobody wants any more was done"


def test_closing_ends_what_is_under_way_and_a_later_item_starts_anew() -> None:
    pool = Pool(work, workers=1)
    under_way = pool.submit(("hang", ""))
    queued = [pool.submit(("say", "x")) for _ in range(3)]
    while not pool.pids or not under_way.running():
        time.sleep(0.01)
    pids = pool.pids
    pool.close()
    assert wait([under_way, *queued], 10).not_done == set()
    with pytest.raises(RuntimeError, match="closed"):
        under_way.result()
    for one in queued:
        with pytest.raises(RuntimeError, match="closed"):
            one.result()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    with pool:
        assert pool.map([("say", "again")])[0].value == "again"


def test_workers_that_do_not_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Pool(work) as pool:
        monkeypatch.setattr(pool_module.sys, "executable", "/bin/false")
        with pytest.raises(RuntimeError, match="do not start"):
            pool.map([("say", "x")])
        monkeypatch.undo()
        assert pool.map([("say", "x")])[0].value == "x"

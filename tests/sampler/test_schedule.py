"""Who draws what, when weights are taken, and that a record is followed to the letter."""

from __future__ import annotations

import pytest

from rlreason.sampler.jobs import Job
from rlreason.sampler.schedule import Deliver, Draw, LiveSchedule, ReplayedSchedule, Restart, WorkerState
from rlreason.types import SamplingParams


def job(key: str, min_version: int = 0) -> Job:
    return Job(key=key, problem_id=key, prompt_ids=(1,), params=SamplingParams(), min_version=min_version)


def idle(version: int | None, outstanding: int = 0) -> WorkerState:
    return WorkerState(version=version, outstanding=outstanding)


def keys(op: object) -> list[str]:
    assert isinstance(op, Draw)
    return [one.key for one in op.jobs]


def test_groups_go_round_and_weights_come_first() -> None:
    schedule = LiveSchedule(2)
    schedule.add([job("a"), job("b"), job("c")])
    assert schedule.next(0, idle(None), None) is None
    assert schedule.next(0, idle(None), 0) == Deliver(version=0)
    assert keys(schedule.next(0, idle(0), 0)) == ["a", "c"]
    assert keys(schedule.next(1, idle(0), 0)) == ["b"]
    assert schedule.next(1, idle(0), 0) is None
    schedule.add([job("d")])  # the turn goes on where it was
    assert keys(schedule.next(1, idle(0), 0)) == ["d"]


@pytest.mark.parametrize("in_flight", [False, True])
def test_new_weights_between_tokens_or_between_groups(in_flight: bool) -> None:
    schedule = LiveSchedule(1, in_flight=in_flight)
    schedule.add([job("a"), job("b", min_version=1)])
    assert keys(schedule.next(0, idle(0), 0)) == ["a"]
    op = schedule.next(0, idle(0, outstanding=1), 1)
    if in_flight:
        assert op == Deliver(version=1)
        assert keys(schedule.next(0, idle(1, outstanding=1), 1)) == ["b"]
    else:
        assert keys(op) == []  # it goes on with the old weights; b may not begin with them
        assert schedule.next(0, idle(0), 1) == Deliver(version=1)


def test_the_groups_of_a_dead_worker_go_to_the_others_first() -> None:
    schedule = LiveSchedule(3)
    schedule.add([job(key) for key in "abcdef"])
    assert keys(schedule.next(0, idle(0), 0)) == ["a", "d"]
    schedule.again(0, [job("a"), job("d")])
    assert keys(schedule.next(1, idle(0), 0)) == ["a", "b", "e"]
    assert keys(schedule.next(2, idle(0), 0)) == ["d", "c", "f"]
    alone = LiveSchedule(1)
    alone.again(0, [job("a")])
    assert keys(alone.next(0, idle(0), 0)) == ["a"]


def test_a_record_is_followed() -> None:
    lines = [
        {"worker": 1, "deliver": 0},
        {"worker": 0, "deliver": 0},
        {"worker": 1, "jobs": ["b", "a"], "steps": 7},
        {"worker": 1, "deliver": 1},
        {"worker": 1, "restart": "it died"},
        {"worker": 1, "jobs": [], "steps": 2},
    ]
    schedule = ReplayedSchedule(lines, 2)
    assert schedule.next(1, idle(None), None) is None
    assert schedule.next(1, idle(None), 0) == Deliver(version=0)
    schedule.add([job("a")])
    assert schedule.next(1, idle(0), 0) is None  # b is not asked for yet
    schedule.add([job("b")])
    op = schedule.next(1, idle(0), 0)
    assert keys(op) == ["b", "a"]
    assert isinstance(op, Draw)
    assert op.steps == 7
    assert schedule.next(1, idle(0, 2), 0) is None  # version 1 is not published yet
    assert schedule.next(1, idle(0, 2), 2) == Deliver(version=1)
    assert schedule.next(1, idle(1, 2), 2) == Restart()
    assert schedule.next(0, idle(None), 2) == Deliver(version=0)
    assert schedule.next(0, idle(0), 2) is None
    with pytest.raises(ValueError, match="at least 2 rollout workers, and this run has 1"):
        ReplayedSchedule(lines, 1)

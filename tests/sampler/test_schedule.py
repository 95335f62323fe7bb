"""Who draws what, when weights are taken, and that a record is followed to the letter."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlreason.sampler.jobs import Job
from rlreason.sampler.schedule import (
    RESUMED,
    Deliver,
    Draw,
    LiveSchedule,
    ReplayedSchedule,
    Restart,
    WorkerState,
    record_of,
)
from rlreason.types import SamplingParams


def job(group: str, sample: int = 0, min_version: int = 0) -> Job:
    return Job(
        key=f"{group}/{sample}",
        group_id=group,
        problem_id=group,
        sample=sample,
        prompt_ids=np.array([1], dtype=np.int32),
        params=SamplingParams(),
        min_version=min_version,
    )


def idle(version: int | None, outstanding: int = 0) -> WorkerState:
    return WorkerState(version=version, outstanding=outstanding)


def keys(op: object) -> list[str]:
    assert isinstance(op, Draw)
    return [one.key.removesuffix("/0") for one in op.jobs]


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


def test_a_group_stays_with_one_worker() -> None:
    schedule = LiveSchedule(2)
    schedule.add([job("a"), job("a", 1), job("b"), job("c"), job("a", 2)])
    assert schedule.position == 3
    assert keys(schedule.next(0, idle(0), 0)) == ["a", "a/1", "a/2", "c"]
    assert keys(schedule.next(1, idle(0), 0)) == ["b"]
    schedule.again(0, [job("a", 1), job("a", 2), job("c")])
    assert keys(schedule.next(1, idle(0), 0)) == ["a/1", "a/2", "c"]


def test_the_turn_can_be_set() -> None:
    whole, resumed = LiveSchedule(3), LiveSchedule(3)
    whole.add([job(key) for key in "abcd"])
    whole.add([job(key) for key in "efg"])
    resumed.position = 4
    resumed.add([job(key) for key in "efg"])
    first = [[key for key in keys(whole.next(place, idle(0), 0)) if key in "efg"] for place in range(3)]
    assert first == [keys(resumed.next(place, idle(0), 0)) for place in range(3)]


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
        {"worker": 1, "jobs": record_of([job("b", 1), job("b", 2), job("a"), job("b")]), "steps": 7},
        {"worker": 1, "deliver": 1},
        {"worker": 1, "restart": "it died"},
        {"worker": 1, "jobs": [], "steps": 2},
    ]
    lines = json.loads(json.dumps(lines))
    assert lines[2]["jobs"] == [["b", 1, 2], ["a", 0, 1], ["b", 0, 1]]
    schedule = ReplayedSchedule(lines, 2)
    assert schedule.next(1, idle(None), None) is None
    assert schedule.next(1, idle(None), 0) == Deliver(version=0)
    schedule.add([job("a")])
    assert schedule.next(1, idle(0), 0) is None  # b is not asked for yet
    schedule.add([job("b"), job("b", 1), job("b", 2)])
    op = schedule.next(1, idle(0), 0)
    assert keys(op) == ["b/1", "b/2", "a", "b"]
    assert isinstance(op, Draw)
    assert op.steps == 7
    assert schedule.next(1, idle(0, 2), 0) is None  # version 1 is not published yet
    assert schedule.next(1, idle(0, 2), 2) == Deliver(version=1)
    assert schedule.next(1, idle(1, 2), 2) == Restart()
    assert schedule.next(0, idle(None), 2) == Deliver(version=0)
    assert schedule.next(0, idle(0), 2) is None
    with pytest.raises(ValueError, match="at least 2 rollout workers, and this run has 1"):
        ReplayedSchedule(lines, 1)
    with pytest.raises(ValueError, match="the run was resumed in the middle of this stage"):
        ReplayedSchedule([*lines, {"worker": 0, "restart": RESUMED}], 2)


def test_what_was_meant_for_a_worker_that_is_lost_goes_to_the_others() -> None:
    schedule = LiveSchedule(3)
    schedule.add([job("a"), job("b"), job("c"), job("d"), job("e")])  # 1 was to draw b and e
    schedule.lose(1)
    schedule.add([job("f"), job("g")])  # the sixth and seventh turn: of two workers, the second and the first
    assert keys(schedule.next(0, idle(0), 0)) == ["b", "a", "d", "g"]
    assert keys(schedule.next(2, idle(0), 0)) == ["e", "c", "f"]
    schedule.lose(2)
    schedule.add([job("h"), job("i")])
    assert keys(schedule.next(0, idle(0), 0)) == ["h", "i"]


def test_a_replay_can_do_without_a_worker_that_has_nothing_left_to_do() -> None:
    schedule = ReplayedSchedule([{"worker": 0, "deliver": 0}], 2)
    schedule.lose(1)
    with pytest.raises(RuntimeError, match="rollout worker 0 is gone, and a replay needs every one"):
        schedule.lose(0)

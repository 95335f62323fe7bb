"""A worker that takes long and answers is left alone; one that does not answer, or has no process, is given up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from policies import PROBLEMS, make_policy, nudge, open_pool, publish, sample, tokens

from rlreason.data.prompts import PromptFormat
from rlreason.delivery.packing import DeliveryError, Packer
from rlreason.sampler.handles import InlineCluster, InlineHandle, RayCluster, RayOptions, WorkerDied
from rlreason.sampler.jobs import Job, Progress
from rlreason.sampler.open import inline_sampler
from rlreason.sampler.pool import Patience
from rlreason.sampler.schedule import LiveSchedule
from rlreason.sampler.worker import Receipt, RolloutWorker
from rlreason.types import SamplingParams

PARAMS = SamplingParams(samples_per_problem=2, max_tokens=12, seed=1, stream="s")


@dataclass
class SlowCall:
    """Done when it has been waited for ``turns`` times."""

    value: Any
    turns: int = 0

    def result(self) -> Any:
        assert self.turns <= 0, "it was not waited for"
        return self.value.result()


@dataclass
class Fate(InlineCluster):
    """Calls to the ``started``-th worker, from 0, of ``method`` take ``turns`` turns; answering or not."""

    method: str = ""
    turns: int = 0
    silent: bool = False
    dies: bool = False
    hit: Sequence[int] = (0,)
    #: Workers that never get a process.
    nowhere: Sequence[int] = ()
    started: int = 0
    told: list[tuple[int, str]] = field(default_factory=list)

    def start(self, worker: int) -> Any:
        cluster, number = self, self.started
        self.started += 1

        class Handle(InlineHandle):
            quiet = number in cluster.nowhere

            @property
            def up(self) -> bool:
                return number not in cluster.nowhere

            def silence(self) -> float:
                return float("inf") if self.quiet else 0.0

            def call(self, method: str, *arguments: object) -> Any:
                cluster.told.append((number, method))
                if number in cluster.nowhere:
                    return SlowCall(None, 10**9)
                if number not in cluster.hit or method != cluster.method:
                    return super().call(method, *arguments)
                self.quiet = cluster.silent
                return Dead() if cluster.dies else SlowCall(super().call(method, *arguments), cluster.turns)

        return Handle(self.make())

    def wait(self, calls: Any, seconds: float) -> list[Any]:
        for call in calls:
            if isinstance(call, SlowCall):
                call.turns -= 1
        return [call for call in calls if not isinstance(call, SlowCall) or call.turns <= 0]


class Dead:
    def result(self) -> Any:
        raise WorkerDied("it died")


@pytest.mark.parametrize("method", ["advance", "deliver"])
def test_a_worker_that_takes_long_and_answers_is_left_alone(method: str) -> None:
    policy = make_policy("qwen3")
    cluster = Fate(RolloutWorker, method=method, turns=50)
    # No time at all: any clock on the call itself would have it killed at the first look.
    sampler = open_pool(policy, cluster, patience=Patience(working=1e-9, starting=1e-9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlreason.sampler.pool.STUCK", 1e15)
        groups = sample(sampler, PROBLEMS[:4], PARAMS)
    assert tokens(groups) == tokens(sample(inline_sampler(policy, PromptFormat()), PROBLEMS[:4], PARAMS))
    assert sampler.stats.read()["workers/replaced"] == 0.0
    assert cluster.started == 2


def test_a_delivery_that_never_ends_is_given_up_although_the_process_answers() -> None:
    policy = make_policy("qwen3")
    cluster = Fate(RolloutWorker, method="deliver", turns=10**9)
    sampler = open_pool(policy, cluster, patience=Patience(working=1e-9))
    sampler.pool.settle_deliveries()
    assert sampler.stats.read()["workers/replaced"] == 1.0


@pytest.mark.parametrize("method", ["advance", "deliver"])
def test_a_worker_that_does_not_answer_is_replaced(method: str) -> None:
    policy = make_policy("qwen3")
    cluster = Fate(RolloutWorker, method=method, turns=10**9, silent=True)
    sampler = open_pool(policy, cluster)
    groups = sample(sampler, PROBLEMS[:4], PARAMS)
    assert tokens(groups) == tokens(sample(inline_sampler(policy, PromptFormat()), PROBLEMS[:4], PARAMS))
    assert sampler.stats.read()["workers/replaced"] == 1.0


def test_a_place_without_a_process_is_done_without() -> None:
    """Worker 0 dies as it draws, and no process comes up for its successor."""
    policy = make_policy("qwen3")
    cluster = Fate(RolloutWorker, method="advance", dies=True, nowhere=(2,))
    sampler = open_pool(policy, cluster)
    groups = sample(sampler, PROBLEMS[:4], PARAMS)
    assert tokens(groups) == tokens(sample(inline_sampler(policy, PromptFormat()), PROBLEMS[:4], PARAMS))
    nudge(policy, 0.05, 1)
    publish(sampler, policy, 1)
    sampler.pool.settle_deliveries()
    after = sample(sampler, PROBLEMS, PARAMS)
    assert tokens(after) == tokens(sample(inline_sampler(policy, PromptFormat()), PROBLEMS, PARAMS))
    said = sampler.stats.read()
    assert (said["workers/replaced"], said["workers/lost"]) == (1.0, 1.0)
    sampler.pool.follow(sampler.pool._spec, None, Packer())  # another stage
    sampler.pool.reschedule(LiveSchedule(2, in_flight=True))
    publish(type(sampler)(sampler.pool, policy.tokenizer, PromptFormat()), policy, 0)
    sampler.pool.settle_deliveries()
    assert sampler.stats.read()["workers/lost"] == 1.0
    assert cluster.started == 3


def test_no_process_anywhere_ends_the_run_in_one_line() -> None:
    sampler = open_pool(make_policy("qwen3"), Fate(RolloutWorker, nowhere=(0, 1)))
    with pytest.raises(RuntimeError, match=r"^no rollout worker is left: in place 1 no process came up in 600 s$"):
        sampler.pool.settle_deliveries()


@pytest.mark.parametrize("method", ["sleep", "wake", "abort"])
@pytest.mark.parametrize("dies", [True, False])
def test_a_worker_that_dies_or_hangs_when_it_is_told_something_is_replaced(method: str, dies: bool) -> None:
    policy = make_policy("qwen3")
    cluster = Fate(RolloutWorker, method=method, turns=10**9, silent=True, dies=dies)
    sampler = open_pool(policy, cluster)
    sampler.pool.settle_deliveries()
    if method == "abort":
        sampler.pool._wanted.add("of another stage")
        sampler.pool.reschedule()
    else:
        sampler.pool.sleep()
        sampler.pool.wake()
    nudge(policy, 0.05, 1)
    publish(sampler, policy, 1)
    groups = sample(sampler, PROBLEMS[:4], PARAMS)
    assert tokens(groups) == tokens(sample(inline_sampler(policy, PromptFormat()), PROBLEMS[:4], PARAMS))
    assert sampler.stats.read()["workers/replaced"] == 1.0
    told = [one for one in cluster.told if one[1] in ("sleep", "wake")]
    expected = {
        "abort": [],
        "sleep": [(0, "sleep"), (1, "sleep"), (2, "sleep"), (1, "wake"), (2, "wake")],
        "wake": [(0, "sleep"), (1, "sleep"), (0, "wake"), (1, "wake")],
    }
    assert sorted(told) == sorted(expected[method])


def test_a_worker_that_hangs_while_it_explains_itself_does_not_keep_the_report() -> None:
    class Wrong(RolloutWorker):
        def deliver(self, *arguments: Any) -> Receipt:
            receipt = super().deliver(*arguments)
            answers = tuple(replace(one, logprobs=tuple(x - 1.0 for x in one.logprobs)) for one in receipt.answers)
            return replace(receipt, answers=answers)

    cluster = Fate(Wrong, method="module_outputs", turns=10**9, silent=True)
    sampler = open_pool(make_policy("qwen3"), cluster, workers=1)
    with pytest.raises(DeliveryError, match=r"could not be found out .*rollout worker 0 did not answer for 120 s"):
        sampler.pool.settle_deliveries()


class LongWorker(RolloutWorker):
    """Its first drawing takes more than twice what the test's pool waits for an answer."""

    slow = True

    def advance(self, jobs: Sequence[Job], seconds: float, steps: int | None = None) -> Progress:
        if self.slow:
            self.slow = False
            time.sleep(12)
        return super().advance(jobs, seconds, steps)


def test_an_actor_answers_while_it_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    policy = make_policy("qwen3")
    cluster = RayCluster(RayOptions(address="local", workers=1), LongWorker)
    sampler = open_pool(policy, cluster, workers=1, patience=Patience(working=5.0))
    try:
        groups = sample(sampler, PROBLEMS[:4], PARAMS)
        assert tokens(groups) == tokens(sample(inline_sampler(policy, PromptFormat()), PROBLEMS[:4], PARAMS))
        assert sampler.stats.read()["workers/replaced"] == 0.0
    finally:
        sampler.close()

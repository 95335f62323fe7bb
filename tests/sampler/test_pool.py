"""The pool without Ray: deltas, dead workers and their successors, proofs, sleep, all in this process."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from policies import PROBLEMS, make_policy, nudge, open_pool, publish, sample, tokens

from rlreason.data.prompts import PromptFormat
from rlreason.delivery.packing import Bytes, DeliveryError, Packer
from rlreason.policy.policies import Policy
from rlreason.sampler.groups import requests_of
from rlreason.sampler.handles import InlineCluster, InlineHandle, WorkerDied
from rlreason.sampler.jobs import Drawn, Job, Progress
from rlreason.sampler.open import inline_sampler
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.schedule import LiveSchedule
from rlreason.sampler.worker import Receipt, RolloutWorker
from rlreason.types import Completion, Group, SamplingParams

PARAMS = SamplingParams(samples_per_problem=2, max_tokens=12, seed=1, stream="s")


@dataclass
class MortalCluster(InlineCluster):
    """Its workers die at the calls of ``deaths``, counted over all workers."""

    deaths: set[int] = field(default_factory=set)
    calls: int = 0

    def start(self, worker: int) -> Any:
        cluster = self

        class Mortal(InlineHandle):
            def call(self, method: str, *arguments: object) -> Any:
                cluster.calls += 1
                if cluster.calls in cluster.deaths:
                    return Dead()
                return super().call(method, *arguments)

        return Mortal(self.make())


class Dead:
    def result(self) -> Any:
        raise WorkerDied("it died")


def expected(policy: Policy) -> list[Group]:
    return sample(inline_sampler(policy, PromptFormat()), PROBLEMS, PARAMS)


@pytest.mark.parametrize("delta", [False, True])
def test_weights_arrive_whole_or_as_changes(delta: bool) -> None:
    policy = make_policy("qwen3_moe")
    sampler = open_pool(policy, InlineCluster(RolloutWorker), packer=Packer(delta=delta))
    for version in range(1, 4):
        assert tokens(sample(sampler, PROBLEMS, PARAMS)) == tokens(expected(policy))
        nudge(policy, 0.05, version)
        publish(sampler, policy, version)
    publish(sampler, policy, 4)  # a worker that missed a version takes everything
    assert tokens(sample(sampler, PROBLEMS, PARAMS)) == tokens(expected(policy))


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("deaths", [{1}, {3}, {6}, {8}, {7, 8}, {5, 8, 9}])
def test_a_dead_worker_loses_no_group(deaths: set[int], delta: bool) -> None:
    policy = make_policy("qwen3")
    cluster = MortalCluster(RolloutWorker, deaths=deaths)
    sampler = open_pool(policy, cluster, packer=Packer(delta=delta))
    sampler.pool.settle_deliveries()
    nudge(policy, 0.05, 1)
    publish(sampler, policy, 1)
    groups = sample(sampler, PROBLEMS, PARAMS)
    assert [group.problem for group in groups] == PROBLEMS
    assert tokens(groups) == tokens(expected(policy))
    assert sampler.pool.stats.read()["workers/replaced"] == len({death for death in deaths if death <= cluster.calls})
    assert sampler.pool.unfinished == 0


def test_workers_sleep_and_are_given_weights_when_they_wake() -> None:
    policy = make_policy("qwen3")
    sampler = open_pool(policy, InlineCluster(RolloutWorker))
    sample(sampler, PROBLEMS[:2], PARAMS)
    sampler.pool.sleep()
    nudge(policy, 0.05, 1)
    sampler.pool.wake()
    publish(sampler, policy, 1)
    assert tokens(sample(sampler, PROBLEMS, PARAMS)) == tokens(expected(policy))


def test_the_trainers_answers_must_be_of_what_was_published() -> None:
    policy = make_policy("qwen3")
    sampler = open_pool(policy, InlineCluster(RolloutWorker))
    weights = [(name, tensor.clone()) for name, tensor in policy.weights()]
    nudge(policy, 0.05, 1)
    sampler.publish(weights, 1, policy.expectations(sampler.probes))
    with pytest.raises(DeliveryError, match=r"are .* off the trainer's .*computes what it should .*, or the trainer"):
        sample(sampler, PROBLEMS[:1], PARAMS)
    with pytest.raises(ValueError, match="version 2 was published with 0 expectations for 4 probes"):
        sampler.publish(policy.weights(), 2)


def test_the_engines_answers_must_be_of_what_was_delivered() -> None:
    class Stale(RolloutWorker):
        """Its engine keeps one tensor."""

        def deliver(self, manifest: Any, *arguments: Any) -> Receipt:
            receipt = super().deliver(manifest, *arguments)
            if manifest.version:
                tensor = self._built._model.state_dict()["model.layers.1.mlp.up_proj.weight"]  # type: ignore[attr-defined]
                tensor.mul_(2.0)
                return replace(receipt, answers=self._built.probe(*arguments[:2]))
            return receipt

    policy = make_policy("qwen3")
    for packer in (Packer(), Packer(delta=True)):
        sampler = open_pool(policy, InlineCluster(Stale), packer=packer, workers=1)
        sampler.pool.settle_deliveries()
        nudge(policy, 0.05, 1)
        publish(sampler, policy, 1)
        with pytest.raises(
            DeliveryError, match=r"the first module whose output differs is model\.layers\.1\.mlp .*up_proj"
        ):
            sampler.pool.settle_deliveries()


def test_a_late_worker_gets_the_version_that_it_was_promised() -> None:
    """It is started anew, holding nothing, while the next version is packed and stored."""
    entered, go = threading.Event(), threading.Event()
    main = threading.current_thread()

    class Slow(InlineCluster):
        published = 0

        def store(self, buckets: Sequence[Bytes]) -> Sequence[object]:
            if threading.current_thread() is main:
                Slow.published += 1
                if Slow.published == 3:  # of version 2
                    entered.set()
                    assert go.wait(60)
            return super().store(buckets)

    policy = make_policy("qwen3")
    sampler = open_pool(policy, Slow(RolloutWorker), packer=Packer(delta=True), workers=1)
    pool = sampler.pool
    pool.reschedule(LiveSchedule(1, in_flight=True))
    pool.settle_deliveries()
    nudge(policy, 0.05, 1)
    publish(sampler, policy, 1)
    pool._replace(0, pool._workers[0], "for the test")
    held: list[object] = []

    def pump() -> None:
        entered.wait(60)
        try:
            while pool._workers[0].version != 1:
                pool.turn(0.1)
            held.append(pool._workers[0].version)
        except BaseException as error:
            held.append(error)
        go.set()

    thread = threading.Thread(target=pump)
    thread.start()
    nudge(policy, 0.05, 2)
    publish(sampler, policy, 2)
    thread.join()
    assert held == [1]
    assert pool.stats.read()["delivery/canary"] < 5e-5
    assert tokens(sample(sampler, PROBLEMS, PARAMS)) == tokens(expected(policy))


@pytest.mark.parametrize("wrong", ["version", "checksums", "answers"])
def test_a_delivery_that_is_overtaken_is_proved(wrong: str) -> None:
    """A newer version is published before the worker has said what it makes of the last one."""

    class Wrong(RolloutWorker):
        def deliver(self, *arguments: Any) -> Receipt:
            receipt = super().deliver(*arguments)
            if wrong == "version":
                return replace(receipt, version=99)
            if wrong == "checksums":
                return replace(receipt, checksums={})
            answers = tuple(replace(one, logprobs=tuple(x - 1.0 for x in one.logprobs)) for one in receipt.answers)
            return replace(receipt, answers=answers)

    policy = make_policy("qwen3")
    sampler = open_pool(policy, InlineCluster(Wrong), workers=1)
    pool = sampler.pool
    pool._collect(0.0)  # the engine is built
    pool._start(0, pool._workers[0])  # version 0 is on its way
    nudge(policy, 0.05, 1)
    publish(sampler, policy, 1)
    with pytest.raises(DeliveryError, match="delivery of version 0 to rollout worker 0"):
        pool._collect(0.1)


def test_a_dead_workers_finished_completions_are_not_drawn_again() -> None:
    handed: list[list[str]] = []

    class Half(RolloutWorker):
        """Draws every other job of its first call and dies at its second."""

        first = True

        def advance(self, jobs: Sequence[Job], seconds: float, steps: int | None = None) -> Progress:
            handed.append([job.key for job in jobs])
            if not Half.first:
                return super().advance(jobs, seconds, steps)
            Half.first = False
            return super().advance(jobs[::2], seconds, steps)

    policy = make_policy("qwen3")
    # Calls: two builds, two deliveries, then draws: the fifth is the first worker's half, the seventh its second draw.
    sampler = open_pool(policy, MortalCluster(Half, deaths={7}))
    groups = sample(sampler, PROBLEMS, PARAMS)
    assert tokens(groups) == tokens(expected(policy))
    again = [key for keys in handed[1:] for key in keys if key in handed[0]]
    assert sorted(again) == sorted(handed[0][1::2])
    assert sampler.stats.read()["completions/duplicate"] == 0.0


def test_a_group_shares_its_prompt() -> None:
    policy = make_policy("qwen3")
    group = sample(open_pool(policy, InlineCluster(RolloutWorker)), PROBLEMS[:1], PARAMS)[0]
    assert group.completions_G[0].prompt_ids is group.completions_G[1].prompt_ids
    assert group.completions_G[0].prompt_ids.dtype == np.int32


def test_what_is_under_way_is_given_up_for_another_model() -> None:
    policy = make_policy("qwen3")
    sampler = open_pool(policy, InlineCluster(RolloutWorker))
    sampler.ask([request for requests in requests_of(PROBLEMS, PARAMS) for request in requests])
    sampler.pool.follow(sampler.pool._spec, None, Packer())
    assert sampler.unfinished == 0
    other = make_policy("qwen3", seed=1)
    again = PoolSampler(sampler.pool, policy.tokenizer, PromptFormat())
    publish(again, other, 0)
    assert tokens(sample(again, PROBLEMS, PARAMS)) == tokens(expected(other))


def test_a_problem_twice_in_a_step_is_two_groups() -> None:
    policy = make_policy("qwen3")
    sampler = open_pool(policy, InlineCluster(RolloutWorker), workers=1)
    groups = sample(sampler, [PROBLEMS[0], PROBLEMS[0]], PARAMS)
    assert [group.problem for group in groups] == [PROBLEMS[0], PROBLEMS[0]]
    assert groups[0].group_id != groups[1].group_id
    assert tokens(groups[:1]) != tokens(groups[1:])


def test_progress_travels_whole_but_for_prompts() -> None:
    full = Completion(
        prompt_ids=(1, 2),
        token_ids=(3, 4, 5),
        sampler_logprobs=(-0.5, np.nan, -np.inf),
        text="",
        finish_reason="length",
        loss_mask=(True, False, True),
        policy_versions=(6, 6, 7),
        teacher_logprobs=(-1.0, -2.0, -3.0),
        routed_experts=np.arange(12).reshape(3, 2, 2),
    )
    bare = Completion(prompt_ids=(1,), token_ids=(9,), sampler_logprobs=None, text="", finish_reason="stop")
    empty = Completion(prompt_ids=(1,), token_ids=(), sampler_logprobs=(), text="", finish_reason="length")
    sent = Progress(drawn=tuple(Drawn(key=str(i), completion=c) for i, c in enumerate((full, bare, empty))), steps=4)
    came = pickle.loads(pickle.dumps(sent))
    assert (came.steps, [one.key for one in came.drawn]) == (4, ["0", "1", "2"])
    for one, other in zip(came.drawn, sent.drawn, strict=True):
        assert len(one.completion.prompt_ids) == 0
        for name in ("token_ids", "sampler_logprobs", "loss_mask", "policy_versions", "teacher_logprobs"):
            ours, theirs = getattr(one.completion, name), getattr(other.completion, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or np.array_equal(ours, theirs, equal_nan=ours.dtype == np.float32)
        assert one.completion.finish_reason == other.completion.finish_reason
    assert came.drawn[0].completion.routed_experts.tolist() == full.routed_experts.tolist()
    assert pickle.loads(pickle.dumps(Progress(drawn=(), steps=1))).drawn == ()

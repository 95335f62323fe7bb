"""Groups for the trainer: a stream that begins at a later step goes on as the uninterrupted one, and can be left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar

import pytest
from policies import PROBLEMS, make_policy, nudge, open_pool, publish, tokens

from rlreason.policy.policies import Policy
from rlreason.rewards.mix import RewardMix
from rlreason.sampler.handles import InlineCluster
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.schedule import LiveSchedule
from rlreason.sampler.stream import RolloutStream
from rlreason.sampler.worker import RolloutWorker
from rlreason.scorer import PoolScorer
from rlreason.types import Group, Problem, RewardResult, SamplingParams, Verdict

STEPS = 4
HELDOUT = SamplingParams(temperature=0.0, max_tokens=8, stream="heldout")


def ask(step: int) -> tuple[list[Problem], SamplingParams]:
    problems = [PROBLEMS[(step * 3 + at) % len(PROBLEMS)] for at in range(3)]
    return problems, SamplingParams(samples_per_problem=2, max_tokens=8, seed=1, stream=f"grpo/{step}")


@pytest.fixture(scope="module")
def scorer() -> Iterator[PoolScorer]:
    with PoolScorer(RewardMix.from_table({"accuracy": 1.0}), workers=1) as scorer:
        yield scorer


class Noting(RolloutWorker):
    """Notes what it draws: (place of the worker in its cluster, keys)."""

    made: ClassVar[list[RolloutWorker]] = []
    handed: ClassVar[list[tuple[int, tuple[str, ...]]]] = []

    def __init__(self) -> None:
        super().__init__()
        Noting.made.append(self)

    def advance(self, jobs, seconds, steps=None):  # type: ignore[no-untyped-def]
        Noting.handed.append((Noting.made.index(self), tuple(job.key for job in jobs)))
        return super().advance(jobs, seconds, steps)


def open_at(policy: Policy, version: int, staleness: int) -> PoolSampler:
    Noting.made.clear()
    Noting.handed.clear()
    sampler = open_pool(policy, InlineCluster(Noting))
    sampler.pool.follow(sampler.pool._spec, sampler.pool._outbox.canary, sampler.pool._outbox._packer)
    publish(sampler, policy, version)
    sampler.pool.reschedule(LiveSchedule(2, in_flight=staleness > 0))
    return sampler


def run(policy: Policy, scorer: PoolScorer, first: int, staleness: int) -> tuple[list[list[Group]], list[object]]:
    """Steps ``first`` and later, with an evaluation after each."""
    sampler = open_at(policy, first, staleness)
    taken = []
    with RolloutStream(sampler, scorer, ask, range(first, STEPS), staleness) as stream:
        for step in range(first, STEPS):
            taken.append(stream.take(step))
            nudge(policy, 0.01, step)
            stream.publish(policy.weights(), step + 1, policy.expectations(sampler.probes))
            if not staleness:
                assert [group.problem for group in stream.begin(PROBLEMS[:step], HELDOUT)()] == PROBLEMS[:step]
    assert sampler.unfinished == 0
    return taken, list(Noting.handed)


def test_a_stream_that_begins_later_goes_on_as_the_whole_one(scorer: PoolScorer) -> None:
    policy = make_policy("qwen3")
    whole, handed = run(policy, scorer, 0, 0)
    assert [tuple(group.problem for group in groups) for groups in whole] == [tuple(ask(s)[0]) for s in range(STEPS)]
    assert {r.verdict for groups in whole for group in groups for r in group.rewards_G}
    for first in range(1, STEPS):
        resumed = make_policy("qwen3")
        for step in range(first):
            nudge(resumed, 0.01, step)
        rest, again = run(resumed, scorer, first, 0)
        assert [tokens(groups) for groups in rest] == [tokens(groups) for groups in whole[first:]]
        assert [[c.sampler_logprobs.tolist() for g in groups for c in g.completions_G] for groups in rest] == [
            [c.sampler_logprobs.tolist() for g in groups for c in g.completions_G] for groups in whole[first:]
        ]
        assert {c.policy_version_min for g in rest[0] for c in g.completions_G} == {first}
        assert again == handed[len(handed) - len(again) :]  # the same worker draws the same


def test_a_stream_ahead_may_begin_later(scorer: PoolScorer) -> None:
    policy = make_policy("qwen3")
    for step in range(2):
        nudge(policy, 0.01, step)
    taken, handed = run(policy, scorer, 2, 1)
    for step, groups in zip(range(2, STEPS), taken, strict=True):
        assert [group.problem for group in groups] == ask(step)[0]
        assert {c.policy_version_min for g in groups for c in g.completions_G} <= {max(2, step - 1), step}
    places = {key.split("/")[1] + key.split("/")[2]: place for place, keys in handed for key in keys}
    for step in range(2, STEPS):
        for at, problem in enumerate(ask(step)[0]):
            assert places[f"{step}{problem.id}"] == (step * 3 + at) % 2


class Constant:
    """Scores every completion with the same number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def submit(self, group: Group, keys: object = ()) -> Future[Group]:
        scored: Future[Group] = Future()
        rewards = [RewardResult(score=self.value, verdict=Verdict.WRONG, verified=Verdict.WRONG)] * 2
        scored.set_result(replace(group, rewards_G=tuple(rewards[: len(group.completions_G)])))
        return scored


def test_an_evaluation_is_drawn_while_the_next_step_is_taken_and_verified_alone() -> None:
    """With staleness the next step is there before anyone waits for the evaluation, which the newest weights draw."""
    policy = make_policy("qwen3")
    sampler = open_at(policy, 0, 1)
    reward, verifier = Constant(0.25), Constant(1.0)
    with RolloutStream(sampler, reward, ask, range(STEPS), 1, verifier=verifier) as stream:  # type: ignore[arg-type]
        stream.take(0)
        nudge(policy, 0.01, 0)
        stream.publish(policy.weights(), 1, policy.expectations(sampler.probes))
        evaluation = stream.begin(PROBLEMS[:4], HELDOUT)
        step = stream.take(1)
        seconds = stream.seconds
        heldout = evaluation()
        assert stream.seconds == seconds  # those of the step, whatever the evaluation took
    assert {version for g in heldout for c in g.completions_G for version in c.policy_versions} == {1}
    assert {result.score for group in heldout for result in group.rewards_G} == {1.0}
    assert {result.score for group in step for result in group.rewards_G} == {0.25}
    assert [group.problem for group in heldout] == PROBLEMS[:4]
    sampler.close()


def test_groups_that_a_step_draws_on_top_are_scored_by_its_reward() -> None:
    """Dynamic sampling's further rounds are trained on, so that the verifier alone does not score them."""
    policy = make_policy("qwen3")
    sampler = open_at(policy, 0, 0)
    reward, verifier = Constant(0.25), Constant(1.0)
    with RolloutStream(sampler, reward, ask, range(STEPS), 0, verifier=verifier) as stream:  # type: ignore[arg-type]
        groups = stream.take(0, lambda drawn: ask(1) if len(drawn) == 3 else None)
    assert len(groups) == 6
    assert {result.score for group in groups for result in group.rewards_G} == {0.25}
    sampler.close()


def test_a_stream_may_be_left_while_workers_draw(scorer: PoolScorer) -> None:
    policy = make_policy("qwen3")
    sampler = open_pool(policy, InlineCluster(RolloutWorker), workers=1)
    sampler.pool.follow(replace(sampler.pool._spec, stop_ids=()), None, sampler.pool._outbox._packer)
    publish(sampler, policy, 0)
    sampler.pool.reschedule(LiveSchedule(1, in_flight=True))

    def endless(step: int) -> tuple[list[Problem], SamplingParams]:
        return PROBLEMS[:2], SamplingParams(max_tokens=1_000_000, stream=f"grpo/{step}")

    with suppress(KeyboardInterrupt), RolloutStream(sampler, scorer, endless, range(3), 1):
        raise KeyboardInterrupt
    assert not [thread for thread in threading.enumerate() if thread.name == "rollouts"]
    sampler.close()

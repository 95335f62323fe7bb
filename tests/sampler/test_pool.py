"""The pool without Ray: deltas, dead workers and their successors, proofs, sleep, all in this process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from policies import PROBLEMS, make_policy, nudge

from rlreason.data.prompts import PromptFormat
from rlreason.policy.policies import Policy
from rlreason.sampler.canary import Canary
from rlreason.sampler.delivery import DeliveryError, Packer
from rlreason.sampler.handles import InlineCluster, InlineHandle, WorkerDied
from rlreason.sampler.open import engine_spec, inline_sampler
from rlreason.sampler.pool import RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.worker import RolloutWorker
from rlreason.types import Group, SamplingParams

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


def pool_of(policy: Policy, cluster: InlineCluster, *, delta: bool = False, workers: int = 2) -> PoolSampler:
    spec = engine_spec("transformers", policy.model, policy.tokenizer, max_rows=64, max_length=None)
    pool = RolloutPool(cluster, spec, workers, canary=Canary(policy.model, 256), packer=Packer(delta=delta))
    sampler = PoolSampler(pool, policy.tokenizer, PromptFormat())
    sampler.publish(policy.model.state_dict(), 0)
    return sampler


def expected(policy: Policy) -> list[Group]:
    return inline_sampler(policy.copy_model(), policy.tokenizer, PromptFormat()).sample(PROBLEMS, PARAMS)


def tokens(groups: list[Group]) -> list[tuple[int, ...]]:
    return [completion.token_ids for group in groups for completion in group.completions_G]


@pytest.mark.parametrize("delta", [False, True])
def test_weights_arrive_whole_or_as_changes(delta: bool) -> None:
    policy = make_policy("qwen3_moe")
    sampler = pool_of(policy, InlineCluster(RolloutWorker), delta=delta)
    for version in range(1, 4):
        assert tokens(sampler.sample(PROBLEMS, PARAMS)) == tokens(expected(policy))
        nudge(policy, 0.05, version)
        sampler.publish(policy.model.state_dict(), version)
    sampler.publish(policy.model.state_dict(), 4)  # a worker that missed a version takes everything
    assert tokens(sampler.sample(PROBLEMS, PARAMS)) == tokens(expected(policy))


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("deaths", [{1}, {3}, {6}, {8}, {7, 8}, {5, 8, 9}])
def test_a_dead_worker_loses_no_group(deaths: set[int], delta: bool) -> None:
    policy = make_policy("qwen3")
    cluster = MortalCluster(RolloutWorker, deaths=deaths)
    sampler = pool_of(policy, cluster, delta=delta)
    sampler.pool.settle_deliveries()
    nudge(policy, 0.05, 1)
    sampler.publish(policy.model.state_dict(), 1)
    groups = sampler.sample(PROBLEMS, PARAMS)
    assert [group.problem for group in groups] == PROBLEMS
    assert tokens(groups) == tokens(expected(policy))
    assert sampler.pool.stats.read()["workers/replaced"] == len({death for death in deaths if death <= cluster.calls})
    assert sampler.pool.unfinished == 0


def test_workers_sleep_and_are_given_weights_when_they_wake() -> None:
    policy = make_policy("qwen3")
    sampler = pool_of(policy, InlineCluster(RolloutWorker))
    sampler.sample(PROBLEMS[:2], PARAMS)
    sampler.pool.sleep()
    nudge(policy, 0.05, 1)
    sampler.pool.wake()
    sampler.publish(policy.model.state_dict(), 1)
    assert tokens(sampler.sample(PROBLEMS, PARAMS)) == tokens(expected(policy))


def test_the_trainers_model_must_be_what_was_published() -> None:
    policy = make_policy("qwen3")
    sampler = pool_of(policy, InlineCluster(RolloutWorker))
    weights = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    nudge(policy, 0.05, 1)
    sampler.publish(weights, 1)  # those of before: the canary compares with the model as it is now
    with pytest.raises(DeliveryError, match=r"log-probabilities are .* off the trainer's"):
        sampler.sample(PROBLEMS[:1], PARAMS)


def test_a_problem_twice_in_a_step_is_two_groups() -> None:
    policy = make_policy("qwen3")
    sampler = pool_of(policy, InlineCluster(RolloutWorker), workers=1)
    groups = sampler.sample([PROBLEMS[0], PROBLEMS[0]], PARAMS)
    assert [group.problem for group in groups] == [PROBLEMS[0], PROBLEMS[0]]
    assert groups[0].group_id != groups[1].group_id
    assert tokens(groups[:1]) != tokens(groups[1:])

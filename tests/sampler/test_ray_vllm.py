"""Real vLLM in real Ray actors: what it samples is what the trainer computes, and a wrong delivery stops the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from policies import PROBLEMS, make_policy, nudge, open_pool, publish, sample, tokens

from rlreason.data.prompts import PromptFormat
from rlreason.delivery.packing import DeliveryError, Packer
from rlreason.policy.batch import collate, rollout_sample
from rlreason.policy.policies import Policy
from rlreason.sampler.canary import Canary
from rlreason.sampler.groups import requests_of
from rlreason.sampler.handles import RayCluster, RayOptions
from rlreason.sampler.jobs import EngineSpec, VllmOptions
from rlreason.sampler.open import engine_spec, inline_sampler
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.schedule import ReplayedSchedule
from rlreason.sampler.worker import RolloutWorker
from rlreason.trainer.forward import loss_logprobs
from rlreason.types import Group, SamplingParams

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("vllm", reason="vLLM is not installed")

TOLERANCE = 5e-5
UPDATES = 20
FORMAT = PromptFormat()


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    """One Ray for the module; its workers find faults.py."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    ray.init("local", num_cpus=4, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def spec_of(policy: Policy, extension: str | None = None) -> EngineSpec:
    vllm = VllmOptions(kv_cache_bytes=64 << 20)
    if extension is not None:
        vllm = replace(vllm, extension=f"faults.{extension}")
    return engine_spec("vllm", policy, max_rows=64, max_length=None, vllm=vllm)


def open_sampler(
    policy: Policy, workers: int, spec: EngineSpec | None = None, worker: type[RolloutWorker] = RolloutWorker
) -> PoolSampler:
    cluster = RayCluster(RayOptions(workers=workers), worker)
    return open_pool(policy, cluster, "vllm", workers, vllm=(spec or spec_of(policy)).vllm)


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 2], ids=["1 worker", "2 workers"])
def follow(request: pytest.FixtureRequest) -> Iterator[Callable[[Policy], PoolSampler]]:
    """Workers that follow one policy after the other, as they do through the stages of a run."""
    pool = open_sampler(make_policy("qwen3"), request.param).pool

    def with_policy(policy: Policy) -> PoolSampler:
        pool.follow(spec_of(policy), Canary(policy.vocabulary, 256, policy.dtype), Packer())
        sampler = PoolSampler(pool, policy.tokenizer, FORMAT)
        publish(sampler, policy, 0)
        return sampler

    yield with_policy
    pool.close()


def differences(policy: Policy, groups: list[Group], temperature: float) -> torch.Tensor:
    """|sampler − trainer| of every sampled token's log-probability."""
    rows = [rollout_sample(c) for g in groups for c in g.completions_G]
    batch = collate(rows, policy.tokenizer.pad_token_id, torch.device("cpu"))
    ours = loss_logprobs(policy.model, batch, temperature)
    return (ours - batch.sampler_logprobs_BT)[batch.loss_mask_BT.bool()].abs()


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
def test_logprobs_are_the_trainers_through_twenty_updates(follow: Callable[[Policy], PoolSampler], kind: str) -> None:
    policy = make_policy(kind)
    sampler = follow(policy)
    params = SamplingParams(samples_per_problem=4, max_tokens=24, seed=3, stream="before")
    groups = sample(sampler, PROBLEMS, params)
    assert [group.problem for group in groups] == PROBLEMS
    assert len({len(c.token_ids) for g in groups for c in g.completions_G}) > 3
    assert float(differences(policy, groups, 1.0).max()) < TOLERANCE
    assert float(differences(policy, groups, 1.001).max()) > TOLERANCE  # canary of the tolerance
    for version in range(1, UPDATES + 1):
        nudge(policy, 0.01, version)
        publish(sampler, policy, version)
        if version % 5 == 0:  # else the newest alone is taken
            sampler.pool.settle_deliveries()
    after = sample(sampler, PROBLEMS, replace(params, stream="after", temperature=0.7))
    assert float(differences(policy, after, 0.7).max()) < TOLERANCE
    assert {int(v) for g in after for c in g.completions_G for v in c.policy_versions} == {UPDATES}
    assert float(differences(make_policy(kind), after, 0.7).max()) > 0.1  # the old weights say something else
    assert sampler.pool.stats.read()["delivery/canary"] < TOLERANCE


def test_same_seed_same_tokens_and_greedy_is_the_other_engines(follow: Callable[[Policy], PoolSampler]) -> None:
    policy = make_policy("qwen3_moe", seed=1)
    params = SamplingParams(samples_per_problem=3, max_tokens=16, seed=5, stream="s")
    first = sample(follow(policy), PROBLEMS, params)
    sampler = follow(policy)
    assert sample(sampler, PROBLEMS, params) == first
    other = sample(sampler, PROBLEMS, replace(params, seed=6))
    assert tokens(other) != tokens(first)
    assert len(set(tokens(first[:1]))) > 1  # samples of a group differ
    greedy = SamplingParams(temperature=0.0, max_tokens=16, stream="greedy")
    reference = sample(inline_sampler(policy, FORMAT), PROBLEMS, greedy)
    for ours, theirs in zip(sample(sampler, PROBLEMS, greedy), reference, strict=True):
        assert tokens([ours]) == tokens([theirs])
        assert ours.completions_G[0].text == theirs.completions_G[0].text
        assert ours.completions_G[0].finish_reason == theirs.completions_G[0].finish_reason
    nothing = replace(params, temperature=1.0, top_k=1, stream="top1")
    for group in sample(sampler, PROBLEMS[:2], nothing):
        for completion in group.completions_G:  # log-probabilities are those of the distribution that was drawn from
            assert completion.sampler_logprobs.tolist() == [0.0] * len(completion.token_ids)


def test_weights_change_between_two_tokens_of_a_group() -> None:
    policy = make_policy("qwen3_moe", seed=2)
    sampler = open_sampler(policy, 1)
    pool = sampler.pool
    pool.settle_deliveries()
    old = policy.frozen_copy()
    params = SamplingParams(samples_per_problem=2, max_tokens=200, seed=1, stream="long")
    asked = requests_of(PROBLEMS, params)
    everything = [(requests[0].group_id, 0, len(requests)) for requests in asked]
    # By engine steps, not by time: 40 tokens under the old weights, whatever else this machine does.
    slices = [
        {"worker": 0, "jobs": everything, "steps": 40},
        {"worker": 0, "deliver": 1},
        {"worker": 0, "jobs": [], "steps": 1000},
    ]
    pool.reschedule(ReplayedSchedule(slices, 1))
    sampler.ask([request for requests in asked for request in requests])
    drawn = sampler.poll(0.0)  # the first slice is under way
    nudge(policy, 0.02, 1)
    publish(sampler, policy, 1)
    while sampler.unfinished:
        drawn += sampler.poll(5.0)
    sampler.close()
    both = [c for _, c in drawn if c.policy_version_min == 0 and c.policy_version_max == 1]
    assert len(both) > 3
    for completion in both:
        assert completion.policy_versions.tolist() == sorted(completion.policy_versions.tolist())
        rows = [rollout_sample(completion)]
        batch = collate(rows, policy.tokenizer.pad_token_id, torch.device("cpu"))
        said = batch.sampler_logprobs_BT[batch.loss_mask_BT.bool()]
        versions = torch.from_numpy(completion.policy_versions)
        for version, model in ((0, old), (1, policy.model)):
            computed = loss_logprobs(model, batch, 1.0)[batch.loss_mask_BT.bool()]
            assert float((computed - said)[versions == version].abs().max()) < TOLERANCE
            assert float((computed - said)[versions != version].abs().max()) > TOLERANCE


#: Fault, kind of model, what the error says.
CAUGHT = [
    ("PackedExperts", "qwen3_moe", r"log-probabilities are .* off .*first module .* model\.layers\.0\.mlp .*experts"),
    ("PackedHead", "qwen3", r"log-probabilities are .* off .*what differs is the final norm, the head"),
    ("StaleTensor", "qwen3_moe", r"off the trainer's .*model\.layers\.1\.self_attn .*o_proj\.weight"),
    ("DroppedTensor", "qwen3_moe", r"no tensor was delivered for model\.norm\.weight, and the engine kept"),
    ("ForgetfulWorker", "qwen3_moe", r"keys and values that were cached under older weights"),
    ("BackdatedWorker", "qwen3_moe", r"it says that it holds version 0"),
    ("BitFlippingWorker", "qwen3_moe", r"1 of \d+ tensors are not what was sent: model\.layers\.0\.mlp\.gate\.weight"),
]


#: One of each kind: what was packed, what the worker kept, what arrived. Each fault takes an engine of its own.
AT_ONCE = {"PackedExperts", "ForgetfulWorker", "BitFlippingWorker"}


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [pytest.param(*row, id=row[0], marks=() if row[0] in AT_ONCE else pytest.mark.slow) for row in CAUGHT],
)
def test_the_canary_catches(fault: str, kind: str, message: str) -> None:
    import faults

    policy = make_policy(kind)
    as_worker = issubclass(getattr(faults, fault), RolloutWorker)
    sampler = open_sampler(
        policy,
        1,
        spec_of(policy, None if as_worker else fault),
        getattr(faults, fault) if as_worker else RolloutWorker,
    )

    def deliver_three() -> None:
        for version in range(1, 4):
            sampler.pool.settle_deliveries()
            nudge(policy, 0.02, version)
            publish(sampler, policy, version)

    try:
        with pytest.raises(DeliveryError, match=message):
            deliver_three()
    finally:
        sampler.pool.close()

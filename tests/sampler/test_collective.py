"""Weights by a broadcast of their own gloo group into real vLLM and transformers engines in Ray actors: they arrive as
they were sent, faults are caught, and a worker that dies or hangs in the middle costs its group alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from faults import STOP_FILE
from policies import PROBLEMS, copy_of, make_policy, nudge, open_pool, publish, sample

from rlreason.data.prompts import PromptFormat
from rlreason.delivery.group import BrokenGroup, GroupOptions, Sending, joined
from rlreason.delivery.packing import DeliveryError, Packer
from rlreason.delivery.parcel import LocalParcel
from rlreason.policy.batch import collate, rollout_sample
from rlreason.policy.policies import Policy
from rlreason.sampler.canary import Canary
from rlreason.sampler.handles import RayCluster, RayOptions
from rlreason.sampler.jobs import VllmOptions
from rlreason.sampler.open import engine_spec, inline_sampler
from rlreason.sampler.pool import Patience
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.worker import RolloutWorker
from rlreason.trainer.forward import loss_logprobs
from rlreason.types import Group, SamplingParams

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

TOLERANCE = 5e-5
GROUP = GroupOptions(seconds=60.0)
PARAMS = SamplingParams(samples_per_problem=2, max_tokens=12, seed=3, stream="s")
VLLM = VllmOptions(kv_cache_bytes=64 << 20)


@pytest.fixture(scope="module", autouse=True)
def mark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One Ray for the module, whose workers find faults.py; the file that ``SelfSignalling`` workers look at."""
    mark = tmp_path_factory.mktemp("mark") / "signal"
    os.environ[STOP_FILE] = str(mark)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *([before] if before else [])])
    ray.init("local", num_cpus=4, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)
    yield mark
    ray.shutdown()
    os.environ.pop(STOP_FILE)
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def cluster(workers: int, worker: type[RolloutWorker] = RolloutWorker) -> RayCluster:
    return RayCluster(RayOptions(workers=workers, group=GROUP), worker)


def off(policy: Policy, groups: list[Group]) -> float:
    """Largest |sampler − trainer| of a sampled token's log-probability."""
    rows = [rollout_sample(c) for g in groups for c in g.completions_G]
    batch = collate(rows, policy.tokenizer.pad_token_id, torch.device("cpu"))
    ours = loss_logprobs(policy.model, batch, 1.0)
    return float((ours - batch.sampler_logprobs_BT)[batch.loss_mask_BT.bool()].abs().max())


def listening() -> set[int]:
    """Ports on which this process listens."""
    return {one.laddr.port for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize(("workers", "kind"), [pytest.param(1, "qwen3", marks=pytest.mark.slow), (2, "qwen3_moe")])
def test_vllm_says_what_the_trainer_says_after_a_broadcast(workers: int, kind: str) -> None:
    """Whole and as changes, in several buckets; a tied dense model, and one of experts to two workers at once."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    policy = make_policy(kind)
    ports, shared = listening(), set(Path("/dev/shm").iterdir())
    pool = open_pool(policy, cluster(workers), "vllm", workers, vllm=VLLM).pool
    spec = engine_spec("vllm", policy, max_rows=64, max_length=None, vllm=VLLM)
    try:
        for delta in (False, True):
            pool.follow(spec, Canary(policy.vocabulary, 256, policy.dtype), Packer(delta=delta, bucket_bytes=1 << 15))
            sampler = PoolSampler(pool, policy.tokenizer, PromptFormat())
            publish(sampler, policy, 0)
            for version in (1, 2):
                pool.settle_deliveries()
                before = copy_of(policy)
                nudge(policy, 0.01, version)
                publish(sampler, policy, version)
            groups = sample(sampler, PROBLEMS, PARAMS)
            assert off(policy, groups) < TOLERANCE < off(before, groups)
            assert {int(v) for g in groups for c in g.completions_G for v in c.policy_versions} == {2}
            stats = pool.stats.read()
            assert stats["delivery/canary"] < TOLERANCE
            assert stats["workers/replaced"] == 0
    finally:
        pool.close()
    assert listening() <= ports
    assert set(Path("/dev/shm").iterdir()) <= shared


@pytest.mark.parametrize(
    ("fault", "message"),
    [("BackdatedReceiver", "it says that it holds version 0"), ("BitFlippingReceiver", r"1 of \d+ tensors are not")],
)
def test_faults_are_caught(fault: str, message: str) -> None:
    import faults

    policy = make_policy("qwen3_moe")
    sampler = open_pool(policy, cluster(1, getattr(faults, fault)), "transformers", 1)
    try:
        nudge(policy, 0.02, 1)
        publish(sampler, policy, 1)
        with pytest.raises(DeliveryError, match=message):
            sampler.pool.settle_deliveries()
    finally:
        sampler.pool.close()


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("vllm", signal.SIGKILL),
        pytest.param("vllm", signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param("transformers", signal.SIGKILL, marks=pytest.mark.slow),
        ("transformers", signal.SIGSTOP),
    ],
    ids=["vllm killed", "vllm stopped", "killed", "stopped"],
)
def test_a_worker_that_goes_in_the_middle_of_a_broadcast_costs_its_group_alone(
    kind: Any, how: signal.Signals, mark: Path
) -> None:
    """One of two signals itself behind the first bucket; the other's engine is then half loaded, and takes all anew."""
    import faults

    if kind == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    policy = make_policy("qwen3")
    packer, patience = Packer(delta=True, bucket_bytes=1 << 14), Patience(working=4.0)
    options = {"vllm": VLLM} if kind == "vllm" else {}
    sampler = open_pool(policy, cluster(2, faults.SelfSignalling), kind, 2, packer=packer, patience=patience, **options)
    pool = sampler.pool
    try:
        pool.settle_deliveries()
        sample(sampler, PROBLEMS[:4], PARAMS)
        nudge(policy, 0.02, 1)
        mark.write_text(str(int(how)))
        publish(sampler, policy, 1)
        groups = sample(sampler, PROBLEMS, PARAMS)
        assert not mark.exists()
        assert off(policy, groups) < TOLERANCE
        stats = pool.stats.read()
        assert stats["workers/replaced"] == 1
        assert stats["delivery/canary"] < TOLERANCE
        nudge(policy, 0.02, 2)  # the two of them are one group again
        publish(sampler, policy, 2)
        again = sample(sampler, PROBLEMS, PARAMS)
        assert off(policy, again) < TOLERANCE
        if kind == "transformers":
            wanted = sample(inline_sampler(policy, PromptFormat()), PROBLEMS, PARAMS)
            assert [[c.text for c in g.completions_G] for g in again] == [
                [c.text for c in g.completions_G] for g in wanted
            ]
    finally:
        pool.close()


@pytest.mark.parametrize("late", [False, True], ids=["who waits", "who comes when it has ended"])
def test_a_group_whose_member_never_comes_is_ended_for_the_others(late: bool) -> None:
    """Whether they are in it, or reach for a sender that has left."""
    packed = Packer().pack(make_policy("qwen3").weights(), 0)
    sending, found = Sending(packed.buckets, 2, GROUP), []

    def member() -> None:
        try:
            with joined(sending.meeting, 1) as group:
                list(group.buckets(packed.manifest.sizes))
        except BrokenGroup as error:
            found.append(error)

    thread = threading.Thread(target=member)
    began = time.monotonic()
    if not late:
        thread.start()
        time.sleep(0.5)
    sending.end()
    if late:
        sending.join()
        thread.start()
    thread.join(GROUP.seconds)
    assert len(found) == 1
    assert time.monotonic() - began < GROUP.seconds / 2
    assert list(packed.manifest.sizes) == [bucket.nbytes for bucket in packed.buckets]


def test_a_sender_without_a_gpu_sends_between_cpus_and_says_why_it_could_not() -> None:
    """As where ranks have the GPUs, and the process of the run sends a checkpoint that is only drawn from."""
    packed = Packer().pack(make_policy("qwen3").weights(), 0)
    options = GroupOptions(backend="nccl", seconds=GROUP.seconds)
    departure = LocalParcel(packed, lambda: packed).send(1, options)
    with joined(departure.meeting, 1) as group:
        found = list(group.buckets(packed.manifest.sizes))
    assert all((one == other).all() for one, other in zip(found, packed.buckets, strict=True))
    assert departure.failure == ""
    # Canary: as it was, NCCL where there is no GPU. The sender has the reason, which its members can't have.
    sending = Sending(packed.buckets, 1, options)
    with pytest.raises(BrokenGroup), joined(sending.meeting, 1):
        pass
    sending.join()
    assert "CUDA" in sending.failure or "NVIDIA" in sending.failure

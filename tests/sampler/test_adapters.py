"""LoRA on its way: the adapter alone travels, engines say what the trainer says, the base stays, faults are caught."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import STOP_FILE
from policies import PROBLEMS, make_policy, sample

pytest.importorskip("peft", reason="peft is not installed")

from rlreason.config import OptimizerConfig
from rlreason.data.prompts import PromptFormat
from rlreason.delivery.adapter import KeptBase, delta
from rlreason.delivery.group import GroupOptions
from rlreason.delivery.packing import DeliveryError, Factor, Packer, Receiver, with_base
from rlreason.policy.batch import collate, rollout_sample
from rlreason.policy.lora import LoraOptions, is_adapter
from rlreason.sampler.canary import Canary
from rlreason.sampler.handles import RayCluster, RayOptions
from rlreason.sampler.jobs import EngineKind, VllmOptions
from rlreason.sampler.open import engine_spec
from rlreason.sampler.pool import Patience, RolloutPool
from rlreason.sampler.pool_sampler import PoolSampler
from rlreason.sampler.worker import RolloutWorker
from rlreason.trainer.forward import loss_logprobs
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.types import Group, SamplingParams

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

TOLERANCE = 5e-5
PARAMS = SamplingParams(samples_per_problem=2, max_tokens=12, seed=3, stream="s")
VLLM = VllmOptions(kv_cache_bytes=64 << 20)


def adapted(kind: str) -> LocalTrainer:
    """A policy with an adapter on all its linear layers, and its experts where it has some."""
    lora = LoraOptions(rank=2, alpha=4.0, experts=kind == "qwen3_moe")
    return LocalTrainer(make_policy(kind), TrainerOptions(optimizer=OptimizerConfig(), total_steps=9, lora=lora))


@torch.no_grad()
def step(trainer: LocalTrainer, seed: int) -> None:
    """Another adapter."""
    generator = torch.Generator().manual_seed(seed)
    for name, one in trainer.model.named_parameters():
        if is_adapter(name):
            one.copy_(0.2 * torch.randn(one.shape, generator=generator))


def off(trainer: LocalTrainer, groups: Sequence[Group]) -> float:
    """Largest |sampler − trainer| of a sampled token's log-probability."""
    rows = [rollout_sample(one) for group in groups for one in group.completions_G]
    batch = collate(rows, trainer.tokenizer.pad_token_id, torch.device("cpu"))
    ours = loss_logprobs(trainer.model, batch, 1.0)
    return float((ours - batch.sampler_logprobs_BT)[batch.loss_mask_BT.bool()].abs().max())


def publish(sampler: PoolSampler, trainer: LocalTrainer, version: int) -> None:
    sampler.publish(trainer.weights(), version, trainer.expectations(sampler.probes))
    sampler.pool.settle_deliveries()


def sent(pool: RolloutPool) -> tuple[int, bool]:
    """(bytes of the newest delivery, whether it was the adapter alone)."""
    delivery = pool._outbox._deliveries[pool.newest or 0]
    return sum(delivery.parcel.manifest.sizes), delivery.parcel.manifest.on_base and delivery.whole is None


def test_hand_derived() -> None:
    """B A of one layer, and of two experts of rank 1 in both layouts; added to what is kept, not to the last sum."""
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
    layer = Factor(weight="w", scaling=0.5)
    assert delta(layer, a, b).tolist() == [[1.5, 3.0], [2.0, 4.0]]
    a, b = torch.tensor([[1.0, 2.0], [5.0, 0.0]]), torch.tensor([[3.0, 1.0]])  # [E·R, I], [O, R·E]: O = 1
    experts = Factor(weight="w", scaling=1.0, experts=2)
    assert delta(experts, a, b).tolist() == [[[3.0, 6.0]], [[5.0, 0.0]]]
    turned = Factor(weight="w", scaling=1.0, experts=2, input_first=True)
    assert delta(turned, a, b).tolist() == [[[3.0], [6.0]], [[5.0], [0.0]]]
    packer, kept = Packer(bucket_bytes=8), KeptBase()
    base = packer.pack_base({"v": torch.zeros(3), "w": torch.ones(2, 2)}.items())

    def arrived(scale: float, *, alone: bool) -> dict[str, torch.Tensor]:
        pair = (torch.tensor([[1.0, 2.0]]) * scale, torch.tensor([[3.0], [4.0]]))
        packed = packer.pack_adapter(enumerate_names(pair), (layer,), 7)
        packed = packed if alone else with_base(packed, base)
        assert packed.manifest.whole is not alone
        return dict(kept.merged(packed.manifest, Receiver().stream(packed.manifest, packed.buckets, keep=False)))

    with pytest.raises(DeliveryError, match="version 7 is an adapter alone, and the worker holds no base"):
        arrived(1.0, alone=True)
    for scale, alone in ((1.0, False), (10.0, True), (1.0, True)):
        found = arrived(scale, alone=alone)
        assert found["w"].tolist() == (1.0 + torch.tensor([[1.5, 3.0], [2.0, 4.0]]) * scale).tolist()
        assert found["v"].tolist() == [0.0, 0.0, 0.0]
    kept.drop()
    with pytest.raises(DeliveryError, match="no base"):
        arrived(1.0, alone=True)


def enumerate_names(pair: Sequence[torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(str(at), one) for at, one in enumerate(pair)]


def test_a_base_that_broke_off_is_none() -> None:
    layer = Factor(weight="w", scaling=1.0)
    packer, kept = Packer(bucket_bytes=8), KeptBase()
    adapter = packer.pack_adapter(enumerate_names((torch.ones(1, 2), torch.ones(2, 1))), (layer,), 0)
    whole = with_base(adapter, packer.pack_base({"w": torch.ones(2, 2), "v": torch.zeros(3)}.items()))
    stream = Receiver().stream(whole.manifest, whole.buckets, keep=False)
    merged = kept.merged(whole.manifest, stream)
    next(merged)
    merged.close()
    with pytest.raises(DeliveryError, match="no base"):
        list(kept.merged(adapter.manifest, Receiver().stream(adapter.manifest, adapter.buckets, keep=False)))


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One Ray for the module, whose workers find faults.py; the file that ``SelfSignalling`` workers look at."""
    mark = tmp_path_factory.mktemp("mark") / "signal"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(STOP_FILE, str(mark))
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ray.init("local", num_cpus=4, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)
        yield mark
        ray.shutdown()


def opened(
    trainer: LocalTrainer, kind: EngineKind, transport: str, packer: Packer, worker: type[RolloutWorker] = RolloutWorker
) -> PoolSampler:
    """Two workers, or one of vLLM's, that hold version 0."""
    count = 1 if kind == "vllm" else 2
    group = GroupOptions(seconds=60.0) if transport == "collective" else None
    spec = engine_spec(kind, trainer, max_rows=64, max_length=None, vllm=VLLM)
    canary = Canary(trainer.vocabulary, 256, trainer.dtype)
    cluster = RayCluster(RayOptions(workers=count, group=group), worker)
    pool = RolloutPool(cluster, spec, count, canary=canary, packer=packer, patience=Patience(working=4.0))
    sampler = PoolSampler(pool, trainer.tokenizer, PromptFormat())
    publish(sampler, trainer, 0)
    return sampler


@pytest.mark.parametrize(
    ("engine", "transport"),
    [
        pytest.param("transformers", "host", marks=pytest.mark.slow),
        pytest.param("transformers", "collective", marks=pytest.mark.slow),
        ("vllm", "collective"),
        pytest.param("vllm", "host", marks=pytest.mark.slow),
    ],
)
def test_the_engine_says_what_the_trainer_says(mark: Path, engine: EngineKind, transport: str) -> None:
    """Dense with a tied head, and experts: adapter after adapter, merged as before, and for a worker that is new."""
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    trainer = adapted("qwen3")
    sampler = opened(trainer, engine, transport, Packer(adapter=True, bucket_bytes=1 << 14))
    pool = sampler.pool
    try:
        for kind, adapter in (("qwen3", True), ("qwen3_moe", True), ("qwen3_moe", False)):
            trainer = adapted(kind)
            base = {name: one.clone() for name, one in trainer.model.state_dict().items() if not is_adapter(name)}
            spec = engine_spec(engine, trainer, max_rows=64, max_length=None, vllm=VLLM)
            pool.follow(spec, Canary(trainer.vocabulary, 256, trainer.dtype), Packer(adapter=adapter))
            sampler = PoolSampler(pool, trainer.tokenizer, PromptFormat())
            publish(sampler, trainer, 0)
            for version in (1, 2):
                step(trainer, version)
                publish(sampler, trainer, version)
            groups = sample(sampler, PROBLEMS[:8], PARAMS)
            everything = sum(one.nbytes for _, one in trainer.weights())
            bytes_sent, alone = sent(pool)
            assert alone is adapter
            assert bytes_sent < everything / 4 if adapter else bytes_sent >= everything * 0.8  # the head may be tied
            assert off(trainer, groups) < TOLERANCE
            step(trainer, 1)
            assert off(trainer, groups) > TOLERANCE  # canary of the tolerance
            publish(sampler, trainer, 3)  # nothing of the second is left
            if kind == "qwen3_moe" and adapter:  # a new worker takes the base, too
                pool._replace(0, pool._workers[0], "for the test")
                pool.settle_deliveries()
            assert off(trainer, sample(sampler, PROBLEMS[:8], PARAMS)) < TOLERANCE
            assert pool.stats.read()["delivery/canary"] < TOLERANCE
            assert all(torch.equal(trainer.model.state_dict()[name], one) for name, one in base.items())
    finally:
        sampler.close()


@pytest.mark.parametrize(
    ("engine", "transport"),
    [("vllm", "host"), pytest.param("transformers", "collective", marks=pytest.mark.slow)],
)
def test_an_adapter_that_was_not_delivered_is_caught(mark: Path, engine: EngineKind, transport: str) -> None:
    import faults

    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    trainer = adapted("qwen3_moe")
    sampler = opened(trainer, engine, transport, Packer(adapter=True), faults.StaleAdapter)
    try:
        step(trainer, 1)
        with pytest.raises(DeliveryError, match=r"log-probabilities are .* off .*first module .* model\.layers\.0\."):
            publish(sampler, trainer, 1)
    finally:
        sampler.close()


def test_a_worker_that_dies_in_the_middle_of_an_adapter_costs_its_group_alone(mark: Path) -> None:
    import faults

    trainer = adapted("qwen3")
    packer = Packer(adapter=True, bucket_bytes=1 << 10)
    sampler = opened(trainer, "transformers", "collective", packer, faults.SelfSignalling)
    try:
        step(trainer, 1)
        mark.write_text(str(int(signal.SIGKILL)))
        publish(sampler, trainer, 1)
        assert not mark.exists()
        assert off(trainer, sample(sampler, PROBLEMS[:8], PARAMS)) < TOLERANCE
        assert sampler.pool.stats.read()["workers/replaced"] == 1
    finally:
        sampler.close()

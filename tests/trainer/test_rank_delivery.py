"""Weights go from the first rank of a sharded trainer to the workers, not through the process of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

from ranks_tools import demonstrations, options, source  # noqa: E402

from rlreason.cluster.actors import ActorGroup, ActorOptions  # noqa: E402
from rlreason.data.prompts import PromptFormat  # noqa: E402
from rlreason.delivery.group import GroupOptions  # noqa: E402
from rlreason.delivery.packing import Packer  # noqa: E402
from rlreason.delivery.parcel import HeldWeights  # noqa: E402
from rlreason.policy.lora import LoraOptions  # noqa: E402
from rlreason.sampler.canary import Canary  # noqa: E402
from rlreason.sampler.handles import RayCluster, RayOptions  # noqa: E402
from rlreason.sampler.open import engine_spec  # noqa: E402
from rlreason.sampler.pool import RolloutPool  # noqa: E402
from rlreason.sampler.pool_sampler import PoolSampler  # noqa: E402
from rlreason.trainer.options import ModelSource  # noqa: E402
from rlreason.trainer.rank import RankSpec  # noqa: E402
from rlreason.trainer.rank_weights import RankWeights  # noqa: E402
from rlreason.trainer.ray_trainer import RayTrainer, start_ranks  # noqa: E402


@pytest.fixture(scope="module")
def ranks() -> Iterator[ActorGroup]:
    """One Ray, two ranks."""
    ray.init(num_cpus=4, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)
    group = start_ranks(2, ActorOptions(name="trainer rank", setting="trainer.ranks"))
    processes = [psutil.Process(home.process) for home in group.homes]
    yield group
    group.close()
    ray.shutdown()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_rank_0_packs_and_sends_by_itself(ranks: ActorGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and as changes, to two workers whose answers are proved; one that is replaced gets all of the version."""

    def here(weights: RankWeights) -> Any:
        raise AssertionError("weights were gathered in the process of the run")

    monkeypatch.setattr(RankWeights, "__iter__", here)
    cluster = RayCluster(RayOptions(workers=2, group=GroupOptions(seconds=60.0)))
    pool = None
    try:
        for family, delta in (("qwen3_tied", False), ("qwen3_moe", True)):
            settings = options()
            model = ModelSource(source=source(family), dtype=settings.compute_dtype)
            trainer = RayTrainer(RankSpec(model=model, options=settings), ranks)
            spec = engine_spec("transformers", trainer, max_rows=8, max_length=None)
            canary, packer = Canary(trainer.vocabulary, 64, trainer.dtype), Packer(delta=delta)
            if pool is None:
                pool = RolloutPool(cluster, spec, 2, canary=canary, packer=packer)
            else:
                pool.follow(spec, canary, packer)
            sampler = PoolSampler(pool, trainer.tokenizer, PromptFormat())
            samples, loss = demonstrations()
            for version in range(3):
                weights = trainer.weights()
                assert isinstance(weights, HeldWeights)
                sampler.publish(weights, version, trainer.expectations(sampler.probes))
                pool.settle_deliveries()
                trainer.forward_backward(samples, loss)
                assert trainer.step(version).moved > 0.5
            sampler.publish(trainer.weights(), 3, trainer.expectations(sampler.probes))
            pool._replace(0, pool._workers[0], "for the test")
            pool.settle_deliveries()
            stats = pool.stats.read()
            assert stats["delivery/canary"] < 5e-5
            assert stats["workers/replaced"] == 1
            trainer.close()
    finally:
        if pool is not None:
            pool.close()


@pytest.mark.parametrize("transport", ["host", "collective"])
def test_ranks_send_the_adapter_alone(ranks: ActorGroup, transport: str) -> None:
    """The base is gathered once, for whoever is new; through this process only where the transport is the host's."""
    settings = options(lora=LoraOptions(rank=2, alpha=4.0, experts=True))
    model = ModelSource(source=source("qwen3_moe"), dtype=settings.compute_dtype)
    trainer = RayTrainer(RankSpec(model=model, options=settings), ranks)
    spec = engine_spec("transformers", trainer, max_rows=8, max_length=None)
    group = GroupOptions(seconds=60.0) if transport == "collective" else None
    cluster = RayCluster(RayOptions(workers=2, group=group))
    canary = Canary(trainer.vocabulary, 64, trainer.dtype)
    pool = RolloutPool(cluster, spec, 2, canary=canary, packer=Packer(adapter=True))
    sampler = PoolSampler(pool, trainer.tokenizer, PromptFormat())
    samples, loss = demonstrations()
    everything = sum(one.nbytes for _, one in trainer.weights())
    try:
        for version in range(3):
            sampler.publish(trainer.weights(), version, trainer.expectations(sampler.probes))
            pool.settle_deliveries()
            manifest = pool._outbox._deliveries[version].parcel.manifest
            assert manifest.on_base
            assert sum(entry.size for entry in manifest.entries) < everything / 2
            trainer.forward_backward(samples, loss)
            assert trainer.step(version).moved > 0.5
        sampler.publish(trainer.weights(), 3, trainer.expectations(sampler.probes))
        pool._replace(0, pool._workers[0], "for the test")
        pool.settle_deliveries()
        stats = pool.stats.read()
        assert stats["delivery/canary"] < 5e-5
        assert stats["workers/replaced"] == 1
    finally:
        pool.close()
        trainer.close()


def test_a_version_that_was_packed_over_is_not_sent(ranks: ActorGroup) -> None:
    """The pool then asks for the newer one; what rank 0 packs is what one would gather."""
    settings = options()
    trainer = RayTrainer(
        RankSpec(model=ModelSource(source=source("qwen3_moe"), dtype=torch.float32), options=settings), ranks
    )
    first = trainer.weights().pack(0, delta=True, adapter=False)
    samples, loss = demonstrations()
    trainer.forward_backward(samples, loss)
    trainer.step(0)
    second = trainer.weights().pack(1, delta=True, adapter=False)
    assert (first.manifest.base, second.manifest.base) == (None, 0)
    assert first.send(1, GroupOptions()) is None
    assert first.whole() is None
    whole = second.whole()
    assert whole is not None
    assert whole.manifest.base is None
    local = Packer().pack(trainer.weights(), 1)
    assert local.manifest == whole.manifest
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(local.buckets, whole.buckets(), strict=True))
    trainer.close()

"""Weights go from the first rank of a sharded trainer to the workers, not through the process of the run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

import faults  # noqa: E402
from ranks_tools import demonstrations, options, source, start  # noqa: E402

from rlreason.cluster.actors import ActorGroup  # noqa: E402
from rlreason.config import PolicyConfig  # noqa: E402
from rlreason.data.prompts import PromptFormat  # noqa: E402
from rlreason.delivery.group import GroupOptions, joined  # noqa: E402
from rlreason.delivery.packing import Packer, Receiver, checksums  # noqa: E402
from rlreason.delivery.parcel import HeldWeights  # noqa: E402
from rlreason.policy.lora import LoraOptions, plain_shapes  # noqa: E402
from rlreason.policy.policies import Policy, PolicySource, fresh_tokenizer  # noqa: E402
from rlreason.sampler.canary import Canary  # noqa: E402
from rlreason.sampler.handles import RayCluster, RayOptions  # noqa: E402
from rlreason.sampler.open import engine_spec  # noqa: E402
from rlreason.sampler.pool import RolloutPool  # noqa: E402
from rlreason.sampler.pool_sampler import PoolSampler  # noqa: E402
from rlreason.trainer.adapted import ModelWeights  # noqa: E402
from rlreason.trainer.options import ModelSource  # noqa: E402
from rlreason.trainer.rank import RankSpec  # noqa: E402
from rlreason.trainer.rank_weights import RankWeights  # noqa: E402
from rlreason.trainer.ray_trainer import RayTrainer  # noqa: E402
from rlreason.trainer.weight_sender import WeightSender  # noqa: E402


@pytest.fixture(scope="module")
def mark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that ``SelfSignalling`` workers look at."""
    return tmp_path_factory.mktemp("mark") / "signal"


@pytest.fixture(scope="module")
def ranks(mark: Path) -> Iterator[ActorGroup]:
    """One Ray, two ranks."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(faults.STOP_FILE, str(mark))
        environment.setenv("PYTHONPATH", str(Path(faults.__file__).parent), prepend=os.pathsep)
        ray.init("local", num_cpus=4, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)
        group = start(2)
        processes = [psutil.Process(home.process.number) for home in group.homes]
        yield group
        group.close()
        ray.shutdown()
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_rank_0_packs_and_sends_by_itself(ranks: ActorGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, as changes, and bucket by bucket from the shards, to two workers whose answers are proved; one that is
    replaced gets all of the version."""

    def here(weights: RankWeights) -> Any:
        raise AssertionError("weights were gathered in the process of the run")

    monkeypatch.setattr(RankWeights, "__iter__", here)
    cluster = RayCluster(RayOptions(workers=2, group=GroupOptions(seconds=60.0)))
    pool = None
    try:
        ways = ({}, {"delta": True}, {"stream": True})
        for family, way in zip(("qwen3_tied", "qwen3_moe", "qwen3_moe"), ways, strict=True):
            settings = options()
            model = ModelSource(source=source(family), dtype=settings.compute_dtype)
            trainer = RayTrainer(RankSpec(model=model, options=settings), ranks)
            spec = engine_spec("transformers", trainer, max_rows=8, max_length=None)
            canary, packer = Canary(trainer.vocabulary, 64, trainer.dtype), Packer(**way)
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
    first = trainer.weights().pack(0, Packer(delta=True))
    samples, loss = demonstrations()
    trainer.forward_backward(samples, loss)
    trainer.step(0)
    second = trainer.weights().pack(1, Packer(delta=True))
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


#: About 110 MB, in tensors of 2 MB at most.
WIDE = {
    "hidden_size": 512, "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64,
    "intermediate_size": 1024, "max_position_embeddings": 64,
}  # fmt: skip


def test_what_is_streamed_is_never_held_whole(ranks: ActorGroup, mark: Path) -> None:
    """Of 105 MB in buckets of 1 MB rank 0 holds a few; packed before it is sent, it holds all. A worker that dies in
    the middle is replaced, and keeps nobody from training."""
    config = PolicyConfig(model_type="qwen3", model=WIDE)
    wide = PolicySource(config=config, tokenizer=fresh_tokenizer(config, "0123456789", ()), seed=0)
    trainer = RayTrainer(RankSpec(model=ModelSource(source=wide, dtype=torch.float32), options=options()), ranks)
    ranks.ask("small_buckets")
    spec = engine_spec("transformers", trainer, max_rows=8, max_length=None)
    canary = Canary(trainer.vocabulary, 64, trainer.dtype)
    cluster = RayCluster(RayOptions(workers=2, group=GroupOptions(seconds=60.0)), faults.SelfSignalling)
    pool = RolloutPool(cluster, spec, 2, canary=canary, packer=Packer(stream=True))
    try:
        most: dict[bool, int] = {}
        for version, stream in enumerate((True, True, False)):
            pool._outbox._packer = Packer(stream=stream)
            expected = trainer.expectations(pool.probes)
            ranks.ask("begin_measuring")
            pool.publish(trainer.weights(), version, expected)
            pool.settle_deliveries()
            most[stream] = max(most.get(stream, 0), ranks.ask("most")[0])
        manifest = pool._outbox._deliveries[2].parcel.manifest
        everything = sum(manifest.sizes)
        assert everything > 100e6
        assert max(manifest.sizes) < 5e6
        limit = everything / 2  # pages that were there before may go meanwhile: both ends are 10 MB and more inexact
        assert most[True] < limit
        assert most[False] > limit  # canary: packed whole, it is above
        assert pool.stats.read()["workers/replaced"] == 0
        samples, loss = demonstrations()
        for version in (3, 4):
            trainer.forward_backward(samples, loss)
            assert trainer.step(version).moved > 0.5
            if version == 3:
                mark.write_text(str(int(signal.SIGKILL)))
            pool._outbox._packer = Packer(stream=True)
            pool.publish(trainer.weights(), version, trainer.expectations(pool.probes))
            pool.settle_deliveries()
            stats = pool.stats.read()
            assert stats["workers/replaced"] == (version == 3)
            assert stats["delivery/canary"] < 5e-5
        assert not mark.exists()
    finally:
        pool.close()
        trainer.close()


class InThisProcess(WeightSender):
    """A first rank without others: a policy's own weights."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(first=True)
        self._policy = policy
        self._packer = Packer(bucket_bytes=1 << 12)

    def weights(self) -> ModelWeights:
        return ModelWeights(self._policy.model, torch.float32, lambda one: one)

    def shapes(self) -> Iterator[tuple[str, torch.Tensor]]:
        return plain_shapes(self._policy.model, torch.float32)


def test_a_group_that_ends_holds_no_stream_up() -> None:
    """A worker leaves behind the first bucket; the next group is given everything, once more from the shards."""
    sender = InThisProcess(source("qwen3_moe").load(torch.float32, torch.device("cpu")))
    manifest, streamed = sender.pack(7, delta=False, adapter=False, stream=True)
    assert streamed
    assert manifest is not None
    assert len(manifest.sizes) > 4
    assert set(manifest.checksums) == set()

    def receive(stay: bool) -> list[Any]:
        meeting = sender.open_stream(7, 1, GroupOptions(seconds=60.0))
        assert meeting is not None

        def member() -> list[Any]:
            with joined(meeting, 1) as group:
                return [bucket.copy() for bucket in islice(group.buckets(manifest.sizes), None if stay else 1)]

        with ThreadPoolExecutor(1) as beside:
            found = beside.submit(member)
            sender.stream(7, meeting.port)
            return found.result()

    assert len(receive(stay=False)) == 1
    opened = Receiver().open(manifest, receive(stay=True), keep=False)
    assert checksums(opened) == sender.checksums(7) == checksums(dict(sender.weights()))
    packed = Packer(bucket_bytes=1 << 12).pack(((name, one.clone()) for name, one in sender.weights()), 7)
    assert [replace(one, checksum=None) for one in packed.manifest.entries] == list(manifest.entries)
    sender.weights_change()
    assert sender.open_stream(7, 1, GroupOptions()) is None
    assert sender.checksums(7) == packed.manifest.checksums  # of a worker that says late what it got

"""Weights arrive bit for bit, whole or as changes, and a receiver never guesses."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch

from rlreason.delivery.packing import DeliveryError, Packer, Receiver, checksums, few


def weights_of(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tied = torch.randn(5, 7, generator=generator)
    return {
        "embed": tied,
        "bf16": torch.randn(3, 9, generator=generator).to(torch.bfloat16),
        "strided": torch.randn(6, 4, generator=generator).t(),
        "scalar": torch.tensor(float(seed)),
        "ids": torch.arange(seed, seed + 3),
        "head": tied,
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in other)


@pytest.mark.parametrize("bucket_bytes", [1, 100, 1 << 20])
def test_everything_arrives_bit_for_bit(bucket_bytes: int) -> None:
    weights = weights_of(0)
    packed = Packer(bucket_bytes=bucket_bytes).pack(weights.items(), version=3)
    opened = Receiver().open(packed.manifest, packed.buckets, keep=False)
    assert list(opened) == ["embed", "bf16", "strided", "scalar", "ids"]  # tied tensors travel once
    assert equal(weights, opened)
    assert len(packed.buckets) == (5 if bucket_bytes == 1 else 1 if bucket_bytes > 100 else len(packed.buckets))
    assert packed.manifest.checksums == checksums(opened)
    assert packed.manifest.checksums["scalar"] == zlib.crc32(np.float32(0.0).tobytes())


def test_one_flipped_bit_changes_the_checksum() -> None:
    packed = Packer().pack(weights_of(0).items(), version=0)
    packed.buckets[0][packed.manifest.entries[1].offset] ^= 1
    received = checksums(Receiver().open(packed.manifest, packed.buckets, keep=False))
    wrong = [name for name, checksum in received.items() if checksum != packed.manifest.checksums[name]]
    assert wrong == ["bf16"]


def test_changes_only() -> None:
    packer, receiver = Packer(delta=True), Receiver()
    first = packer.pack(weights_of(0).items(), version=0)
    receiver.open(first.manifest, first.buckets, keep=True)
    assert first.manifest.base is None
    weights = weights_of(0)
    weights["embed"][2, 3] += 1.0
    weights["bf16"][0, 0] = -weights["bf16"][0, 0]
    second = packer.pack(weights.items(), version=1)
    assert second.manifest.base == 0
    assert [entry.changed for entry in second.manifest.entries] == [1, 1, 0, 0, 0]
    assert sum(entry.size for entry in second.manifest.entries) == (8 + 4) + (8 + 2)
    opened = receiver.open(second.manifest, second.buckets, keep=True)
    assert equal(weights, opened)
    assert checksums(opened) == second.manifest.checksums
    # A worker that missed a version, or is new, is told so, and takes the whole.
    with pytest.raises(DeliveryError, match="changes since version 0, but the worker holds nothing"):
        Receiver().open(second.manifest, second.buckets, keep=True)
    third = packer.pack(weights_of(2).items(), version=2)
    late = Receiver()
    late.open(first.manifest, first.buckets, keep=True)
    with pytest.raises(DeliveryError, match="changes since version 1, but the worker holds version 0"):
        late.open(third.manifest, third.buckets, keep=True)
    whole = packer.whole(third)
    assert whole.manifest.base is None
    assert whole.manifest.version == 2
    assert equal(weights_of(2), late.open(whole.manifest, whole.buckets, keep=True))
    before = packer.whole(second)  # whatever was packed since
    assert before.manifest.version == 1
    assert equal(weights, Receiver().open(before.manifest, before.buckets, keep=True))


def test_a_tensor_whose_changes_are_longer_than_itself_is_sent_whole() -> None:
    """review/repro_systems/costs.py: where every element changed, a delta was three times as long as everything."""
    packer, receiver = Packer(delta=True), Receiver()
    before = {"all": torch.arange(1000.0), "few": torch.arange(1000.0)}
    first = packer.pack(before.items(), version=0)
    receiver.open(first.manifest, first.buckets, keep=True)
    for version in (1, 2):
        after = {"all": before["all"] + version, "few": before["few"].clone()}
        after["few"][version] = -1.0
        packed = packer.pack(after.items(), version=version)
        assert [entry.changed for entry in packed.manifest.entries] == [None, version]
        assert sum(entry.size for entry in packed.manifest.entries) == 4000 + version * 12
        assert equal(after, receiver.open(packed.manifest, packed.buckets, keep=True))


def test_changes_are_compared_bit_by_bit() -> None:
    packer, receiver = Packer(delta=True), Receiver()
    before = {"w": torch.tensor([0.0, float("nan"), 1.0])}
    packed = packer.pack(before.items(), version=0)
    receiver.open(packed.manifest, packed.buckets, keep=True)
    packed = packer.pack({"w": torch.tensor([-0.0, float("nan"), 1.0])}.items(), version=1)
    assert packed.manifest.entries[0].changed == 1  # minus zero is a change, an equal nan is none
    opened = receiver.open(packed.manifest, packed.buckets, keep=True)
    assert torch.signbit(opened["w"]).tolist()[0]


def test_tensors_may_be_made_one_after_the_other() -> None:
    """A freed tensor's memory is given to the next one, which is no tie."""
    made = ((f"layer.{i}", torch.full((1000,), float(i))) for i in range(20))
    packed = Packer(bucket_bytes=5000).pack(made, version=0)
    opened = Receiver().open(packed.manifest, packed.buckets, keep=False)
    assert [float(tensor[0]) for tensor in opened.values()] == [float(i) for i in range(20)]


def test_few() -> None:
    assert few(["a", "b"]) == "a, b"
    assert few([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"

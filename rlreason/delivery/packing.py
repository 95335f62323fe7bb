"""Weights on their way to the rollout workers: named, versioned, in buckets, each tensor with a checksum.

A bucket is one flat array of bytes, so that Ray's object store (shared memory on one host) takes it with one copy and
a worker reads it with none. A delta carries only the elements that changed since a version that the worker holds.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Bytes = npt.NDArray[np.uint8]
BUCKET_BYTES = 64 << 20
#: Tensors begin at multiples of this in a bucket, which suits every dtype.
ALIGNMENT = 64
#: Element size -> unsigned integers of that size: changes are compared bit by bit.
_KINDS: Mapping[int, type[np.unsignedinteger[Any]]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Where one tensor lies. ``checksum``: CRC-32 of the whole tensor's bytes, once it is put together; None: known
    when they are sent (``Parcel.checksums``).

    Example: ``Entry(name="lm_head.weight", shape=(64, 128), dtype="float32", bucket=0, offset=0, size=32768,
    changed=None, checksum=0x5bd1e995)``. ``changed`` counts the elements of a delta: their places (int64), then values.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bucket: int
    offset: int
    size: int
    changed: int | None
    checksum: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """Which weight a pair of an adapter's matrices is added to.

    Example: ``Factor(weight="model.layers.0.self_attn.q_proj.weight", scaling=2.0)``.
    """

    weight: str
    scaling: float
    #: 0: a linear layer; otherwise the weights of so many experts in one tensor, [E, O, I].
    experts: int = 0
    #: The tensor of experts is [E, I, O].
    input_first: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """What A and B are called on their way."""
        return f"{self.weight}:A", f"{self.weight}:B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a delivery holds. ``base`` None: everything; otherwise changes since version ``base``."""

    version: int
    base: int | None
    entries: tuple[Entry, ...]
    #: Of weights with an adapter: where its matrices go. They are the first entries.
    factors: tuple[Factor, ...] = ()
    #: The matrices alone: for a worker that holds the weights beneath.
    on_base: bool = False

    @property
    def whole(self) -> bool:
        """Whether a worker that holds nothing can take it."""
        return self.base is None and not self.on_base

    def fits(self, version: int | None, *, on_base: bool) -> bool:
        """Whether a worker can take it that holds ``version`` (None: nothing that is used) and maybe the ``factors``'
        weights beneath."""
        return on_base if self.on_base else self.base is None or self.base == version

    @property
    def checksums(self) -> dict[str, int]:
        """Name -> CRC-32 of the tensor after this delivery, where it is known."""
        return {entry.name: entry.checksum for entry in self.entries if entry.checksum is not None}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each bucket."""
        ends: dict[int, int] = {}
        for entry in self.entries:
            ends[entry.bucket] = entry.offset + _aligned(entry.size)
        return tuple(ends[bucket] for bucket in sorted(ends))


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedWeights:
    """A delivery ready to be sent: the manifest and its buckets."""

    manifest: Manifest
    buckets: tuple[Bytes, ...]
    #: All tensors of this version, where it or the next one is sent as changes. They are never written to.
    contents: Mapping[str, Tensor] = field(default_factory=dict)


def as_bytes(tensor: Tensor) -> Bytes:
    """The tensor's bytes as a flat array, without a copy where it is contiguous and on the host."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def unique_tensors(weights: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """``weights`` with tied tensors once, under the first of their names.

    Tensors may be made as they are asked for and freed behind: the same memory is then no tie.
    """
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], StorageWeakRef] = {}
    for name, tensor in weights:
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if place not in seen or seen[place].expired():  # type: ignore[no-untyped-call]
            seen[place] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            yield name, tensor


class Packer:
    """Packs weights. With ``delta`` it packs what changed since the last call; ``adapter``: of weights with an adapter
    whoever holds the rest is sent the adapter alone.

    ``stream``: nothing changes weights while workers take them, so those that lie in other processes need not be
    packed there: whole ones are sent bucket by bucket as they are made (``layout``, ``filled``)."""

    def __init__(
        self, *, delta: bool = False, adapter: bool = False, stream: bool = False, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.delta, self.adapter, self.stream = delta, adapter, stream
        self._bucket_bytes = bucket_bytes
        self._last: PackedWeights | None = None

    def pack(self, weights: Iterable[tuple[str, Tensor]], version: int) -> PackedWeights:
        """Everything, or with ``delta`` the changes since the last call. One tensor after the other is asked for."""
        if not self.delta:
            return self._packed(unique_tensors(weights), version, None)
        contents = {name: tensor.detach().cpu().clone() for name, tensor in unique_tensors(weights)}
        packed = self._packed(contents.items(), version, self._last)
        self._last = PackedWeights(manifest=packed.manifest, buckets=(), contents=contents)
        return replace(packed, contents=contents)

    def pack_adapter(
        self, matrices: Iterable[tuple[str, Tensor]], factors: tuple[Factor, ...], version: int
    ) -> PackedWeights:
        """An adapter's matrices alone, named as ``factors`` have it, in their order."""
        names = (name for factor in factors for name in factor.names)
        named = ((name, tensor) for name, (_, tensor) in zip(names, matrices, strict=True))
        packed = self._packed(named, version, None)
        return replace(packed, manifest=replace(packed.manifest, factors=factors, on_base=True))

    def pack_base(self, weights: Iterable[tuple[str, Tensor]]) -> PackedWeights:
        """The frozen weights beneath an adapter, which are of no version; see ``with_base``."""
        return self._packed(unique_tensors(weights), 0, None)

    def whole(self, packed: PackedWeights) -> PackedWeights:
        """All of ``packed``'s version, for a worker that can't take its changes. Only with ``delta``."""
        assert packed.contents, "it was not packed as changes"
        whole = self._packed(packed.contents.items(), packed.manifest.version, None)
        return replace(whole, contents=packed.contents)

    def layout(self, shapes: Iterable[tuple[str, Tensor]], version: int) -> Manifest:
        """Where ``filled`` puts tensors of these shapes and dtypes (of the meta device), without checksums."""
        places, entries = _Places(self._bucket_bytes), []
        for name, tensor in shapes:
            bucket, offset = places.next(tensor.nbytes)
            entries.append(_entry(name, tensor, (bucket, offset, tensor.nbytes)))
        return Manifest(version=version, base=None, entries=tuple(entries))

    def _packed(self, weights: Iterable[tuple[str, Tensor]], version: int, base: PackedWeights | None) -> PackedWeights:
        buckets = _Buckets(self._bucket_bytes)
        entries = []
        for name, tensor in weights:
            data, changed = as_bytes(tensor), None
            parts = [data]
            if base is not None:
                changes, count = _changes(as_bytes(base.contents[name]), data, tensor.element_size())
                if sum(part.nbytes for part in changes) <= data.nbytes:  # else the tensor itself is shorter
                    parts, changed = changes, count
            entries.append(_entry(name, tensor, buckets.add(parts), changed, _crc(data)))
        manifest = Manifest(version=version, base=base.manifest.version if base else None, entries=tuple(entries))
        return PackedWeights(manifest=manifest, buckets=buckets.end())


def with_base(adapter: PackedWeights, base: PackedWeights) -> PackedWeights:
    """All of the adapter's version: its matrices, then what they are added to. No byte is copied."""
    behind = len(adapter.buckets)
    entries = [replace(entry, bucket=entry.bucket + behind) for entry in base.manifest.entries]
    manifest = replace(adapter.manifest, entries=(*adapter.manifest.entries, *entries), on_base=False)
    return PackedWeights(manifest=manifest, buckets=(*adapter.buckets, *base.buckets))


def filled(manifest: Manifest, weights: Iterable[tuple[str, Tensor]], sums: dict[str, int]) -> Iterator[Bytes]:
    """The buckets of a ``Packer.layout``, each made when it is asked for; ``sums`` is given the checksums of what is in
    it before. Raises RuntimeError where ``weights`` are not what was laid out."""
    sizes, at = manifest.sizes, -1
    bucket: Bytes = np.zeros(0, dtype=np.uint8)
    for entry, (name, tensor) in zip(manifest.entries, weights, strict=True):
        if (entry.name, entry.shape, entry.dtype) != (name, tuple(tensor.shape), _dtype(tensor)):
            raise RuntimeError(f"{name} is {_dtype(tensor)} {list(tensor.shape)}, and was laid out as {entry}")
        if entry.bucket != at:
            if at >= 0:
                yield bucket
            bucket, at = np.zeros(sizes[entry.bucket], dtype=np.uint8), entry.bucket
        data = as_bytes(tensor)
        sums[name] = _crc(data)
        bucket[entry.offset : entry.offset + entry.size] = data
    if at >= 0:
        yield bucket


def _entry(
    name: str, tensor: Tensor, place: tuple[int, int, int], changed: int | None = None, checksum: int | None = None
) -> Entry:
    """``place``: bucket, offset, size."""
    bucket, offset, size = place
    return Entry(
        name=name,
        shape=tuple(tensor.shape),
        dtype=_dtype(tensor),
        bucket=bucket,
        offset=offset,
        size=size,
        changed=changed,
        checksum=checksum,
    )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _changes(before: Bytes, now: Bytes, width: int) -> tuple[list[Bytes], int]:
    """(places and values of the elements that differ, their count)."""
    kind = _KINDS[width]
    new = now.view(kind)
    places = np.flatnonzero(before.view(kind) != new)
    return [places.astype(np.int64).view(np.uint8), new[places].view(np.uint8)], len(places)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class _Places:
    """Where tensors go in buckets of about ``limit`` bytes, one after the other; what is larger has its own."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bucket = 0
        #: Bytes of the last bucket that are taken.
        self.taken = 0

    def next(self, size: int) -> tuple[int, int]:
        """(bucket, offset)."""
        if self.taken and self.taken + size > self._limit:
            self._bucket, self.taken = self._bucket + 1, 0
        place = (self._bucket, self.taken)
        self.taken += _aligned(size)
        return place


class _Buckets:
    """Buckets that are filled one after the other."""

    def __init__(self, limit: int) -> None:
        self._places = _Places(limit)
        self._full: list[Bytes] = []
        #: Of the bucket that is being filled: (offset, parts), and its bytes.
        self._parts: list[tuple[int, Sequence[Bytes]]] = []
        self._size = 0

    def add(self, parts: Sequence[Bytes]) -> tuple[int, int, int]:
        """(bucket, offset, size) of ``parts``, one behind the other."""
        size = sum(part.nbytes for part in parts)
        bucket, offset = self._places.next(size)
        if bucket > len(self._full):
            self._close()
        self._parts.append((offset, parts))
        self._size = self._places.taken
        return bucket, offset, size

    def end(self) -> tuple[Bytes, ...]:
        """All of them."""
        self._close()
        return tuple(self._full)

    def _close(self) -> None:
        bucket = np.zeros(self._size, dtype=np.uint8)
        for offset, parts in self._parts:
            np.concatenate(parts, out=bucket[offset : offset + sum(part.nbytes for part in parts)])
        self._full.append(bucket)
        self._parts, self._size = [], 0


class DeliveryError(RuntimeError):
    """Weights did not arrive as they were sent, or are not used as they arrived. The run must stop."""


class Receiver:
    """Puts deliveries together on the worker's side. With deltas it keeps the bytes of the last version."""

    def __init__(self) -> None:
        self._held: dict[str, Bytes] = {}
        self._version: int | None = None

    def open(self, manifest: Manifest, buckets: Iterable[Bytes], *, keep: bool) -> dict[str, Tensor]:
        """The delivered state dict; see ``stream``."""
        return dict(self.stream(manifest, buckets, keep=keep))

    def stream(self, manifest: Manifest, buckets: Iterable[Bytes], *, keep: bool) -> Iterator[tuple[str, Tensor]]:
        """Every delivered tensor by name, of one bucket after the other; without deltas they lie in ``buckets``.

        ``keep``: deltas may follow. Raises DeliveryError for a delta on another version than the one held; one that is
        broken off leaves none.
        """
        if manifest.base is not None and manifest.base != self._version:
            raise DeliveryError(
                f"version {manifest.version} was sent as changes since version {manifest.base}, but the worker holds "
                f"{'nothing' if self._version is None else f'version {self._version}'}"
            )
        self._version = None
        arriving, at = iter(buckets), -1
        bucket: Bytes = np.zeros(0, dtype=np.uint8)
        for entry in manifest.entries:
            while at < entry.bucket:
                bucket, at = next(arriving), at + 1
            data = bucket[entry.offset : entry.offset + entry.size]
            if entry.changed is not None:
                data = self._changed(entry, data)
            elif keep:
                data = self._held[entry.name] = data.copy()
            dtype: torch.dtype = getattr(torch, entry.dtype)
            yield entry.name, _tensor(data).view(dtype).reshape(entry.shape)
        self._version = manifest.version

    def _changed(self, entry: Entry, data: Bytes) -> Bytes:
        assert entry.changed is not None
        held = self._held[entry.name]
        if entry.changed:
            places = data[: 8 * entry.changed].view(np.int64)
            values = data[8 * entry.changed :]
            width = values.nbytes // entry.changed
            held.view(_KINDS[width])[places] = values.view(_KINDS[width])
        return held


def _tensor(data: Bytes) -> Tensor:
    """A tensor on the same memory; Ray's arrays are read-only, which torch would warn of: nobody writes here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(data)


def _crc(data: Bytes) -> int:
    return zlib.crc32(data.data)


def summed(weights: Iterable[tuple[str, Tensor]], sums: dict[str, int]) -> Iterator[tuple[str, Tensor]]:
    """``weights`` as they pass; ``sums`` is given each one's CRC-32, before anyone else sees it."""
    for name, tensor in weights:
        sums[name] = _crc(as_bytes(tensor))
        yield name, tensor


def checksums(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Name -> CRC-32 of the tensor's bytes."""
    return {name: _crc(as_bytes(tensor)) for name, tensor in weights.items()}


def few(names: Sequence[str]) -> str:
    """Up to eight names for a message, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

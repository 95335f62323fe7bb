"""The weights of many ranks, seen from the process of the run: gathered there, or packed and sent by the first rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlreason.cluster.actors import ActorGroup, ActorsDied
from rlreason.delivery.adapter import AdaptedWeights
from rlreason.delivery.group import GroupOptions, Meeting
from rlreason.delivery.packing import Bytes, Factor, Manifest, Packer, filled
from rlreason.delivery.parcel import Departure, HeldWeights
from rlreason.policy.policies import Policy
from rlreason.trainer.weight_sender import Part

#: Bytes of one bucket of weights on its way out of the ranks.
BUCKET_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RankWeights(HeldWeights, AdaptedWeights):
    """The ranks' weights: gathered bucket by bucket on the CPU of this process, or packed and sent by rank 0."""

    ranks: ActorGroup
    shape: Policy
    dtype: torch.dtype

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """See ``HeldWeights``."""
        return self._gathered("merged", _bucket_counts(self.shape, self.dtype))

    @property
    def factors(self) -> tuple[Factor, ...]:
        """See ``AdaptedWeights``."""
        found: tuple[Factor, ...] = self.ranks.ask("factors")[0]
        return found

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """See ``AdaptedWeights``."""
        return self._gathered("base", _bucket_counts(self.shape, self.dtype))

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        """See ``AdaptedWeights``."""
        return self._gathered("adapter", [2 * len(self.factors)])

    def _gathered(self, part: Part, counts: Iterable[int]) -> Iterator[tuple[str, Tensor]]:
        self.ranks.ask("begin_weights", part)
        for count in counts:
            yield from self.ranks.ask("bucket", count)[0]

    def pack(self, version: int, packer: Packer) -> RankParcel | StreamedParcel:
        """See ``HeldWeights``."""
        manifest, streamed = self.ranks.ask("pack", version, packer.delta, packer.adapter, packer.stream)[0]
        return StreamedParcel(self, manifest) if streamed else RankParcel(self.ranks, manifest)


@dataclass(frozen=True, slots=True)
class RankParcel:
    """``delivery.parcel.Parcel`` in rank 0's memory. ``all_of_it``: not the changes that rank 0 may hold."""

    ranks: ActorGroup
    manifest: Manifest
    all_of_it: bool = False

    def checksums(self) -> Mapping[str, int]:
        """See ``Parcel.checksums``."""
        return self.manifest.checksums

    def whole(self) -> RankParcel | None:
        """See ``Parcel.whole``."""
        manifest = self.ranks.ask_beside(0, "whole", self.manifest.version)
        return None if manifest is None else RankParcel(self.ranks, manifest, True)

    def buckets(self) -> Sequence[Bytes]:
        """See ``Parcel.buckets``. Raises LookupError where rank 0 holds a newer version."""
        found: Sequence[Bytes] | None = self.ranks.ask_beside(0, "buckets", self.manifest.version, self.all_of_it)
        if found is None:
            raise LookupError(f"rank 0 holds a newer version than {self.manifest.version}")
        return found

    def send(self, members: int, options: GroupOptions) -> Departure | None:
        """See ``Parcel.send``."""
        meeting = self.ranks.ask_beside(0, "send", self.manifest.version, self.all_of_it, members, options)
        return None if meeting is None else _RankSending(self.ranks, meeting)


@dataclass(frozen=True, slots=True)
class StreamedParcel:
    """``delivery.parcel.Parcel`` of weights that stay in their shards: gathered bucket by bucket each time that they
    are sent, for as long as no step changes them."""

    weights: RankWeights
    manifest: Manifest

    def checksums(self) -> Mapping[str, int]:
        """See ``Parcel.checksums``."""
        found: Mapping[str, int] = self.weights.ranks.ask_beside(0, "checksums", self.manifest.version)
        return found

    def whole(self) -> StreamedParcel:
        """See ``Parcel.whole``: it is."""
        return self

    def buckets(self) -> Sequence[Bytes]:
        """See ``Parcel.buckets``: gathered here. Raises LookupError where the ranks hold newer weights."""
        if not all(self.weights.ranks.ask("holds", self.manifest.version)):
            raise LookupError(f"the ranks hold newer weights than version {self.manifest.version}")
        return list(filled(self.manifest, self.weights, {}))

    def send(self, members: int, options: GroupOptions) -> Departure | None:
        """See ``Parcel.send``. The ranks do nothing else until it is through, or its group has ended."""
        ranks, version = self.weights.ranks, self.manifest.version
        ranks.settle()
        meeting = ranks.ask_beside(0, "open_stream", version, members, options)
        if meeting is None:
            return None
        ranks.begin("stream", version, meeting.port)
        return _RankSending(ranks, meeting)


@dataclass(frozen=True, slots=True)
class _RankSending:
    ranks: ActorGroup
    meeting: Meeting
    #: The first rank's log has it.
    failure: str = ""

    def end(self) -> None:
        with contextlib.suppress(ActorsDied):  # the trainer's next call says so
            if not self.ranks.closed:
                self.ranks.ask_beside(0, "end_sending", self.meeting)


def _bucket_counts(shape: Policy, dtype: torch.dtype) -> Iterator[int]:
    """Tensors of each bucket, in the order of the model's state."""
    count, size = 0, 0
    for tensor in shape.model.state_dict().values():
        count, size = count + 1, size + tensor.numel() * dtype.itemsize
        if size >= BUCKET_BYTES:
            yield count
            count, size = 0, 0
    if count:
        yield count

"""A packed version, wherever its bytes lie: in the process of the run, or with the trainer's first rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from rlreason.delivery.group import GroupOptions, Meeting, Sending
from rlreason.delivery.packing import Bytes, Manifest, PackedWeights, Packer


class Departure(Protocol):
    """A parcel on its way to a group (``group.Sending``, or one in another process)."""

    @property
    def meeting(self) -> Meeting:
        """What a worker needs to join."""
        ...

    @property
    def failure(self) -> str:
        """Why its sender could not send, where that is known here; "" otherwise."""
        ...

    def end(self) -> None:
        """A worker of the group is gone: have those that wait for it fail at once."""
        ...


class Parcel(Protocol):
    """One version, packed."""

    @property
    def manifest(self) -> Manifest:
        """What it holds."""
        ...

    def checksums(self) -> Mapping[str, int]:
        """Name -> CRC-32 of the tensor after it; of all of them once a worker has it."""
        ...

    def whole(self) -> Parcel | None:
        """All of the same version, where this one holds changes. None: a newer one took its place meanwhile."""
        ...

    def buckets(self) -> Sequence[Bytes]:
        """Its bytes, in this process."""
        ...

    def send(self, members: int, options: GroupOptions) -> Departure | None:
        """Begin to send it to so many workers. None as in ``whole``."""
        ...


class HeldWeights(ABC):
    """Weights that lie in other processes: to be gathered here tensor by tensor, or packed where they are."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, brought here."""

    @abstractmethod
    def pack(self, version: int, packer: Packer) -> Parcel:
        """Packed there as ``version``, as ``packer`` would; with its ``stream`` sent from where they are."""


@dataclass(frozen=True, slots=True)
class LocalParcel:
    """A parcel of this process; ``make_whole`` packs all of its version."""

    packed: PackedWeights
    make_whole: Callable[[], PackedWeights]

    @property
    def manifest(self) -> Manifest:
        """See ``Parcel.manifest``."""
        return self.packed.manifest

    def checksums(self) -> Mapping[str, int]:
        """See ``Parcel.checksums``."""
        return self.manifest.checksums

    def whole(self) -> LocalParcel:
        """See ``Parcel.whole``."""
        return LocalParcel(self.make_whole(), self.make_whole)

    def buckets(self) -> Sequence[Bytes]:
        """See ``Parcel.buckets``."""
        return self.packed.buckets

    def send(self, members: int, options: GroupOptions) -> Departure:
        """See ``Parcel.send``."""
        return Sending(self.packed.buckets, members, replace(options, backend=options.here))

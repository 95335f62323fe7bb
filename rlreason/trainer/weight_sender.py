"""A rank's part in deliveries: all ranks gather tensor by tensor, and rank 0 keeps the newest version packed and sends
it by itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.delivery.adapter import AdaptedWeights
from rlreason.delivery.group import GroupOptions, Meeting, Sending
from rlreason.delivery.packing import Bytes, Factor, Manifest, PackedWeights, Packer, with_base
from rlreason.delivery.parcel import LocalParcel

#: Which tensors: with the adapter in them, without it, or the adapter's own.
Part = Literal["merged", "base", "adapter"]


@dataclass(slots=True)
class Bucket:
    """Tensors of one bucket as bytes, which Ray hands over without copying."""

    tensors: list[tuple[str, str, tuple[int, ...], npt.NDArray[np.uint8]]] = field(default_factory=list)

    @staticmethod
    def of(tensors: Sequence[tuple[str, Tensor]]) -> Bucket:
        """``tensors``, brought to the CPU."""
        return Bucket(
            [
                (name, str(one.dtype), tuple(one.shape), one.contiguous().view(-1).view(torch.uint8).cpu().numpy())
                for name, one in tensors
            ]
        )

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor)."""
        for name, dtype, shape, data in self.tensors:
            bytes_ = torch.from_numpy(data.copy())  # Ray's memory is read-only
            yield name, bytes_.view(getattr(torch, dtype.removeprefix("torch."))).view(shape)


class WeightSender(ABC):
    """Mixed into the rank's actor. ``pack``, ``begin_weights``, ``bucket`` and ``factors`` are called on all ranks, the
    others on rank 0 alone, beside what it does."""

    def __init__(self, *, first: bool) -> None:
        """``first``: this is rank 0."""
        self._first = first
        self._passing: Iterator[tuple[str, Tensor]] = iter(())
        #: Of rank 0: the newest version that was packed here, and who is being sent one.
        self._packer = Packer()
        self._packed: LocalParcel | None = None
        self._whole: LocalParcel | None = None
        #: What adapters are added to; on other ranks it is empty. None: not gathered yet.
        self._base: PackedWeights | None = None
        self._sendings: list[Sending] = []

    @abstractmethod
    def weights(self) -> AdaptedWeights:
        """The model's of now; each is gathered on all ranks as it is asked for."""

    def forget_weights(self) -> None:
        """Another model comes."""
        self._passing = iter(())
        self._packer, self._packed, self._whole, self._base = Packer(), None, None, None

    def factors(self) -> tuple[Factor, ...]:
        """Where an adapter's matrices go; none: there is no adapter."""
        return self.weights().factors

    def begin_weights(self, part: Part) -> None:
        """The next ``bucket`` is the first of that part."""
        weights = self.weights()
        parts: dict[Part, Callable[[], Iterable[tuple[str, Tensor]]]] = {
            "merged": lambda: weights, "base": weights.base, "adapter": weights.adapter,
        }  # fmt: skip
        self._passing = iter(parts[part]())

    def bucket(self, count: int) -> Bucket | None:
        """The next ``count`` tensors, of rank 0; the others gather along."""
        found = []
        for _ in range(count):
            named = next(self._passing)
            if self._first:
                found.append(named)
        return Bucket.of(found) if self._first else None

    def pack(self, version: int, delta: bool, adapter: bool) -> Manifest | None:
        """Pack the weights as ``version`` in rank 0's memory, one tensor after the other; the others gather along."""
        weights = self.weights()
        if adapter and weights.factors:
            self._packed, self._whole = self._adapter(weights, version), None
        elif not self._first:
            _pass(weights)
        else:
            if self._packer.delta != delta:
                self._packer = Packer(delta=delta)
            self._packed = self._whole = None  # two versions are never held
            packed = self._packer.pack(weights, version)
            self._packed = LocalParcel(packed, partial(self._packer.whole, packed))
        return self._packed.manifest if self._packed is not None else None

    def _adapter(self, weights: AdaptedWeights, version: int) -> LocalParcel | None:
        if self._base is None:
            self._base = self._packer.pack_base(weights.base() if self._first else _pass(weights.base()))
        if not self._first:
            _pass(weights.adapter())
            return None
        packed = self._packer.pack_adapter(weights.adapter(), weights.factors, version)
        return LocalParcel(packed, partial(with_base, packed, self._base))

    def send(self, version: int, whole: bool, members: int, options: GroupOptions) -> Meeting | None:
        """Rank 0 begins to send ``version``, while it goes on with what it does; see ``Parcel.send``."""
        parcel = self._parcel(version, whole)
        if parcel is None:
            return None
        import ray

        sending = Sending(parcel.buckets(), members, replace(options, host=ray.util.get_node_ip_address()))
        self._sendings = [one for one in self._sendings if one.under_way] + [sending]
        return sending.meeting

    def end_sending(self, meeting: Meeting) -> None:
        """See ``Departure.end``."""
        for one in self._sendings:
            if one.meeting == meeting:
                one.end()

    def whole(self, version: int) -> Manifest | None:
        """See ``Parcel.whole``; the bytes stay here."""
        parcel = self._parcel(version, True)
        return None if parcel is None else parcel.manifest

    def buckets(self, version: int, whole: bool) -> Sequence[Bytes] | None:
        """For the report of a delivery that failed."""
        parcel = self._parcel(version, whole)
        return None if parcel is None else parcel.buckets()

    def _parcel(self, version: int, whole: bool) -> LocalParcel | None:
        parcel = self._packed
        if parcel is None or parcel.manifest.version != version:
            return None
        if not whole or parcel.manifest.whole:
            return parcel
        if self._whole is None or self._whole.manifest.version != version:
            self._whole = parcel.whole()
        return self._whole


def _pass(weights: Iterable[tuple[str, Tensor]]) -> tuple[tuple[str, Tensor], ...]:
    """Gather along; nothing is kept."""
    for _ in weights:
        pass
    return ()

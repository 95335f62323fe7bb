"""A rank's part in deliveries: all ranks gather tensor by tensor, and rank 0 sends by itself: the newest version, which
it keeps packed, or bucket by bucket what the shards hold (``Packer.stream``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Full, Queue
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.delivery.adapter import AdaptedWeights
from rlreason.delivery.group import GroupOptions, Meeting, Sending
from rlreason.delivery.packing import Bytes, Factor, Manifest, PackedWeights, Packer, filled, with_base
from rlreason.delivery.parcel import LocalParcel

#: Which tensors: with the adapter in them, without it, or the adapter's own.
Part = Literal["merged", "base", "adapter"]
#: Buckets between the one that is made and the one that is sent; None behind the last.
Belt = Queue[Bytes | None]
#: Seconds between two looks at whether a group is still there.
_LOOK = 0.05


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
    """Mixed into the rank's actor. ``pack``, ``stream``, ``holds``, ``begin_weights``, ``bucket`` and ``factors`` are
    called on all ranks, the others on rank 0 alone, beside what it does."""

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
        #: What the shards hold, while it is a version to be sent as it is; who is to get it, by the ports where they
        #: meet.
        self._laid_out: Manifest | None = None
        self._belts: dict[int, tuple[Sending, Belt]] = {}
        #: Checksums of what was sent so, by version: a worker may say what it got when the next one is there.
        self._sums: dict[int, dict[str, int]] = {}

    @abstractmethod
    def weights(self) -> AdaptedWeights:
        """The model's of now; each is gathered on all ranks as it is asked for."""

    def forget_weights(self) -> None:
        """Another model comes."""
        self._passing = iter(())
        self._packer, self._packed, self._whole, self._base = Packer(), None, None, None
        self.weights_change()

    def weights_change(self) -> None:
        """From here on the shards hold no version that was to be sent as it is."""
        self._laid_out = None

    @abstractmethod
    def shapes(self) -> Iterable[tuple[str, Tensor]]:
        """Of ``weights``, on the meta device."""

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

    def pack(self, version: int, delta: bool, adapter: bool, stream: bool) -> tuple[Manifest | None, bool]:
        """Pack the weights as ``version`` in rank 0's memory, one tensor after the other; the others gather along. With
        ``stream`` whole ones stay where they are: (manifest, whether they do)."""
        weights = self.weights()
        self.weights_change()
        if stream and not delta and not (adapter and weights.factors):
            self._packed = self._whole = None
            self._laid_out = self._packer.layout(self.shapes(), version)
            self._sums = dict(list(self._sums.items())[-1:]) | {version: {}}
            return self._laid_out, True
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
        return self._packed.manifest if self._packed is not None else None, False

    def holds(self, version: int) -> bool:
        """Whether the shards hold ``version``, which was to be sent as it is."""
        return self._laid_out is not None and self._laid_out.version == version

    def open_stream(self, version: int, members: int, options: GroupOptions) -> Meeting | None:
        """Where so many workers meet for what ``stream`` makes next; None: a newer version is about to come."""
        if not self.holds(version):
            return None
        belt = Belt(maxsize=1)
        sending = self._sending(_taken(belt), members, options)
        self._belts[sending.meeting.port] = (sending, belt)
        return sending.meeting

    def stream(self, version: int, port: int) -> None:
        """All ranks gather ``version``; rank 0 hands it, a bucket at a time, to the group that meets at ``port``. One
        that has ended holds nobody up: the rest is gathered, as the other ranks do, and dropped."""
        assert self._laid_out is not None, "a step came between"
        assert self._laid_out.version == version
        if not self._first:
            _pass(self.weights())
            return
        sending, belt = self._belts.pop(port)
        try:
            for bucket in filled(self._laid_out, self.weights(), self._sums[version]):
                _hand(bucket, belt, sending)
        except BaseException:
            sending.end()
            raise
        finally:
            _hand(None, belt, sending)

    def checksums(self, version: int) -> dict[str, int]:
        """Of what was sent of ``version``, this one or the one before."""
        return dict(self._sums[version])

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
        return self._sending(parcel.buckets(), members, options).meeting

    def _sending(self, buckets: Iterable[Bytes], members: int, options: GroupOptions) -> Sending:
        import ray

        sending = Sending(buckets, members, replace(options, host=ray.util.get_node_ip_address()))
        self._sendings = [one for one in self._sendings if one.under_way] + [sending]
        return sending

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


def _taken(belt: Belt) -> Iterator[Bytes]:
    """What is handed out, until there is no more."""
    while (bucket := belt.get()) is not None:
        yield bucket


def _hand(bucket: Bytes | None, belt: Belt, sending: Sending) -> None:
    """Wait until it is taken, for as long as anyone may take it. None: there are no more."""
    while sending.under_way:
        with suppress(Full):
            belt.put(bucket, timeout=_LOOK)
            return


def _pass(weights: Iterable[tuple[str, Tensor]]) -> tuple[tuple[str, Tensor], ...]:
    """Gather along; nothing is kept."""
    for _ in weights:
        pass
    return ()

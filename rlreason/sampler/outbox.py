"""Versions of the weights that can be delivered, each with what its proof needs, for as long as anyone takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from rlreason.delivery.adapter import AdaptedWeights, KeptBase
from rlreason.delivery.packing import DeliveryError, Packer, Receiver, with_base
from rlreason.delivery.parcel import Departure, HeldWeights, LocalParcel, Parcel
from rlreason.sampler.canary import Canary, Expectation, ProbeError
from rlreason.sampler.handles import Cluster
from rlreason.sampler.jobs import EngineSpec
from rlreason.sampler.worker import Receipt


@dataclass(slots=True)
class Delivery:
    """A version on its way. A worker keeps its own until it is proved, whatever is published meanwhile."""

    parcel: Parcel
    #: Its buckets as the cluster keeps them for its workers; none where they are broadcast.
    stored: Sequence[object]
    expected: Expectation | None
    #: For workers that can't take the changes: all of the same version, once one needed it.
    whole: Delivery | None = None


class Outbox:
    """Packs versions, keeps the newest, and proves what the workers say of them. ``canary`` None: nothing is proved."""

    def __init__(self, cluster: Cluster, canary: Canary | None, packer: Packer, holding: int | None = None) -> None:
        """``holding``: the version that engines have before anything is delivered."""
        self._cluster = cluster
        self._packer = packer
        self._holding = holding
        self._deliveries: dict[int, Delivery] = {}
        #: What an adapter is added to; the trainer's own tensors, where it is in this process.
        self._base: Sequence[tuple[str, Tensor]] | None = None
        #: How many versions are kept, for workers that are to take an older one.
        self.keep = 1
        self.canary = canary

    @property
    def newest(self) -> int | None:
        """The newest version that was published; None before the first."""
        return max(self._deliveries, default=self._holding)

    def pack(self, weights: Iterable[tuple[str, Tensor]], version: int, expected: Sequence[Tensor]) -> Delivery:
        """A delivery that nobody can take yet. Raises ValueError where ``expected`` are not the canary's probes'."""
        parcel: Parcel
        packer = self._packer
        if self.collective and isinstance(weights, HeldWeights):
            parcel = weights.pack(version, packer)
        elif packer.adapter and isinstance(weights, AdaptedWeights) and weights.factors:
            base = self._base = list(weights.base()) if self._base is None else self._base
            packed = packer.pack_adapter(weights.adapter(), weights.factors, version)
            parcel = LocalParcel(packed, lambda: with_base(packed, packer.pack_base(base)))
        else:
            packed = packer.pack(weights, version)
            parcel = LocalParcel(packed, partial(packer.whole, packed))
        proof = self.canary.expect(parcel.manifest, expected) if self.canary is not None else None
        return self._delivery(parcel, proof)

    def _delivery(self, parcel: Parcel, proof: Expectation | None) -> Delivery:
        return Delivery(parcel, () if self.collective else self._cluster.store(parcel.buckets()), proof)

    @property
    def collective(self) -> bool:
        """Whether workers take weights together, by a broadcast."""
        return self._cluster.group is not None

    def send(self, delivery: Delivery, members: int) -> Departure | None:
        """Begin to broadcast it to so many workers; None: a newer version is about to take its place."""
        assert self._cluster.group is not None
        return delivery.parcel.send(members, self._cluster.group)

    def offer(self, delivery: Delivery) -> None:
        """From here on it is the newest; older ones are dropped."""
        version = delivery.parcel.manifest.version
        for old in [known for known in self._deliveries if known <= version - self.keep]:
            del self._deliveries[old]
        self._deliveries[version] = delivery

    def take(self, version: int, held: int | None, *, on_base: bool) -> Delivery | None:
        """``version`` for a worker that holds ``held``, and maybe what an adapter is added to (``on_base``): one that
        can't take the changes, or the adapter alone, gets all of that version.

        None: weights that are held elsewhere are about to be the next version's.
        """
        delivery = self._deliveries[version]
        if delivery.parcel.manifest.fits(held, on_base=on_base):
            return delivery
        if delivery.whole is None:
            parcel = delivery.parcel.whole()
            delivery.whole = None if parcel is None else self._delivery(parcel, delivery.expected)
        return delivery.whole

    def arguments(self, delivery: Delivery) -> tuple[object, ...]:
        """What ``RolloutWorker.deliver`` is called with, and ``receive`` before it is told where its group meets."""
        probes, count = (self.canary.prompts, self.canary.count) if self.canary is not None else ((), 0)
        return (delivery.parcel.manifest, probes, count, self._packer.delta, *delivery.stored)

    def prove(
        self,
        delivery: Delivery,
        receipt: Receipt,
        place: int,
        spec: EngineSpec,
        outputs_of: Callable[[tuple[int, ...]], Mapping[str, Tensor]],
    ) -> float | None:
        """The difference of log-probabilities that worker ``place`` shows; None without a canary.

        ``outputs_of``: what its modules put out for a prompt, asked only for the report. Raises DeliveryError.
        """
        if self.canary is None or delivery.expected is None:
            return None
        try:
            return self.canary.check(receipt, delivery.expected, delivery.parcel.checksums(), place)
        except ProbeError as error:
            raise DeliveryError(f"{error}; {self._explain(delivery, spec, outputs_of)}") from None

    def _explain(
        self, delivery: Delivery, spec: EngineSpec, outputs_of: Callable[[tuple[int, ...]], Mapping[str, Tensor]]
    ) -> str:
        """Where the worker differs from what was delivered; the failure itself is reported whatever happens here."""
        assert self.canary is not None
        try:
            parcel = delivery.parcel if delivery.parcel.manifest.whole else delivery.parcel.whole()
            if parcel is None:
                return "newer weights took their place, so which module differs can't be found out"
            arriving = Receiver().stream(parcel.manifest, parcel.buckets(), keep=False)
            adapted = bool(parcel.manifest.factors)
            weights = dict(KeptBase().merged(parcel.manifest, arriving) if adapted else arriving)
            return self.canary.explain(spec, weights, outputs_of)
        except Exception as error:
            return f"which module differs could not be found out ({type(error).__name__}: {error})"

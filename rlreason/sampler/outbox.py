"""Versions of the weights that can be delivered, each with what its proof needs, for as long as anyone takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from rlreason.sampler.canary import Canary, Expectation, ProbeError
from rlreason.sampler.delivery import DeliveryError, PackedWeights, Packer, Receiver
from rlreason.sampler.handles import Cluster
from rlreason.sampler.jobs import EngineSpec
from rlreason.sampler.worker import Receipt


@dataclass(slots=True)
class Delivery:
    """A version on its way. A worker keeps its own until it is proved, whatever is published meanwhile."""

    packed: PackedWeights
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
        #: How many versions are kept, for workers that are to take an older one.
        self.keep = 1
        self.canary = canary

    @property
    def newest(self) -> int | None:
        """The newest version that was published; None before the first."""
        return max(self._deliveries, default=self._holding)

    def pack(self, weights: Iterable[tuple[str, Tensor]], version: int, expected: Sequence[Tensor]) -> Delivery:
        """A delivery that nobody can take yet. Raises ValueError where ``expected`` are not the canary's probes'."""
        packed = self._packer.pack(weights, version)
        proof = self.canary.expect(packed.manifest, expected) if self.canary is not None else None
        return Delivery(packed, self._cluster.store(packed), proof)

    def offer(self, delivery: Delivery) -> None:
        """From here on it is the newest; older ones are dropped."""
        version = delivery.packed.manifest.version
        for old in [known for known in self._deliveries if known <= version - self.keep]:
            del self._deliveries[old]
        self._deliveries[version] = delivery

    def take(self, version: int, held: int | None) -> Delivery:
        """``version`` for a worker that holds ``held``: one that can't take the changes gets all of that version."""
        delivery = self._deliveries[version]
        base = delivery.packed.manifest.base
        if base is None or base == held:
            return delivery
        if delivery.whole is None:
            whole = self._packer.whole(delivery.packed)
            delivery.whole = Delivery(whole, self._cluster.store(whole), delivery.expected)
        return delivery.whole

    def arguments(self, delivery: Delivery) -> tuple[object, ...]:
        """What ``RolloutWorker.deliver`` is called with."""
        probes, count = (self.canary.prompts, self.canary.count) if self.canary is not None else ((), 0)
        return (delivery.packed.manifest, probes, count, self._packer.delta, *delivery.stored)

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
            return self.canary.check(receipt, delivery.expected, place)
        except ProbeError as error:
            raise DeliveryError(f"{error}; {self._explain(delivery, spec, outputs_of)}") from None

    def _explain(
        self, delivery: Delivery, spec: EngineSpec, outputs_of: Callable[[tuple[int, ...]], Mapping[str, Tensor]]
    ) -> str:
        """Where the worker differs from what was delivered; the failure itself is reported whatever happens here."""
        assert self.canary is not None
        packed = delivery.packed
        if packed.manifest.base is not None:
            packed = self._packer.whole(packed)
        try:
            weights = Receiver().open(packed.manifest, packed.buckets, keep=False)
            return self.canary.explain(spec, weights, outputs_of)
        except Exception as error:
            return f"which module differs could not be found out ({type(error).__name__}: {error})"

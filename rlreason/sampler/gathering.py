"""Who takes a broadcast together: workers that are ready for the same weights, one group at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rlreason.delivery.parcel import Departure
from rlreason.sampler.outbox import Outbox
from rlreason.sampler.pool_worker import PoolWorker
from rlreason.sampler.schedule import Deliver, Draw

#: Groups that break one after the other, with no delivery between them, end the run.
MAX_BROKEN = 6


class Gathering:
    """Begins collective deliveries. A worker that is to take weights waits for those that drew when it became ready, as
    they will take them, too; not for one that is being built, which gets them in a group of its own."""

    def __init__(self) -> None:
        self._departure: Departure | None = None
        self._broken = 0

    def begin(self, outbox: Outbox, workers: Sequence[PoolWorker], version: int) -> None:
        """Start a delivery of ``version`` to the workers that are ready for it, where it is time for one."""
        ready = [worker for worker in workers if worker.call is None and worker.ready is not None]
        if not ready:
            return
        began = min(worker.ready for worker in ready if worker.ready is not None)
        for worker in workers:
            if worker.call is not None and (
                isinstance(worker.op, Deliver) or (isinstance(worker.op, Draw) and worker.since < began)
            ):
                return
        delivery = outbox.take(version, ready[0].version, on_base=ready[0].on_base)
        if delivery is None:
            return
        company = [
            worker for worker in ready if outbox.take(version, worker.version, on_base=worker.on_base) is delivery
        ]
        departure = outbox.send(delivery, len(company))
        if departure is None:
            return
        self.end()
        self._departure = departure
        for member, worker in enumerate(company, start=1):
            worker.op, worker.since, worker.ready = Deliver(version=version), time.monotonic(), None
            worker.delivery = delivery
            arguments = (*outbox.arguments(delivery), departure.meeting, member)
            worker.call = worker.handle.call("receive", *arguments)

    def broke(self, reason: str) -> None:
        """A worker says that its group ended early. Raises RuntimeError where that goes on, and nobody died of it."""
        if self._departure is None:  # it is known already
            return
        failure = self._departure.failure
        self.end()
        self._broken += 1
        if self._broken > MAX_BROKEN:
            raise RuntimeError(
                f"{self._broken} collective deliveries failed and none succeeded; the last: {failure or reason}"
            )

    def arrived(self) -> None:
        """A worker has its weights."""
        self._broken = 0

    def end(self) -> None:
        """A member is gone, or all are: the others need not wait for it."""
        if self._departure is not None:
            self._departure.end()
            self._departure = None

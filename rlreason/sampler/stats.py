"""What a pool of rollout workers counts, as metrics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PoolStats:
    """What happened since the last ``read``: deliveries, their seconds (longest of a worker), the largest difference of
    log-probabilities that the canary saw, workers replaced, completions that arrived twice.

    ``lost`` stays: places without a worker, for good.
    """

    deliveries: int = 0
    delivery_seconds: float = 0.0
    canary: float = 0.0
    replaced: int = 0
    duplicates: int = 0
    lost: int = 0

    def read(self) -> dict[str, float]:
        """As metrics, and start anew."""
        scalars = {"delivery/seconds": self.delivery_seconds, "delivery/canary": self.canary} if self.deliveries else {}
        scalars |= {"workers/replaced": float(self.replaced), "completions/duplicate": float(self.duplicates)}
        scalars |= {"workers/lost": float(self.lost)} if self.lost else {}
        self.deliveries = self.replaced = self.duplicates = 0
        self.delivery_seconds = self.canary = 0.0
        return scalars

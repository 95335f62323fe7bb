"""What actors of one kind need in Ray."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Actors of one kind. Example: ``Need(kind="trainer rank", setting="trainer.ranks", count=4, gpus=1.0)``."""

    kind: str
    #: The recipe's key that says how many there are.
    setting: str
    #: 0: as many as there is room for, at least one.
    count: int
    #: Of each actor; GPUs may be a fraction: two actors then share one. More than one are always of one host.
    cpus: float = 0.0
    gpus: float = 0.0
    #: Room in each place for an actor of another kind.
    guest_cpus: float = 0.0
    guest_gpus: float = 0.0
    #: On different hosts where there are several; else on as few as possible.
    spread: bool = False
    #: Another kind whose places these actors share: actor i is where that kind's actor i is, on its GPU.
    within: str | None = None
    #: On the host of this process, whose model they share the GPU with.
    here: bool = False

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray is asked for as one place."""
        both = (("CPU", self.cpus + self.guest_cpus), ("GPU", self.gpus + self.guest_gpus))
        needs = {key: need for key, need in both if need}
        return needs or {"memory": 1.0}  # a place must ask for something: a byte

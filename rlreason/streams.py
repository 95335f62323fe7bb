"""Random numbers as a pure function of what they are for: no generator state lives between calls.

Integers are made here from Philox's raw 64-bit words, whose sequence numpy promises to keep, not by
``numpy.random.Generator``, whose methods may change their sequence between versions.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.random import Philox

__all__ = ["Stream", "permutation"]

Item = TypeVar("Item")


def _philox(parts: Sequence[object]) -> Philox:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return Philox(key=int.from_bytes(digest))


class Stream:
    """The endless random stream that belongs to ``parts`` (anything JSON can write), from its beginning.

    Example: ``Stream("arithmetic", 0, "train", 17).below(10)`` is the same digit everywhere and always.
    """

    __slots__ = ("_philox",)

    def __init__(self, *parts: object) -> None:
        self._philox = _philox(parts)

    def below(self, limit: int) -> int:
        """A uniform integer in ``[0, limit)``; its bias is below ``limit / 2**64``."""
        return (int(self._philox.random_raw()) * limit) >> 64

    def happens(self, chance: float) -> bool:
        """Whether something of this ``chance`` (0 to 1, in steps of a millionth) comes about."""
        return self.below(1_000_000) < round(chance * 1_000_000)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of ``items``, each as likely."""
        return items[self.below(len(items))]


def permutation(count: int, *parts: object) -> list[int]:
    """The numbers ``0 … count-1`` in the random order that belongs to ``parts``."""
    words = np.asarray(_philox(parts).random_raw(count), dtype=np.uint64)
    return [int(index) for index in np.argsort(words, kind="stable")]

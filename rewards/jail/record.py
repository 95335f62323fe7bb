"""Records between the trusted process and the zygote. Standard library only: loaded in the zygote.

Apart from both, so that the trusted process does not load what runs in the jail.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import NamedTuple

#: Bytes of a record of texts.
RECORD = 2048
_ORDER = struct.Struct("=6q")
_ENDED = struct.Struct("=i8sdqd")
ORDER_BYTES, ENDED_BYTES = _ORDER.size, _ENDED.size


class Order(NamedTuple):
    """What one run may use. Example: ``Order(512, 10, 32, 16, 64, 64)``; see ``jail.Limits``."""

    memory_mb: int
    cpu_seconds: int
    processes: int
    file_mb: int
    tmp_mb: int
    open_files: int

    def encode(self) -> bytes:
        """``ORDER_BYTES`` bytes."""
        return _ORDER.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Order:
        """What ``encode`` gave."""
        return cls(*_ORDER.unpack(data))


class Ended(NamedTuple):
    """How a run ended, see ``run.Report``."""

    exit_code: int
    killed: str
    cpu_seconds: float
    memory_kb: int
    waited_seconds: float

    def encode(self) -> bytes:
        """``ENDED_BYTES`` bytes."""
        code, killed, *rest = self
        return _ENDED.pack(code, killed.encode(), *rest)

    @classmethod
    def decode(cls, data: bytes) -> Ended:
        """What ``encode`` gave."""
        code, killed, *rest = _ENDED.unpack(data)
        return cls(code, killed.rstrip(b"\0").decode(), *rest)


def encode_record(value: Mapping[str, object]) -> bytes:
    """``value`` as a record of texts, which must be short."""
    return json.dumps(value).encode().ljust(RECORD)

"""LiveCodeBench's private test cases: JSON text, pickled, compressed with zlib, in base64.

A pickle is a program, and a data file is no place to run one from. What is in there is one text, so the few opcodes
that a pickled text consists of are read, and anything else is refused.
"""

from __future__ import annotations

import base64
import binascii
import pickletools
import zlib
from typing import Final

from rlreason.data.code_sets.cells import BadRow

#: Bytes of one row's cases, unpacked; the largest of the set has some 200 MB.
LARGEST: Final = 1 << 30
_FRAMING: Final = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"}
_TEXT: Final = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}


def unpacked(packed: str, largest: int = LARGEST) -> str:
    """The text in ``packed``. Nothing of it is executed. Raises BadRow where it is anything but one packed text."""
    try:
        compressed = base64.b64decode(packed, validate=False)
        reader = zlib.decompressobj()
        pickled = reader.decompress(compressed, largest)
        if reader.unconsumed_tail:
            raise BadRow(f"its private test cases are more than {largest >> 20} MB")
        if not reader.eof:
            raise BadRow("its private test cases are cut off")
        return _only_text(pickled)
    except (binascii.Error, zlib.error) as error:
        raise BadRow("its private test cases are neither JSON nor base64 of zlib data") from error


def _only_text(pickled: bytes) -> str:
    found: str | None = None
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _TEXT and found is None and isinstance(argument, str):
                found = argument
            elif opcode.name == "STOP" and found is not None:
                return found
            elif opcode.name not in _FRAMING:
                raise BadRow("its private test cases are a pickle of something else than one text, which is not read")
    except ValueError:
        pass
    raise BadRow("its private test cases are no whole pickle of a text")

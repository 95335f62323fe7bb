"""Records of fixed size between the trusted process and the zygote. Standard library only: loaded in the zygote.

Apart from both, so that the trusted process does not load what runs in the jail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

RECORD = 2048


def encode_record(value: Mapping[str, object]) -> bytes:
    """``value`` as one record of fixed size. Texts in it must be short."""
    return json.dumps(value).encode().ljust(RECORD)

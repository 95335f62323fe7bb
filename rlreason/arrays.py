"""Arrays as fields of frozen nouns: given a dtype when the noun is made, compared entry by entry.

NumPy is imported when the first array is made, so that importing the nouns stays light.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int32]
    FloatArray = npt.NDArray[np.float32]
    BoolArray = npt.NDArray[np.bool_]
    ByteArray = npt.NDArray[np.uint8]


def set_arrays(noun: Any, **arrays: tuple[Any, Any, int | None]) -> None:
    """Set frozen fields from (values, dtype, length); None stays None, a length of None is not checked."""
    import numpy as np

    for name, (values, dtype, length) in arrays.items():
        if values is None:
            continue
        array = np.asarray(values, dtype=dtype)
        if length is not None and len(array) != length:
            raise ValueError(f"{type(noun).__name__}.{name} has {len(array)} entries for {length} tokens")
        object.__setattr__(noun, name, array)


def equal_fields(self: Any, other: Any) -> Any:
    """Field by field; arrays are equal where all of their entries are."""
    if type(self) is not type(other):
        return NotImplemented
    import numpy as np

    for one in fields(self):
        mine, theirs = getattr(self, one.name), getattr(other, one.name)
        if mine is None or theirs is None:
            same = mine is theirs
        else:
            same = bool(np.array_equal(mine, theirs)) if isinstance(mine, np.ndarray) else bool(mine == theirs)
        if not same:
            return False
    return True

"""Columns of a code data set's row as the hub has them. What is wrong is one sentence, without the row's own words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final

Cells = Mapping[str, object]

#: A column that no problem is made of stays in the row where it is a number or a text of at most so many characters.
_SHORT: Final = 200
#: Columns that mean something else in a problem file.
_DEMONSTRATIONS: Final = frozenset({"answer", "completion", "messages", "solution", "tests"})
_NUMBER = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_SECONDS: Final = {"": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 0.001, "milliseconds": 0.001}
_MEGABYTES: Final = {
    "": 1.0,
    "mb": 1.0,
    "mib": 1.0,
    "megabyte": 1.0,
    "megabytes": 1.0,
    "gb": 1024.0,
    "gigabytes": 1024.0,
    "kb": 1 / 1024,
    "bytes": 2.0**-20,
}


class BadRow(ValueError):
    """A row that no problem can be made of. Its text is the reason, the same for all rows that have it."""


class HubRow:
    """One row of a data set; remembers which columns were read.

    Example: ``HubRow({"task_id": "HumanEval/0", "prompt": "def f(): ..."}).text("prompt")``.
    """

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._read: set[str] = set()

    def value(self, *names: str) -> object:
        """The first of the columns ``names`` that the row has and that is not null. Raises BadRow where it has none."""
        found = self.optional(*names)
        if found is None:
            have = ", ".join(sorted(map(str, self._cells)))
            raise BadRow(f"no {' or '.join(map(repr, names))} in it (columns: {have or 'none'})")
        return found

    def optional(self, *names: str) -> object:
        """The same; None where it has none of them."""
        self._read.update(names)
        return next((self._cells[name] for name in names if self._cells.get(name) is not None), None)

    def text(self, *names: str) -> str:
        """A text that is not empty. A number is written out."""
        value = self.value(*names)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise BadRow(f"{names[0]!r} is a {type(value).__name__} and must be text")
        if not value.strip():
            raise BadRow(f"{names[0]!r} is empty")
        return value

    def optional_text(self, *names: str) -> str:
        """A text, or "" where there is none."""
        value = self.optional(*names)
        return value if isinstance(value, str) else ""

    def structure(self, *names: str) -> object:
        """A column of nested data, which many sets write as JSON text."""
        return decoded(self.value(*names), names[0])

    def rest(self) -> dict[str, object]:
        """Columns that were not read and say something in short, such as a difficulty, a date or a pass rate."""
        short: dict[str, object] = {}
        for name, value in self._cells.items():
            if name in self._read or name in _DEMONSTRATIONS:
                continue
            if isinstance(value, date):  # of which datetime is one
                short[name] = value.isoformat()
            elif isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= _SHORT):
                short[name] = value
        return short


def decoded(value: object, name: str) -> object:
    """``value``, read where it is JSON text. Raises BadRow naming the column ``name``."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise BadRow(f"{name!r} is empty")
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(f"{name!r} is no JSON text") from None


def mapping(value: object, name: str) -> Cells:
    """``value`` as an object. Raises BadRow."""
    if not isinstance(value, Mapping):
        raise BadRow(f"{name!r} is a {type(value).__name__} and must be an object")
    return value


def sequence(value: object, name: str) -> Sequence[object]:
    """``value`` as a list. Raises BadRow."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise BadRow(f"{name!r} is a {type(value).__name__} and must be a list")
    return value


def texts(value: object, name: str) -> list[str]:
    """``value`` as a list of texts. Raises BadRow."""
    items = sequence(value, name)
    found = [item for item in items if isinstance(item, str)]
    if len(found) < len(items):
        raise BadRow(f"{name!r} must be a list of texts")
    return found


def seconds(value: object) -> float | None:
    """A limit of time in seconds: ``2``, ``"2.0 seconds"``, ``"500ms"``, ``{"seconds": 2, "nanos": 500000000}``.

    None where there is none, or where it says nothing that can be read: the verifier's own limit holds then.
    """
    if isinstance(value, Mapping):
        parts = [value.get("seconds"), value.get("nanos")]
        whole, nanos = (part if isinstance(part, int | float) else 0 for part in parts)
        return _positive(whole + nanos / 1e9)
    return _positive(_quantity(value, _SECONDS))


def megabytes(value: object) -> float | None:
    """A limit of memory in MiB: ``256``, ``"256.0 megabytes"``, ``"1 GB"``. None as in ``seconds``."""
    return _positive(_quantity(value, _MEGABYTES))


def _quantity(value: object, units: Mapping[str, float]) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    found = _NUMBER.match(value) if isinstance(value, str) else None
    factor = units.get(found[2].lower()) if found else None
    return float(found[1]) * factor if found and factor is not None else None


def _positive(value: float | None) -> float | None:
    return value if value is not None and 0 < value < float("inf") else None

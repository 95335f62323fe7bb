"""Numbers as a reader wants them: units, thousands, a narrow no-break space before a unit."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime

#: Between a number and its unit, so that they never part at a line's end.
NARROW = "\u202f"
MINUS = "\u2212"

#: Unicode categories that show nothing by themselves: control, format, surrogate, private use, unassigned, and the
#: two separators that end a line.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

KINDS = {
    "sft": "SFT",
    "grpo": "GRPO",
    "reject": "rejection sampling",
    "distill": "distillation",
    "opd": "on-policy distillation",
    "eval": "evaluation",
}


def visible(text: str) -> str:
    """The text with every hidden character written out: a bidi override becomes `\\u202e` in plain sight.

    What is left is text that UTF-8, HTML and XML can hold.
    """
    return "".join(
        f"\\u{ord(char):04x}" if char not in "\n\t" and unicodedata.category(char) in HIDDEN else char for char in text
    )


def percent(value: float | None, digits: int | None = None) -> str:
    """0.814 as `81 %`; below ten per cent one decimal, unless `digits` says otherwise."""
    if value is None:
        return "–"
    shown = value * 100
    if digits is None:
        digits = 1 if 0 < abs(shown) < 9.95 else 0
    return f"{shown:.{digits}f}{NARROW}%".replace("-", MINUS)


def points(value: float, digits: int = 1) -> str:
    """A difference of two shares in percentage points, always signed: `+37.2`."""
    return f"{value * 100:+.{digits}f}".replace("-", MINUS)


def count(value: float | None) -> str:
    """A whole number with thousands set off: `1,312,640`."""
    return "–" if value is None else f"{value:,.0f}".replace("-", MINUS)


def big(value: float | None) -> str:
    """Three figures and a magnitude: `1.31 M`, `788 k`, `512`."""
    if value is None:
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            return f"{value / size:.3g}{NARROW}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """`48 s`, `3 min 52 s`, `7 h 05 min`, `2 d 3 h`."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f}{NARROW}s"
    total = round(seconds)
    minutes, rest = divmod(total, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24}{NARROW}d {hours % 24}{NARROW}h"
    if hours:
        return f"{hours}{NARROW}h {minutes_left:02d}{NARROW}min"
    return f"{minutes}{NARROW}min {rest:02d}{NARROW}s" if minutes else f"{rest}{NARROW}s"


def moment(stamp: str | float | None) -> str:
    """An ISO-8601 text or unix seconds as `2026-09-21 14:00 UTC`; what can't be read is shown as it is."""
    if stamp is None or stamp == "":
        return "–"
    try:
        if isinstance(stamp, str):
            read = datetime.fromisoformat(stamp)
            read = read if read.tzinfo else read.replace(tzinfo=UTC)
        else:
            read = datetime.fromtimestamp(stamp, UTC)
        return read.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (ValueError, OverflowError, OSError):
        return str(stamp)


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 step`, `70 steps`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def kind(name: str) -> str:
    """A stage kind in words."""
    return KINDS.get(name, name)

"""Bytes and seconds as a plan says them."""

from __future__ import annotations

GIGA = 1e9


def gb(count: float) -> str:
    """Example: ``gb(3.44e9) == "3.4 GB"``."""
    if count >= GIGA:
        return f"{count / GIGA:,.1f} GB"
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def duration(seconds: float) -> str:
    """Example: ``duration(150.0) == "2.5 min"``."""
    if seconds < 120:
        return f"{seconds:,.3g} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"

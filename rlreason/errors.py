"""Errors that are the user's to fix, and the hint that helps to fix them.

This module imports nothing of the package, so that every part of it may raise
`UsageError` without a cycle.
"""

import difflib
from collections.abc import Iterable

__all__ = ["UsageError", "nearest"]


class UsageError(ValueError):
    """Bad input by the user: the cli prints it as one line and exits 2.

    The message names what is wrong, where it was given, and what to do about it.
    """


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint that names the allowed word most like `word`, or `""` if none is like it.

    Example: `nearest("step", ["steps", "seed"])` is `"; did you mean 'steps'?"`.
    """
    candidates = list(allowed)
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if not found:
        # A difference of case alone scores low in difflib for short words.
        by_lower = {candidate.lower(): candidate for candidate in candidates}
        found = [by_lower[name] for name in [word.lower()] if name in by_lower]
    return f"; did you mean {found[0]!r}?" if found else ""

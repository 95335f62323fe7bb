"""Errors that are the user's to fix, and the hint that helps to fix them.

This module imports nothing of the package, so that every part of it may raise
`UsageError` without a cycle.
"""

import difflib
from collections.abc import Iterable

__all__ = ["HealthStop", "UsageError", "nearest", "suggest"]


class UsageError(ValueError):
    """Bad input by the user: the cli prints it as one line and exits 2.

    The message names what is wrong, where it was given, and what to do about it.
    """


class HealthStop(RuntimeError):
    """A stage that can't have learnt anything is stopped: the cli prints the reason, with its evidence, and exits 1.

    Example: "stage grpo, step 0: every verdict is BROKEN. The first: judge.py:f: KeyError: 'no' (judge.py:9 in f)".
    """


def nearest(word: str, allowed: Iterable[str]) -> str:
    """A hint that names the allowed word most like `word`, or `""` if none is like it.

    Example: `nearest("step", ["steps", "seed"])` is `"; did you mean 'steps'?"`.
    """
    found = _closest(word, list(allowed))
    return f"; did you mean {found!r}?" if found else ""


def suggest(word: str, allowed: Iterable[str]) -> str:
    """The same hint before the list of all that is allowed: `"did you mean 'steps'? allowed: seed, steps"`."""
    candidates = sorted(allowed)
    found = _closest(word, candidates)
    return f"{f'did you mean {found!r}? ' if found else ''}allowed: {', '.join(candidates) or 'none'}"


def _closest(word: str, candidates: list[str]) -> str | None:
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if found:
        return found[0]
    # A difference of case alone scores low in difflib for short words.
    return {candidate.lower(): candidate for candidate in candidates}.get(word.lower())

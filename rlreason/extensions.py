"""What a recipe may name beside what ships: a tracker, a health rule or a data source of one's own.

A name is one of three: what an installed package offers in a group of entry points, ``pkg.mod:name``, or
``path/file.py:name``. Rewards are named in the same ways and have a registry of their own (``rewards/registry.py``).
docs/extending.md has an example of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rlreason.errors import UsageError, nearest
from rlreason.rewards import plugins

#: Groups of entry points: ``[project.entry-points."rlreason.trackers"]`` in a package's pyproject.toml.
TRACKERS, DATA, HEALTH = "rlreason.trackers", "rlreason.data", "rlreason.health"


def offered(group: str) -> tuple[str, ...]:
    """The names that installed packages offer in ``group``, in alphabetical order."""
    return tuple(sorted(set(metadata.entry_points(group=group).names)))


def is_code(name: str) -> bool:
    """Whether ``name`` is ``pkg.mod:name`` or ``path/file.py:name``; a hub id, ``owner/name:config``, is not."""
    place, colon, inside = name.rpartition(":")
    return bool(colon) and inside.isidentifier() and (place.endswith(".py") or "/" not in place) and ":" not in place


def check(group: str, name: str, shipped: Iterable[str] = ()) -> None:
    """Raise ValueError where ``name`` is neither shipped, nor offered by an installed package, nor written as code.

    Nothing is imported: a package that is missing, or code that fails, is said by ``load``.
    """
    known = [*shipped, *offered(group)]
    if name not in known and not is_code(name):
        there = f"is none of {', '.join(known)}, nor" if known else "is offered by no installed package, and is not"
        raise ValueError(
            f"{name!r} {there} the name of your own code, path/file.py:name or pkg.mod:name "
            f"(docs/extending.md){nearest(name, known)}"
        )


def label(name: str) -> str:
    """A name for screens and files: without the folders of a ``path/file.py:name``."""
    return plugins.parse(name).label if is_code(name) else name


def located(name: str, file: Path | None) -> str:
    """``name`` with ``file`` in place of its own, where there is one: the copy that a run has of it."""
    return name if file is None else replace(plugins.parse(name), place=str(file)).spec


def load(group: str, name: str, key: str) -> Callable[..., Any]:
    """What ``name`` stands for, imported. Raises UsageError naming ``key`` and why it can't be had."""
    if is_code(name):
        try:
            return plugins.load(name)
        except ValueError as error:
            raise UsageError(f"{key}: {error}") from error
    for entry in metadata.entry_points(group=group, name=name):
        try:
            found: Callable[..., Any] = entry.load()
        except Exception as error:
            raise UsageError(
                f"{key}: {name!r} is {entry.value} of an installed package, which did not import: "
                f"{type(error).__name__}: {error}"
            ) from error
        return found
    raise UsageError(f"{key}: no installed package offers {name!r} in the group {group}")

"""Installed packages that jailed programs and tests may import: where they lie, with what they need themselves."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

#: What tests of public data sets import: for the judge where installed.
FOR_TESTS = ("numpy", "pytest", "hypothesis")
#: What answers to public problems import (APPS, AtCoder; LeetCode): for programs where installed, unless a recipe says.
USUAL = ("numpy", "sortedcontainers")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Things beside the modules of a distribution.
_IGNORED = ("..", "__pycache__")


class NoSuchPackage(ValueError):
    """A package that is not installed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """Example: ``Packages(program={}, tests={"numpy": "/…/site-packages/numpy"}, paths=("/…/site-packages/numpy",))``.

    ``program`` and ``tests``: top-level module to its place. ``paths``: all that has to be visible in the jail.
    """

    program: dict[str, str]
    tests: dict[str, str]
    paths: tuple[str, ...]

    def if_named(self, texts: Iterable[str]) -> Packages:
        """These packages where one of ``texts`` names a module of theirs, else none.

        Each path in view costs every run a little, and few programs import any.
        """
        names = sorted({*self.program, *self.tests})
        word = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b")
        return self if names and any(map(word.search, texts)) else NONE


NONE = Packages(program={}, tests={}, paths=())


@lru_cache(maxsize=16)
def locate(names: tuple[str, ...] | None) -> Packages:
    """Packages ``names`` for programs, None for ``USUAL``, with ``FOR_TESTS`` for judges. Raises NoSuchPackage."""
    program = _installed(USUAL) if names is None else _places(names)
    for_tests = _installed(FOR_TESTS)
    everything = {**for_tests, **program}
    return Packages(
        program=_modules(program), tests=_modules(everything), paths=tuple(sorted(set(everything.values())))
    )


def _installed(names: Sequence[str]) -> dict[str, str]:
    """As ``_places``, without those that are not here."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found.update(_places((name,)))
        except NoSuchPackage:
            continue
    return found


def _modules(places: dict[str, str]) -> dict[str, str]:
    """Those that can be imported by name; folders of shared libraries lie beside them."""
    return {name: place for name, place in places.items() if name.isidentifier()}


def _places(names: Sequence[str]) -> dict[str, str]:
    """Top-level name to path, of distributions and of all that they require. Raises NoSuchPackage."""
    found: dict[str, str] = {}
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in names:
                raise NoSuchPackage(f"package {name!r} is not installed here: pip install {name}") from None
            continue  # an optional requirement, or one of another platform
        found.update(_top_level(distribution))
        waiting += _requirements(distribution)
    return found


def _top_level(distribution: importlib.metadata.Distribution) -> dict[str, str]:
    record = distribution.read_text("RECORD")  # as lines: thousands of files, of which only the first folder counts
    files = record.splitlines() if record is not None else [str(file) for file in distribution.files or ()]
    found: dict[str, str] = {}
    for line in {file.split(",", 1)[0].partition("/")[0] + "/" * ("/" in file) for file in files}:
        top = line.rstrip("/")
        alone = top == line
        if top in _IGNORED or (alone and not top.endswith((".py", ".so"))):
            continue
        place = Path(str(distribution.locate_file(top))).resolve()
        found[top.partition(".")[0] if alone else top] = str(place)
    return found


def _requirements(distribution: importlib.metadata.Distribution) -> list[str]:
    names = []
    for text in distribution.requires or ():
        match = _NAME.match(text)
        if match and "extra ==" not in text:
            names.append(match[0])
    return names

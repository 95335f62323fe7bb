"""Where problems may be: a task, a file, a hub id, the first of several that there is, or several together."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["AnyOf", "PassRate", "Place", "Where", "names_in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOf:
    """The first of several places that there is. Example: ``AnyOf(any_of=("gsm8k.jsonl", "openai/gsm8k:main"))``."""

    #: A recipe's table is this class: pydantic refuses unknown keys.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    any_of: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """Rows whose number in ``column`` is from ``min`` to ``max`` are trained on.

    Example: ``PassRate(column="llama8b_solve_rate", min=0.1, max=0.9)``. DAPO (arXiv 2503.14476) and others drop what
    is always or never solved, because it teaches nothing.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    #: A column of numbers.
    column: str
    #: Smallest that is trained on.
    min: float = 0.0
    #: Largest that is trained on.
    max: float = 1.0


#: A task's name, a file, a hub id, or the first of several that there is.
Place = str | AnyOf
#: One place, or several whose problems are taken together.
Where = Place | tuple[Place, ...]


def names_in(where: Where) -> Iterator[str]:
    """Every task, file and hub id that ``where`` names."""
    for place in where if isinstance(where, tuple) else (where,):
        yield from (place,) if isinstance(place, str) else place.any_of

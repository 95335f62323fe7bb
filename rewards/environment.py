"""Options of a reward that are secrets: named in the recipe, read from the environment where the reward runs.

``{"weight": 0.5, "api_key": {"env": "JUDGE_KEY"}}``
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FromEnvironment:
    """The value of an environment variable. Example: ``FromEnvironment("JUDGE_KEY").read()``."""

    name: str

    def read(self) -> str:
        """The value. Raises ValueError where the variable is not set."""
        try:
            return os.environ[self.name]
        except KeyError:
            raise ValueError(f"the environment has no variable {self.name}") from None


def from_option(value: object) -> object:
    """An option's value as the recipe has it; ``{"env": "NAME"}`` becomes a ``FromEnvironment``."""
    if isinstance(value, Mapping) and set(value) == {"env"} and isinstance(value["env"], str):
        return FromEnvironment(value["env"])
    return value


def to_argument(value: object) -> object:
    """What the reward is called with. Raises ValueError where a variable is not set."""
    return value.read() if isinstance(value, FromEnvironment) else value


def without_secrets(text: str, options: Iterable[tuple[str, object]]) -> str:
    """``text`` with the values that ``options`` take from the environment as ``***``."""
    for _, value in options:
        secret = os.environ.get(value.name) if isinstance(value, FromEnvironment) else None
        if secret:
            text = text.replace(secret, "***")
    return text

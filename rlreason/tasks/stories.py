"""The stories of the task ``word_problems``, read from ``stories.toml``, and who and what they are about."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from rlreason.tasks.task import Split

__all__ = ["NAMES", "THINGS", "Story", "stories"]


@dataclass(frozen=True, slots=True)
class Story:
    """``slots``: the given numbers, one letter each. ``steps``: ``"a + b = c"``, the last one is the answer."""

    name: str
    slots: str
    steps: tuple[str, ...]
    tellings: tuple[str, ...]


NAMES = (
    ("Mia", "she"),
    ("Ben", "he"),
    ("Lena", "she"),
    ("Omar", "he"),
    ("Ruth", "she"),
    ("Ivan", "he"),
    ("Sara", "she"),
    ("Paul", "he"),
    ("Nora", "she"),
    ("Hugo", "he"),
    ("Ada", "she"),
    ("Leo", "he"),
)
THINGS = ("apples", "marbles", "stickers", "books", "coins", "pencils", "shells", "cards", "stamps", "buttons")


@cache
def stories() -> Mapping[Split, tuple[Story, ...]]:
    """The stories that each split tells, in the file's order; none is in both."""
    text = resources.files("rlreason.tasks").joinpath("stories.toml").read_text(encoding="utf-8")
    told = tomllib.loads(text)
    splits: tuple[Split, ...] = ("train", "heldout")
    return {
        split: tuple(
            Story(name, row["slots"], tuple(row["steps"]), tuple(row["tellings"])) for name, row in told[split].items()
        )
        for split in splits
    }

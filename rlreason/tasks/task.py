"""Procedural tasks: the part that all of them share.

A problem is a pure function of (task, options, seed, split, index). Train and held-out problems are disjoint by
construction, for all seeds and options: a hash of the problem's content says which split it may belong to (or the task
itself does), and the draw goes on along the same counter stream until the content belongs to the split asked for.

Held-out problems don't repeat: problem i is drawn on along its stream past the contents of problems 0 … i-1, so it
still depends only on the options, the seed and i. Training problems may repeat, as a finite task must.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlreason.errors import UsageError, nearest
from rlreason.streams import Stream
from rlreason.types import Problem, Reference

__all__ = ["Draft", "Maker", "Options", "Split", "Task", "parse_options", "split_of"]

Split = Literal["train", "heldout"]

#: One content in this many is held out.
HELDOUT_SHARE = 8
#: Draws without a usable problem after which the options are taken to allow no more of them.
PATIENCE = 20_000


class Options(BaseModel):
    """Base of every task's options: unknown ones are refused, and ``"3"`` is not 3."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A problem before it has a name. ``content`` is the same for problems that are the same in disguise; ``split``:
    where the task itself says what is held out, not a hash of the content."""

    content: str
    prompt: str
    reference: Reference
    thought: str
    answer: str
    tags: tuple[str, ...] = ()
    split: Split | None = None


class Maker(Protocol):
    """What one task adds: ``rlreason.tasks.arithmetic`` is a short example."""

    @property
    def name(self) -> str: ...

    @property
    def verifier(self) -> str: ...

    @property
    def alphabet(self) -> str:
        """Every character that prompts, thoughts and answers can hold, each once."""
        ...

    @property
    def options(self) -> Options: ...

    def identity(self, split: Split) -> Mapping[str, object]:
        """The options that the split's problems depend on: they key the random stream."""
        ...

    def draw(self, stream: Stream, train_index: int | None) -> Draft:
        """One problem. ``train_index`` is how many came before it in training, None for a held-out problem."""
        ...


def split_of(content: str) -> Split:
    """The split that a problem of this content may belong to, whatever the seed."""
    digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
    return "train" if int.from_bytes(digest) % HELDOUT_SHARE else "heldout"


class Task:
    """An endless supply of training problems and a finite one of held-out problems.

    Example: ``make_task("arithmetic", {}, seed=0).problem("train", 17).id == "arithmetic-train-17"``.
    """

    def __init__(self, maker: Maker, seed: int) -> None:
        self.maker = maker
        self.seed = seed
        # Only a cache: what it holds depends on nothing but the options and the seed.
        self._heldout: list[Problem] = []
        self._contents: set[str] = set()

    @property
    def name(self) -> str:
        """The task's name in a recipe."""
        return self.maker.name

    @property
    def alphabet(self) -> str:
        """Every character of prompts, thoughts and answers, tags left out: makes a character tokenizer."""
        return self.maker.alphabet

    def problem(self, split: Split, index: int) -> Problem:
        """Problem ``index`` (from 0) of ``split``, the same whenever and in whatever order it is asked for.

        Raises UsageError where the options allow no such problem.
        """
        if index < 0:
            raise ValueError(f"index is {index}: problems are counted from 0")
        if split == "train":
            return self._named(self._draw("train", index), "train", index)
        while len(self._heldout) <= index:
            position = len(self._heldout)
            draft = self._draw("heldout", position)
            self._contents.add(draft.content)
            self._heldout.append(self._named(draft, "heldout", position))
        return self._heldout[index]

    def _draw(self, split: Split, index: int) -> Draft:
        stream = Stream(self.name, self.maker.identity(split), self.seed, split, index)
        taken = self._contents if split == "heldout" else frozenset()
        for _ in range(PATIENCE):
            draft = self.maker.draw(stream, index if split == "train" else None)
            if (draft.split or split_of(draft.content)) == split and draft.content not in taken:
                return draft
        raise UsageError(
            f"{self.name}: these options allow only {len(taken)} held-out problems; ask for fewer, or widen the options"
            if taken
            else f"{self.name}: these options allow no {split} problem; widen them"
        )

    def _named(self, draft: Draft, split: Split, index: int) -> Problem:
        return Problem(
            id=f"{self.name}-{split}-{index}",
            prompt=draft.prompt,
            verifier=self.maker.verifier,
            reference=draft.reference,
            source=self.name,
            tags=draft.tags,
            thought=draft.thought,
            answer=draft.answer,
        )


Model = TypeVar("Model", bound=Options)


def parse_options(model: type[Model], task: str, options: Mapping[str, object]) -> Model:
    """``options`` checked by ``model``. Raises UsageError naming the task, the option and what is allowed."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
    option = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(model.model_fields)
        raise UsageError(f"{task}: unknown option {option!r}{nearest(option, model.model_fields)} (allowed: {allowed})")
    message = first["msg"].removeprefix("Value error, ")
    raise UsageError(f"{task}: option {option!r}: {message}" if option else f"{task}: {message}")

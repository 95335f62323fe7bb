"""Task ``word_problems``: short stories about numbers, for models that can read.

``Mia has 14 apples. She gives 5 of them to Ben and buys 6 more. How many apples does she have now?`` has the thought
``14 - 5 = 9. 9 + 6 = 15.`` and the answer ``15``.

Nothing that is held out can be learnt by heart: held-out problems tell stories that training never tells
(``stories.toml`` has them apart), and each has a given number that ends in 7, as no given number of training does.
Names, things and the other numbers are drawn alike.
"""

import re
from collections.abc import Mapping

from pydantic import Field

from rlreason.errors import UsageError
from rlreason.streams import Stream
from rlreason.tasks.stories import NAMES, THINGS, Story, stories
from rlreason.tasks.task import PATIENCE, Draft, Options, Split, Task, parse_options

__all__ = ["WordProblemsOptions", "word_problems"]

#: The last digit that given numbers have only in held-out problems.
_HELDOUT_DIGIT = 7
#: Draws of numbers for one story before another is taken.
_TRIES = 200
_STEP = re.compile(r"(\w+) ([-+*/]) (\w+) = (\w+)")


class WordProblemsOptions(Options):
    """Options of the task. All numbers are positive and whole."""

    #: Steps that a problem takes: from `min_steps` to `max_steps`.
    min_steps: int = Field(default=1, ge=1, le=3)
    max_steps: int = Field(default=3, ge=1, le=3)
    #: Given amounts are from 2 to this; counts of boxes, days and the like from 2 to 9.
    max_number: int = Field(default=30, ge=18, le=1000)
    #: No result on the way is larger than this.
    max_result: int = Field(default=200, ge=20)


class _WordProblems:
    name = "word_problems"
    verifier = "math"
    alphabet = "".join(map(chr, range(32, 127)))

    def __init__(self, options: WordProblemsOptions) -> None:
        if options.max_steps < options.min_steps:
            raise UsageError(
                f"word_problems: max_steps={options.max_steps} is below min_steps={options.min_steps}; raise it"
            )
        self.options = options
        self._stories = {
            split: [one for one in told if options.min_steps <= len(one.steps) <= options.max_steps]
            for split, told in stories().items()
        }

    def identity(self, split: Split) -> Mapping[str, object]:
        return self.options.model_dump()

    def draw(self, stream: Stream, train_index: int | None) -> Draft:
        heldout = train_index is None
        for _ in range(PATIENCE // _TRIES):
            story = stream.pick(self._stories["heldout" if heldout else "train"])
            filled = self._fill(story, stream, heldout)
            if filled is not None:
                break
        else:
            raise UsageError("word_problems: no problem found with these options; raise max_result")
        given, steps = filled
        first = stream.below(len(NAMES))
        other = (first + 1 + stream.below(len(NAMES) - 1)) % len(NAMES)
        words = {
            "name": NAMES[first][0],
            "they": NAMES[first][1],
            "They": NAMES[first][1].capitalize(),
            "other": NAMES[other][0],
            "things": stream.pick(THINGS),
        }
        return Draft(
            content=f"word_problems {story.name} {[given[slot] for slot in story.slots]}",
            prompt=stream.pick(story.tellings).format(**words, **given),
            reference=str(steps[-1][1]),
            thought=" ".join(f"{text}." for text, _ in steps),
            answer=str(steps[-1][1]),
            tags=(f"steps={len(steps)}", f"story={story.name}"),
            split="heldout" if heldout else "train",
        )

    def _fill(self, story: Story, stream: Stream, heldout: bool) -> tuple[dict[str, int], list[tuple[str, int]]] | None:
        """Numbers for a story and its steps; None where none are found soon."""
        for _ in range(_TRIES):
            given = {slot: self._number(slot, stream) for slot in story.slots}
            marked = any(number % 10 == _HELDOUT_DIGIT for number in given.values())
            steps = self._work_out(story, given) if marked == heldout else None
            if steps is not None:
                return given, steps
        return None

    def _number(self, slot: str, stream: Stream) -> int:
        """Slots in small letters are amounts, in capitals counts."""
        return 2 + stream.below(8 if slot.isupper() else self.options.max_number - 1)

    def _work_out(self, story: Story, given: Mapping[str, int]) -> list[tuple[str, int]] | None:
        """Each step as text with its result; None where one is no positive whole number, or too large."""
        known = dict(given)
        found = []
        for step in story.steps:
            match = _STEP.fullmatch(step)
            assert match is not None, step
            left, sign, right, name = match.groups()
            a, b = (known[one] if one in known else int(one) for one in (left, right))
            value, remainder = divmod(a, b) if sign == "/" else (a + b if sign == "+" else a - b, 0)
            if sign == "*":
                value = a * b
            if remainder or not 0 < value <= self.options.max_result or (sign == "/" and value < 2):
                return None
            known[name] = value
            found.append((f"{a} {sign} {b} = {value}", value))
        return found


def word_problems(options: Mapping[str, object], seed: int) -> Task:
    """The task with ``options`` (see `WordProblemsOptions`). Raises UsageError naming a wrong option."""
    return Task(_WordProblems(parse_options(WordProblemsOptions, "word_problems", options)), seed)

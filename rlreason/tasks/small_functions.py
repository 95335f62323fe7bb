"""Task ``small_functions``: small Python functions on lists, asked for in a sentence, for models that can read.

``Write a Python function `total` that takes a list of integers, keeps those that are even, squares each of them and
returns their sum. For example: total([3, 4, -2]) == 20`` has the answer
``def total(numbers): return sum(x * x for x in numbers if x % 2 == 0)``. The verifier runs the answer on the example
and on lists that the prompt does not show.

A function keeps some numbers, changes each, and returns one thing of them. Which combinations of the three are held
out depends on a hash of the combination alone, so what a held-out problem asks is never asked in training, with
whatever numbers; only its parts are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import Field

from rlreason.errors import UsageError
from rlreason.streams import Stream
from rlreason.tasks.task import PATIENCE, Draft, Options, Split, Task, parse_options, split_of

__all__ = ["SmallFunctionsOptions", "small_functions"]

_NAMES = ("solve", "compute", "process", "total", "transform", "evaluate", "handle", "work_out")


class SmallFunctionsOptions(Options):
    """Options of the task. Numbers in lists are from -9 to 20, those in the text from 2 to 9."""

    #: Lists that the verifier tries beside the example; the empty list is one of them.
    hidden: int = Field(default=6, ge=2, le=100)


@dataclass(frozen=True, slots=True)
class _Keep:
    """Which numbers stay. ``k`` is in text and code where the function needs a number."""

    text: str
    code: str
    run: Callable[[int, int], bool]


@dataclass(frozen=True, slots=True)
class _Change:
    """What becomes of each."""

    text: str
    code: str
    run: Callable[[int, int], int]


@dataclass(frozen=True, slots=True)
class _End:
    """What is returned of them. ``code`` has ``{each}`` where the numbers come one after the other."""

    text: str
    code: str
    run: Callable[[list[int]], int | list[int]]
    #: Whether it depends on what the numbers are, not only on how many.
    changes: bool = True


_KEEPS = (
    _Keep("", "", lambda x, k: True),
    _Keep("keeps those that are even", "x % 2 == 0", lambda x, k: x % 2 == 0),
    _Keep("keeps those that are odd", "x % 2 == 1", lambda x, k: x % 2 == 1),
    _Keep("keeps the positive ones", "x > 0", lambda x, k: x > 0),
    _Keep("keeps the negative ones", "x < 0", lambda x, k: x < 0),
    _Keep("keeps those greater than {k}", "x > {k}", lambda x, k: x > k),
    _Keep("keeps those less than {k}", "x < {k}", lambda x, k: x < k),
    _Keep("keeps those divisible by {k}", "x % {k} == 0", lambda x, k: x % k == 0),
    _Keep("leaves out those equal to {k}", "x != {k}", lambda x, k: x != k),
)
_CHANGES = (
    _Change("", "x", lambda x, k: x),
    _Change("doubles each of them", "2 * x", lambda x, k: 2 * x),
    _Change("squares each of them", "x * x", lambda x, k: x * x),
    _Change("takes the absolute value of each", "abs(x)", lambda x, k: abs(x)),
    _Change("adds {k} to each of them", "x + {k}", lambda x, k: x + k),
    _Change("subtracts {k} from each of them", "x - {k}", lambda x, k: x - k),
    _Change("multiplies each of them by {k}", "{k} * x", lambda x, k: k * x),
)
_ENDS = (
    _End("returns the list of them", "[{each}]", list),
    _End("returns their sum", "sum({each})", sum),
    _End("returns how many there are", "len([{each}])", len, changes=False),
    _End("returns the largest, or 0 if there is none", "max(({each}), default=0)", lambda xs: max(xs, default=0)),
    _End("returns the smallest, or 0 if there is none", "min(({each}), default=0)", lambda xs: min(xs, default=0)),
    _End("returns them sorted in descending order", "sorted(({each}), reverse=True)", lambda xs: sorted(xs)[::-1]),
)


@dataclass(frozen=True, slots=True)
class _Function:
    keep: _Keep
    change: _Change
    end: _End
    #: The number in ``keep`` and the one in ``change``, where they have one.
    kept_by: int
    changed_by: int

    def __call__(self, numbers: list[int]) -> int | list[int]:
        kept = [x for x in numbers if self.keep.run(x, self.kept_by)]
        return self.end.run([self.change.run(x, self.changed_by) for x in kept])

    @property
    def combination(self) -> str:
        return " | ".join((self.keep.text, self.change.text, self.end.text))

    @property
    def parts(self) -> list[str]:
        """What it does, in order, in words."""
        said = (self.keep.text.format(k=self.kept_by), self.change.text.format(k=self.changed_by), self.end.text)
        return [one for one in said if one]

    @property
    def steps(self) -> list[str]:
        """What it does, in order, as code."""
        kept, changed = self.keep.code.format(k=self.kept_by), self.change.code.format(k=self.changed_by)
        return [*([f"if {kept}"] if kept else []), *([changed] if self.change.text else [])]

    def source(self, name: str) -> str:
        condition = self.keep.code.format(k=self.kept_by)
        each = f"{self.change.code.format(k=self.changed_by)} for x in numbers"
        each += f" if {condition}" if condition else ""
        return f"def {name}(numbers):\n    return {self.end.code.format(each=each)}"

    def simpler(self) -> list["_Function"]:
        """The same without what it keeps, and without what it changes, where it does."""
        found = []
        if self.keep.text:
            found.append(_Function(_KEEPS[0], self.change, self.end, self.kept_by, self.changed_by))
        if self.change.text:
            found.append(_Function(self.keep, _CHANGES[0], self.end, self.kept_by, self.changed_by))
        return found


class _SmallFunctions:
    name = "small_functions"
    verifier = "code"
    alphabet = "\n" + "".join(map(chr, range(32, 127)))

    def __init__(self, options: SmallFunctionsOptions) -> None:
        self.options = options

    def identity(self, split: Split) -> Mapping[str, object]:
        return self.options.model_dump()

    def draw(self, stream: Stream, train_index: int | None) -> Draft:
        heldout = train_index is None
        for _ in range(PATIENCE):
            asked = _Function(
                stream.pick(_KEEPS), stream.pick(_CHANGES), stream.pick(_ENDS), 2 + stream.below(8), 2 + stream.below(8)
            )
            if not (asked.keep.text or asked.change.text) or (asked.change.text and not asked.end.changes):
                continue  # nothing is done, or a change that nothing depends on
            if (split_of(asked.combination) == "heldout") != heldout:
                continue
            lists = [_numbers(stream, 3 + stream.below(4)) for _ in range(self.options.hidden)]
            cases = [*lists, []]
            if all(any(asked(case) != less(case) for case in cases[1:]) for less in asked.simpler()):
                break
        else:
            raise UsageError("small_functions: no function found with these options; raise hidden")
        name = stream.pick(_NAMES)
        *before, last = asked.parts
        told = f"{', '.join(before)} and {last}" if before else last
        example = f"{name}({cases[0]}) == {asked(cases[0])}"
        return Draft(
            content=f"small_functions {asked.source('f')}",
            prompt=f"Write a Python function `{name}` that takes a list of integers, {told}. For example: {example}",
            reference={
                "type": "function",
                "entry_point": name,
                "cases": [{"args": [case], "expected": asked(case)} for case in cases],
            },
            thought="; ".join([*asked.steps, last]),
            answer=asked.source(name),
            tags=(f"parts={len(asked.parts)}",),
            split="heldout" if heldout else "train",
        )


def _numbers(stream: Stream, count: int) -> list[int]:
    return [stream.below(30) - 9 for _ in range(count)]


def small_functions(options: Mapping[str, object], seed: int) -> Task:
    """The task with ``options`` (see `SmallFunctionsOptions`). Raises UsageError naming a wrong option."""
    return Task(_SmallFunctions(parse_options(SmallFunctionsOptions, "small_functions", options)), seed)

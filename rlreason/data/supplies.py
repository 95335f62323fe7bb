"""Where problems come from, one by one: a task, rows, or a mix of several. Item i is a pure function of (seed, i)."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from math import lcm
from typing import Protocol

from rlreason.errors import UsageError
from rlreason.streams import Stream, permutation
from rlreason.tasks.procedural import Task
from rlreason.types import Problem

__all__ = [
    "Key",
    "LeftOut",
    "MixSupply",
    "RowSupply",
    "Supply",
    "TaskSupply",
    "held_out_by_hash",
    "joined_alphabet",
    "key_of",
    "plain",
    "row_of",
]

#: Problems of an endless task that stand for all of them in texts and in the fingerprint.
_SPECIMENS = 1000
#: Likewise of its held-out problems, which can be fewer.
_HELDOUT_SPECIMENS = 100
#: Most items of a mix between two points where its shares are exact.
_WINDOW = 1000


#: What tells a problem from the others of its set: its id and its prompt.
Key = tuple[str, str]


def key_of(problem: Problem) -> Key:
    """The problem's key."""
    return (problem.id, problem.prompt)


class Supply(Protocol):
    """Problems of one origin. What is the same everywhere: nothing here has a state but caches."""

    @property
    def origins(self) -> tuple[str, ...]:
        """Task name, path as found, hub id, or several of these."""
        ...

    @property
    def origin(self) -> str:
        """The same in one line."""
        ...

    @property
    def size(self) -> int | None:
        """How many different problems there are; None: no end."""
        ...

    @property
    def demonstration_count(self) -> int | None:
        """How many different demonstrations there are; None: no end."""
        ...

    @property
    def alphabet(self) -> str | None:
        """Every character of its problems, each once, where they are made; None for rows."""
        ...

    def problem(self, index: int) -> Problem:
        """Item ``index`` of the endless stream."""
        ...

    def demonstration(self, index: int) -> Problem:
        """Likewise of the problems that have a demonstration. Raises UsageError where none has."""
        ...

    def specimens(self) -> Sequence[Problem]:
        """All problems, or the first of an endless stream."""
        ...

    def identity(self) -> object:
        """What JSON can write and the specimens don't tell."""
        ...

    def without(self, left_out: Collection[Key]) -> "Supply":
        """The same less these."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Rows that are not among the problems: those that can't be read, and those outside of the pass-rate range."""

    bad_rows: int = 0
    #: What is wrong with the first bad one.
    first_bad: str | None = None
    outside: int = 0

    def __add__(self, other: "LeftOut") -> "LeftOut":
        return LeftOut(
            bad_rows=self.bad_rows + other.bad_rows,
            first_bad=self.first_bad or other.first_bad,
            outside=self.outside + other.outside,
        )


class TaskSupply:
    """Problems of a procedural task, which holds some out by itself."""

    size = None
    demonstration_count = None

    def __init__(self, task: Task, data_set: str = "") -> None:
        self.task = task
        self.origin = task.name
        self.origins = (task.name,)
        self.alphabet = task.alphabet
        self._data_set = data_set

    def problem(self, index: int) -> Problem:
        """See ``Supply``."""
        return self._marked(self.task.problem("train", index))

    demonstration = problem

    def heldout(self, count: int) -> list[Problem]:
        """The first ``count`` held-out problems. Raises UsageError where the options allow fewer."""
        return [self._marked(self.task.problem("heldout", index)) for index in range(count)]

    def specimens(self) -> Sequence[Problem]:
        """See ``Supply``."""
        return [self.problem(index) for index in range(_SPECIMENS)]

    def heldout_specimens(self) -> Sequence[Problem]:
        """The first held-out problems; some tasks can make few."""
        found: list[Problem] = []
        with suppress(UsageError):
            for index in range(_HELDOUT_SPECIMENS):
                found.append(self._marked(self.task.problem("heldout", index)))
        return found

    def without(self, left_out: Collection[Key]) -> "TaskSupply":
        """The same. Raises UsageError where one of its own is to be left out: a task has no rows."""
        if any(key_of(problem) in left_out for problem in self.specimens()):
            raise UsageError(
                f"problems of the task {self.origin} are too long, and a task's can't be left out: make them shorter "
                "by its options, or change max_tokens or sampler.max_length"
            )
        return self

    def identity(self) -> object:
        """See ``Supply``."""
        return [self.task.name, self.task.maker.options.model_dump(), self.task.seed]

    def _marked(self, problem: Problem) -> Problem:
        return replace(problem, data_set=self._data_set) if self._data_set else problem


class RowSupply:
    """Problems of files and hub data sets: each once per epoch, newly shuffled."""

    alphabet = None

    def __init__(
        self, problems: Sequence[Problem], origins: Sequence[str], seed: int, left_out: LeftOut | None = None
    ) -> None:
        self.origins = tuple(origins)
        self.origin = " + ".join(origins)
        self.size = len(problems)
        self.left_out = left_out or LeftOut()
        self._problems = problems
        self._demonstrations = [problem for problem in problems if problem.answer is not None]
        self.demonstration_count = len(self._demonstrations)
        self._seed = seed
        # The order of the epoch asked for last, by its key: only a cache.
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def problem(self, index: int) -> Problem:
        """See ``Supply``."""
        return self._shuffled(self._problems, "train", index)

    def demonstration(self, index: int) -> Problem:
        """See ``Supply``."""
        if not self._demonstrations:
            raise UsageError(
                f"{self.origin}: no row has a solution to learn from; name their column in data.columns.solution or "
                "data.columns.completion, or leave out the sft stage"
            )
        return self._shuffled(self._demonstrations, "demonstrations", index)

    def heldout(self, count: int) -> list[Problem]:
        """``count`` problems, the same ones for every seed, so that runs can be compared; a smaller set is the start of
        a larger one."""
        return [self._problems[row] for row in permutation(self.size, "heldout", self.size)[:count]]

    def heldout_specimens(self) -> Sequence[Problem]:
        """All of them."""
        return self._problems

    def specimens(self) -> Sequence[Problem]:
        """See ``Supply``."""
        return self._problems

    def identity(self) -> object:
        """See ``Supply``."""
        return None

    def without(self, left_out: Collection[Key]) -> "RowSupply":
        """The same less ``left_out``; those that stay are shuffled anew. Raises UsageError where none stays."""
        kept = [problem for problem in self._problems if key_of(problem) not in left_out]
        if not kept:
            raise UsageError(f"{self.origin}: every row is too long for its stages; see data.overlong_prompts")
        return RowSupply(kept, self.origin, self._seed, self.left_out)

    def _shuffled(self, problems: Sequence[Problem], stream: str, index: int) -> Problem:
        epoch, position = divmod(index, len(problems))
        known = self._orders.get(stream)
        if known is None or known[0] != epoch:
            known = (epoch, permutation(len(problems), stream, self._seed, epoch))
            self._orders[stream] = known
        return problems[known[1][position]]


class MixSupply:
    """Several supplies with their shares.

    The stream is cut into windows, and in each of them every set has exactly its share, in a random order that depends
    on the seed and the window alone. Each set goes on along its own stream, so none of its rows is passed over or comes
    again within its own epoch. Example: shares 0.7 and 0.3 make windows of 10 items, 7 of the one and 3 of the other.
    """

    size = None
    demonstration_count = None

    def __init__(self, parts: Mapping[str, tuple[Supply, float]], seed: int) -> None:
        """``parts``: name -> (supply, share); shares are relative to their sum."""
        self._names = tuple(parts)
        self._supplies = tuple(supply for supply, _ in parts.values())
        self.quotas = _quotas([share for _, share in parts.values()])
        self.window = sum(self.quotas)
        self._seed = seed
        self._order: tuple[int, list[tuple[int, int]]] = (-1, [])

    @property
    def origins(self) -> tuple[str, ...]:
        """See ``Supply``."""
        return tuple(origin for supply in self._supplies for origin in supply.origins)

    @property
    def origin(self) -> str:
        """``0.7 gsm8k (gsm8k.jsonl) + 0.3 math (math.jsonl)``."""
        parts = zip(self._names, self._supplies, self.quotas, strict=True)
        return " + ".join(f"{quota / self.window:.3g} {name} ({one.origin})" for name, one, quota in parts)

    @property
    def alphabet(self) -> str | None:
        """See ``Supply``."""
        return joined_alphabet(self._supplies)

    def problem(self, index: int) -> Problem:
        """See ``Supply``. Ids begin with the set's name, so that those of two sets differ."""
        which, position = self.place(index)
        return self._named(which, self._supplies[which].problem(position))

    def demonstration(self, index: int) -> Problem:
        """See ``Supply``."""
        which, position = self.place(index)
        return self._named(which, self._supplies[which].demonstration(position))

    def place(self, index: int) -> tuple[int, int]:
        """(which set, its own item) of item ``index``."""
        window, position = divmod(index, self.window)
        if self._order[0] != window:
            self._order = (window, self._places(window))
        return self._order[1][position]

    def check_distinct(self, count: int) -> None:
        """Raise UsageError where the first ``count`` demonstrations are not different ones."""
        for which, (name, supply) in enumerate(zip(self._names, self._supplies, strict=True)):
            there = supply.demonstration_count
            asked = sum(self.place(index)[0] == which for index in range(count)) if there is not None else 0
            if there is not None and asked > there:
                raise UsageError(
                    f"{count} distinct demonstrations of this mix are {asked} of {name!r}, which has {there}"
                )

    def specimens(self) -> Sequence[Problem]:
        """See ``Supply``."""
        return [problem for supply in self._supplies for problem in supply.specimens()]

    def identity(self) -> object:
        """See ``Supply``."""
        return [[*self._names], [*self.quotas], [supply.identity() for supply in self._supplies]]

    def without(self, left_out: Collection[Key]) -> "MixSupply":
        """The same less ``left_out``, with the same shares."""
        parts = zip(self._names, self._supplies, self.quotas, strict=True)
        kept = {name: (one.without(left_out), float(quota)) for name, one, quota in parts}
        return MixSupply(kept, self._seed)

    def _places(self, window: int) -> list[tuple[int, int]]:
        slots = [which for which, quota in enumerate(self.quotas) for _ in range(quota)]
        taken = [window * quota for quota in self.quotas]
        places = []
        for slot in permutation(self.window, "mix", self._seed, window):
            which = slots[slot]
            places.append((which, taken[which]))
            taken[which] += 1
        return places

    def _named(self, which: int, problem: Problem) -> Problem:
        return replace(problem, id=f"{self._names[which]}/{problem.id}")


def _quotas(shares: Sequence[float]) -> list[int]:
    """Items of each set in a window: the smallest that are exact, else of 1000 items with the largest remainders."""
    exact = [Fraction(share).limit_denominator(10_000) for share in shares]
    total = sum(exact)
    parts = [one / total for one in exact]
    window = lcm(*(part.denominator for part in parts))
    if window <= _WINDOW:
        return [int(part * window) for part in parts]
    quotas = [int(part * _WINDOW) for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda which: quotas[which] - parts[which] * _WINDOW)
    for which in by_remainder[: _WINDOW - sum(quotas)]:
        quotas[which] += 1
    if min(quotas) == 0:
        raise UsageError(f"a share of a mix is under 1 of {_WINDOW} items: leave that set out or give it more")
    return quotas


def joined_alphabet(supplies: Sequence[Supply]) -> str | None:
    """Every character of all of them; None where one is of rows."""
    alphabets = [supply.alphabet for supply in supplies]
    found = [one for one in alphabets if one is not None]
    return "".join(dict.fromkeys("".join(found))) if len(found) == len(alphabets) else None


def plain(prompt: str) -> str:
    """A prompt but for case and white space: what is alike in this is the same question."""
    return " ".join(prompt.split()).casefold()


def held_out_by_hash(problems: Sequence[Problem], share: float) -> tuple[list[Problem], list[Problem]]:
    """(to train on, held out): about ``share`` of the prompts are held out, the same ones whatever else there is.

    Rows that ask the same question, but for case and white space, are on the same side.
    """
    sides: tuple[list[Problem], list[Problem]] = ([], [])
    for problem in problems:
        sides[Stream("split", plain(problem.prompt)).below(1_000_000) < round(share * 1_000_000)].append(problem)
    return sides


def row_of(problem: Problem) -> dict[str, object]:
    """A problem as its fingerprint sees it: a default that came later changes nothing."""
    found = asdict(problem)
    del found["data_set"]
    if not found["extra"]:
        del found["extra"]
    return found

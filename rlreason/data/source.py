"""One source of problems for a run: training stream, demonstrations and held-out set, from a task, a file or the hub.

Item i of a stream is a pure function of (source, seed, i). So a run that knows how many problems it has consumed
resumes exactly, and rows are neither skipped nor repeated within an epoch.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from rlreason.data.files import SUFFIXES, MissingSource, locate, read_file
from rlreason.data.hub import is_hub_id, read_hub
from rlreason.data.rows import Columns, RowFormat
from rlreason.errors import UsageError, nearest
from rlreason.streams import permutation
from rlreason.tasks.procedural import TASKS, Task, make_task
from rlreason.types import Problem

__all__ = ["FILE_ENDINGS", "ProblemSource", "SourcePart", "SourceSpec", "open_source"]

#: Endings that mean a file and not a hub id, though not all of them can be read.
FILE_ENDINGS = (*SUFFIXES, ".json", ".csv", ".tsv", ".txt", ".gz", ".zst", ".arrow")
#: Problems of an endless task that stand for all of them in `texts` and in the fingerprint.
_SPECIMENS = 1000
#: Likewise of its held-out problems, which can be fewer.
_HELDOUT_SPECIMENS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """What the recipe says of its data.

    Example: ``SourceSpec(train=("gsm8k_train.jsonl", "openai/gsm8k:main:train"), answer_after="####",
    columns=Columns(prompt=("prompt", "question"), answer=("solution", "answer"), solution=("solution", "answer")))``.
    """

    #: A task's name, a file, or a hub id; of several the first that there is.
    train: str | tuple[str, ...]
    #: Likewise. None: a task holds out problems itself; a file or hub source has none then.
    heldout: str | tuple[str, ...] | None = None
    #: Options of the task.
    options: Mapping[str, object] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    #: The gold answer is what stands after the last such marker in the answer column; None: the whole cell.
    answer_after: str | None = None
    #: Of rows; a task has its own.
    verifier: str = "math"
    seed: int = 0
    #: The recipe's folder: files are looked for there first.
    base: Path | None = None
    #: File, as named here -> the copy of it that is read instead.
    copies: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePart:
    """What one set of problems is. Example: ``SourcePart(origin="arithmetic", fingerprint="9f86…", size=None)``."""

    #: Task name, path as found, or hub id.
    origin: str
    #: sha256 in hex of what it holds, but for how answers are checked.
    fingerprint: str
    #: Problems in it; None: endless.
    size: int | None
    #: Whether the origin is a file.
    is_file: bool


class _Supply(Protocol):
    """Problems of one origin."""

    @property
    def origin(self) -> str: ...

    @property
    def size(self) -> int | None:
        """How many different problems there are; None: no end."""
        ...

    def problem(self, index: int) -> Problem: ...

    def demonstration(self, index: int) -> Problem: ...

    def heldout(self, count: int) -> list[Problem]: ...

    def specimens(self) -> Sequence[Problem]:
        """All problems, or the first of an endless stream."""
        ...

    def identity(self) -> object:
        """What JSON can write and the specimens don't tell."""
        ...


class _TaskSupply:
    size = None

    def __init__(self, task: Task) -> None:
        self.task = task
        self.origin = task.name

    def problem(self, index: int) -> Problem:
        return self.task.problem("train", index)

    demonstration = problem

    def heldout(self, count: int) -> list[Problem]:
        return [self.task.problem("heldout", index) for index in range(count)]

    def specimens(self) -> Sequence[Problem]:
        return [self.task.problem("train", index) for index in range(_SPECIMENS)]

    def heldout_specimens(self) -> Sequence[Problem]:
        """The first held-out problems; some tasks can make few."""
        found: list[Problem] = []
        with suppress(UsageError):
            for index in range(_HELDOUT_SPECIMENS):
                found.append(self.task.problem("heldout", index))
        return found

    def identity(self) -> object:
        return [self.task.name, self.task.maker.options.model_dump(), self.task.seed]


class _RowSupply:
    def __init__(self, problems: Sequence[Problem], origin: str, seed: int) -> None:
        self.origin = origin
        self.size = len(problems)
        self._problems = problems
        self._demonstrations = [p for p in problems if p.thought is not None and p.answer is not None]
        self._seed = seed
        # The order of the epoch asked for last, by its key: only a cache.
        self._orders: dict[str, tuple[int, list[int]]] = {}

    def problem(self, index: int) -> Problem:
        return self._shuffled(self._problems, "train", index)

    def demonstration(self, index: int) -> Problem:
        if not self._demonstrations:
            raise UsageError(
                f"{self.origin}: no row has a solution to learn from; name their column in data.columns.solution, "
                "or leave out the sft stage"
            )
        return self._shuffled(self._demonstrations, "demonstrations", index)

    def heldout(self, count: int) -> list[Problem]:
        # The same questions for every seed, so that runs can be compared; a smaller set is the start of a larger one.
        return [self._problems[row] for row in permutation(self.size, "heldout", self.size)[:count]]

    def specimens(self) -> Sequence[Problem]:
        return self._problems

    def identity(self) -> object:
        return None

    def _shuffled(self, problems: Sequence[Problem], stream: str, index: int) -> Problem:
        epoch, position = divmod(index, len(problems))
        known = self._orders.get(stream)
        if known is None or known[0] != epoch:
            known = (epoch, permutation(len(problems), stream, self._seed, epoch))
            self._orders[stream] = known
        return problems[known[1][position]]


class ProblemSource:
    """Problems of one run. Made by `open_source`; everything that can be wrong with the data is found there."""

    def __init__(self, train: _Supply, heldout: _Supply | None) -> None:
        self._train = train
        self._heldout = heldout
        # A task supplies both: naming and hashing it twice would say nothing more.
        self._supplies = (train,) if heldout is None or heldout is train else (train, heldout)

    @property
    def origins(self) -> tuple[str, ...]:
        """Where the problems come from, training first: task name, path as found, or hub id."""
        return tuple(supply.origin for supply in self._supplies)

    @property
    def train_origin(self) -> str:
        """Where training problems come from."""
        return self._train.origin

    @property
    def heldout_origin(self) -> str | None:
        """Where held-out problems come from; None: there are none."""
        return None if self._heldout is None else self._heldout.origin

    @property
    def train_size(self) -> int | None:
        """Problems in an epoch; None for a task, which has no epochs."""
        return self._train.size

    @property
    def has_heldout(self) -> bool:
        """Whether `heldout` can be asked."""
        return self._heldout is not None

    @property
    def alphabet(self) -> str | None:
        """Every character of the problems and demonstrations where tasks make them, each once; None for rows."""
        tasks = [supply.task for supply in self._supplies if isinstance(supply, _TaskSupply)]
        if len(tasks) < len(self._supplies):
            return None
        return "".join(dict.fromkeys("".join(task.alphabet for task in tasks)))

    @property
    def overlap(self) -> int:
        """Held-out rows whose prompt is also a training prompt, but for case and white space. 0 is what you want."""
        if not isinstance(self._train, _RowSupply) or not isinstance(self._heldout, _RowSupply):
            return 0
        trained = {_plain(problem.prompt) for problem in self._train.specimens()}
        return sum(_plain(problem.prompt) in trained for problem in self._heldout.specimens())

    def train(self, start: int, count: int) -> list[Problem]:
        """Items ``start`` to ``start + count - 1`` of the endless training stream, from 0.

        ``train(0, 100) == train(0, 50) + train(50, 50)``. Rows come once per epoch, newly shuffled, and keep their id.
        """
        return [self._train.problem(index) for index in _span(start, count)]

    def demonstrations(self, start: int, count: int) -> list[Problem]:
        """The like stream of the problems that have a thought and an answer; UsageError where none has."""
        return [self._train.demonstration(index) for index in _span(start, count)]

    def heldout(self, count: int) -> list[Problem]:
        """``count`` different held-out problems, always the same ones; of rows all there are if they are fewer.

        Raises UsageError where the recipe names none, or a task can't make so many.
        """
        if self._heldout is None:
            raise UsageError(f"no held-out problems: {self._train.origin} brings none; set data.heldout")
        return self._heldout.heldout(len(_span(0, count)))

    def texts(self) -> Iterator[str]:
        """Training texts to make a tokenizer from: prompts, thoughts, answers; of a task those of 1000 problems."""
        for problem in self._train.specimens():
            yield from (message.content for message in problem.messages)
            if not problem.messages:
                yield problem.prompt
            if problem.thought is not None and problem.answer is not None:
                yield problem.thought
                yield problem.answer

    def fingerprint(self) -> str:
        """sha256, in hex, of the content: every row, or a task's options, seed and first 1000 problems."""
        return _digest(
            part for supply in self._supplies for part in (supply.identity(), *map(asdict, supply.specimens()))
        )

    @property
    def train_part(self) -> SourcePart:
        """What is trained on."""
        return _part(self._train, self._train.specimens(), self._train.size)

    @property
    def heldout_part(self) -> SourcePart | None:
        """What is held out; None: nothing. A task makes it, as many as are asked for."""
        if self._heldout is None:
            return None
        if isinstance(self._heldout, _TaskSupply):
            return _part(self._heldout, self._heldout.heldout_specimens(), None)
        return _part(self._heldout, self._heldout.specimens(), self._heldout.size)


def _part(supply: _Supply, specimens: Sequence[Problem], size: int | None) -> SourcePart:
    # The verifier's name may be a file's, which is compared by its own hash and may have moved.
    rows = ({**asdict(problem), "verifier": None} for problem in specimens)
    return SourcePart(
        origin=supply.origin,
        fingerprint=_digest([supply.identity(), *rows]),
        size=size,
        is_file=supply.origin.endswith(FILE_ENDINGS),
    )


def _digest(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def open_source(spec: SourceSpec) -> ProblemSource:
    """Reads and checks everything that ``spec`` names. Raises UsageError naming what is wrong and what to do."""
    train = _open(spec.train, spec, "train")
    if spec.heldout is not None:
        heldout: _Supply | None = _open(spec.heldout, spec, "heldout")
    else:
        heldout = train if isinstance(train, _TaskSupply) else None
    if spec.options and not any(isinstance(supply, _TaskSupply) for supply in (train, heldout)):
        given = ", ".join(spec.options)
        raise UsageError(f"data.options ({given}) are options of tasks, and {train.origin} is none; remove them")
    return ProblemSource(train, heldout)


def _open(names: str | tuple[str, ...], spec: SourceSpec, key: str) -> _Supply:
    """The first of ``names`` that there is. ``key``: "train" or "heldout", the setting in the recipe."""
    alternatives = (names,) if isinstance(names, str) else names
    if not alternatives:
        raise UsageError(f"data.{key} is empty; give a task ({', '.join(TASKS)}), a file or a hub id")
    missing: list[str] = []
    for name in alternatives:
        try:
            return _open_one(name, spec, key)
        except MissingSource as error:
            missing.append(str(error))
    raise MissingSource(f"data.{key}: " + "; and ".join(missing))


def _open_one(name: str, spec: SourceSpec, key: str) -> _Supply:
    form = RowFormat(columns=spec.columns, answer_after=spec.answer_after, verifier=spec.verifier)
    if name in TASKS:
        return _TaskSupply(make_task(name, spec.options, spec.seed))
    if name.endswith(FILE_ENDINGS):
        if name in spec.copies:
            return _RowSupply(read_file(spec.copies[name], form, source=name), name, spec.seed)
        path = locate(name, spec.base)
        return _RowSupply(read_file(path, form), str(path), spec.seed)
    if is_hub_id(name):
        split = "train" if key == "train" else "test"
        return _RowSupply(read_hub(name, form, split=split, setting=f"data.{key}"), name, spec.seed)
    raise UsageError(
        f"data.{key}={name!r} is neither a task ({', '.join(TASKS)}), nor a file ({', '.join(SUFFIXES)}), "
        f"nor a hub id (owner/name){nearest(name, TASKS)}"
    )


def _span(start: int, count: int) -> range:
    if start < 0 or count < 0:
        raise ValueError(f"start={start}, count={count}: neither may be negative")
    return range(start, start + count)


def _plain(prompt: str) -> str:
    return " ".join(prompt.split()).casefold()

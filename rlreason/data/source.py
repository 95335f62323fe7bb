"""One source of problems: training stream, demonstrations and held-out set, from tasks, files or the hub.

Item i of a stream is a pure function of (source, seed, i). So a run that knows how many problems it has consumed
resumes exactly, and rows are neither skipped nor repeated within an epoch.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rlreason import extensions
from rlreason.data.files import SUFFIXES, MissingSource, locate, read_file
from rlreason.data.functions import is_function, read_function
from rlreason.data.hub import is_hub_id, read_hub
from rlreason.data.places import AnyOf, Place, Where, names_in
from rlreason.data.rows import Columns, ProblemTable, RowFormat
from rlreason.data.supplies import (
    Key,
    LeftOut,
    MixSupply,
    RowSupply,
    Supply,
    TaskSupply,
    held_out_by_hash,
    joined_alphabet,
    plain,
    row_of,
)
from rlreason.errors import UsageError, nearest
from rlreason.tasks.procedural import TASKS, make_task
from rlreason.tasks.task import Task
from rlreason.types import Problem

__all__ = ["FILE_ENDINGS", "OpenSet", "ProblemSource", "SetSpec", "SourcePart", "SourceSpec", "open_set", "open_source"]

#: Endings that mean a file and not a hub id, though not all of them can be read.
FILE_ENDINGS = (*SUFFIXES, ".tsv", ".txt", ".gz", ".zst", ".arrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSpec:
    """A set of problems as the recipe has it.

    Example: ``SetSpec(where="gsm8k_train.jsonl", setting="data.train", form=RowFormat(answer_after="####"))``.
    """

    where: Where
    #: The recipe's key, for messages.
    setting: str
    #: Options of a task.
    options: Mapping[str, object] = field(default_factory=dict)
    form: RowFormat = field(default_factory=RowFormat)
    seed: int = 0
    #: Share of the rows that is held out.
    split: float = 0.0
    #: Of a hub data set, where the id names none.
    hub_split: str = "train"
    #: The recipe's folder: files are looked for there first.
    base: Path | None = None
    #: File, as named here -> the copy of it that is read instead.
    copies: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSet:
    """A set that was read. ``heldout``: what it holds out by itself; of the other two one is there."""

    train: TaskSupply | RowSupply
    heldout: TaskSupply | RowSupply | None
    #: What was taken of the places that may be.
    where: Where
    #: Whether a place took the options: a task, or a function of the user's own.
    takes_options: bool = False

    @property
    def as_heldout(self) -> TaskSupply | RowSupply:
        """What is measured where the set is named as held out: what it holds out, or all of it."""
        return self.train if self.heldout is None else self.heldout


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """One set to train on and one that is held out.

    Example: ``SourceSpec(train=AnyOf(any_of=("gsm8k_train.jsonl", "openai/gsm8k:main:train")), answer_after="####",
    columns=Columns(prompt=("prompt", "question"), answer=("solution", "answer"), solution=("solution", "answer")))``.
    """

    #: A task's name, a file, or a hub id; the first of several; or several together.
    train: Where
    #: Likewise. None: a task holds out problems itself, and ``split`` holds out rows; else there are none.
    heldout: Where | None = None
    #: Options of the task.
    options: Mapping[str, object] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    #: The gold answer is what stands after the last such marker in the answer column; None: the whole cell.
    answer_after: str | None = None
    #: Of rows; a task has its own.
    verifier: str = "math"
    seed: int = 0
    split: float = 0.0
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
    #: Whether the origin is files.
    is_file: bool
    left_out: LeftOut = field(default_factory=LeftOut)
    #: Of held-out problems: how many are trained on, too.
    overlap: int = 0


class ProblemSource:
    """Training problems and those that are held out. Made by `open_source` or from sets that were read."""

    def __init__(self, train: Supply, heldout: TaskSupply | RowSupply | None) -> None:
        self._train = train
        self._heldout = heldout
        # A task supplies both: naming and hashing it twice would say nothing more.
        self._supplies: tuple[Supply, ...] = (train,) if heldout is None or heldout is train else (train, heldout)

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
        """Problems in an epoch; None for a task and for a mix, which have no epochs."""
        return self._train.size

    @property
    def demonstration_count(self) -> int | None:
        """Problems with a demonstration; None for a task and for a mix, which never run out."""
        return self._train.demonstration_count

    @property
    def has_heldout(self) -> bool:
        """Whether `heldout` can be asked."""
        return self._heldout is not None

    @property
    def alphabet(self) -> str | None:
        """Every character of the problems and demonstrations where tasks make them, each once; None for rows."""
        return joined_alphabet(self._supplies)

    @property
    def overlap(self) -> int:
        """Held-out rows whose prompt is also a training prompt, but for case and white space. 0 is what you want."""
        if isinstance(self._train, TaskSupply) or not isinstance(self._heldout, RowSupply):
            return 0
        trained = {plain(problem.prompt) for problem in self._train.specimens()}
        return sum(plain(problem.prompt) in trained for problem in self._heldout.specimens())

    def train(self, start: int, count: int) -> list[Problem]:
        """Items ``start`` to ``start + count - 1`` of the endless training stream, from 0.

        ``train(0, 100) == train(0, 50) + train(50, 50)``. Rows come once per epoch, newly shuffled, and keep their id.
        """
        return [self._train.problem(index) for index in _span(start, count)]

    def demonstrations(self, start: int, count: int) -> list[Problem]:
        """The like stream of the problems that have a demonstration; UsageError where none has."""
        return [self._train.demonstration(index) for index in _span(start, count)]

    def check_distinct(self, count: int) -> None:
        """Raise UsageError where the first ``count`` demonstrations are not different ones."""
        if isinstance(self._train, MixSupply):
            self._train.check_distinct(count)
        there = self._train.demonstration_count
        if there is not None and count > there:
            raise UsageError(f"{count} distinct demonstrations are asked for, and {self.train_origin} has {there}")

    def heldout(self, count: int) -> list[Problem]:
        """``count`` different held-out problems, always the same ones; of rows all there are if they are fewer.

        Raises UsageError where the recipe names none, or a task can't make so many.
        """
        if self._heldout is None:
            raise UsageError(f"no held-out problems: {self._train.origin} brings none; set data.heldout or data.split")
        return self._heldout.heldout(len(_span(0, count)))

    @property
    def train_specimens(self) -> Sequence[Problem]:
        """All training problems, or the first of an endless stream."""
        return self._train.specimens()

    @property
    def heldout_specimens(self) -> Sequence[Problem]:
        """All problems that are held out, or the first that a task makes; none where nothing is held out."""
        return [] if self._heldout is None else self._heldout.heldout_specimens()

    def without(self, left_out: Collection[Key]) -> "ProblemSource":
        """The same less ``left_out``. Raises UsageError where no row stays, or for problems of a task."""
        train = self._train.without(left_out)
        if self._heldout is None:
            return ProblemSource(train, None)
        if isinstance(self._heldout, TaskSupply):
            return ProblemSource(train, self._heldout)
        return ProblemSource(train, self._heldout.without(left_out))

    def texts(self) -> Iterator[str]:
        """Training texts to make a tokenizer from: prompts, thoughts, answers; of a task those of 1000 problems."""
        for problem in self._train.specimens():
            yield from (message.content for message in problem.messages)
            if not problem.messages:
                yield problem.prompt
            if problem.answer is not None:
                yield from (problem.answer,) if problem.thought is None else (problem.thought, problem.answer)

    def fingerprint(self) -> str:
        """sha256, in hex, of the content: every row, or a task's options, seed and first 1000 problems."""
        return _digest(
            part for supply in self._supplies for part in (supply.identity(), *map(row_of, supply.specimens()))
        )

    @property
    def train_part(self) -> SourcePart:
        """What is trained on."""
        return part_of(self._train)


def part_of(supply: Supply, *, heldout: bool = False) -> SourcePart:
    """What a supply is. ``heldout``: of a task its held-out problems."""
    problems = supply.heldout_specimens() if heldout and isinstance(supply, TaskSupply) else supply.specimens()
    # The verifier's name may be a file's, which is compared by its own hash and may have moved.
    rows = ({**row_of(problem), "verifier": None} for problem in problems)
    return SourcePart(
        origin=supply.origin,
        fingerprint=_digest([supply.identity(), *rows]),
        size=supply.size,
        is_file=all(origin.endswith(FILE_ENDINGS) for origin in supply.origins),
        left_out=supply.left_out if isinstance(supply, RowSupply) else LeftOut(),
    )


def _digest(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def open_source(spec: SourceSpec) -> ProblemSource:
    """Reads and checks everything that ``spec`` names. Raises UsageError naming what is wrong and what to do."""
    form = RowFormat(columns=spec.columns, answer_after=spec.answer_after, verifier=spec.verifier)
    train = SetSpec(
        where=spec.train,
        setting="data.train",
        options=spec.options,
        form=form,
        seed=spec.seed,
        split=spec.split,
        base=spec.base,
        copies=spec.copies,
    )
    opened = open_set(train)
    held = spec.heldout and open_set(
        replace(train, where=spec.heldout, setting="data.heldout", split=0.0, hub_split="test")
    )
    if spec.options and not (opened.takes_options or (held and held.takes_options)):
        raise unused_options(spec.options, "data", opened.train.origin)
    return ProblemSource(opened.train, held.as_heldout if held else opened.heldout)


def unused_options(options: Mapping[str, object], table: str, origin: str) -> UsageError:
    """The error about options where there is no task."""
    given = ", ".join(options)
    return UsageError(
        f"{table}.options ({given}) are options of tasks and of functions that give rows, and {origin} is neither; "
        "remove them"
    )


def open_set(spec: SetSpec) -> OpenSet:
    """Reads one set. Raises UsageError naming what is wrong and what to do."""
    places = spec.where if isinstance(spec.where, tuple) else (spec.where,)
    if not places:
        raise UsageError(f"{spec.setting} is empty; give a task ({', '.join(TASKS)}), a file or a hub id")
    read = [_open_place(place, spec) for place in places]
    if len(read) == 1:
        name, found = read[0]
        if isinstance(found, TaskSupply):
            if spec.split:
                raise UsageError(f"{name} is a task, which holds problems out by itself; remove split")
            return OpenSet(train=found, heldout=found, where=name, takes_options=True)
        return replace(_rows(found.problems, name, _left_out(found), spec), takes_options=is_function(name))
    tasks = [name for name, found in read if isinstance(found, TaskSupply)]
    tables = [(name, found) for name, found in read if isinstance(found, ProblemTable)]
    if tasks:
        raise UsageError(
            f"{spec.setting}: {tasks[0]!r} is a task without end, and a list joins sets that end; make two sets "
            "[data.NAME] and mix them: data = { a = 0.5, b = 0.5 }"
        )
    left_out = LeftOut()
    for _, table in tables:
        left_out += _left_out(table)
    joined = _rows(_joined(tables), tuple(name for name, _ in tables), left_out, spec)
    return replace(joined, takes_options=any(is_function(name) for name, _ in tables))


def _rows(problems: Sequence[Problem], where: Where, left_out: LeftOut, spec: SetSpec) -> OpenSet:
    origins = tuple(names_in(where))
    if not spec.split:
        return OpenSet(train=RowSupply(problems, origins, spec.seed, left_out), heldout=None, where=where)
    train, heldout = held_out_by_hash(problems, spec.split)
    if not train or not heldout:
        raise UsageError(
            f"{' + '.join(origins)}: a split of {spec.split:g} leaves {len(train)} of its {len(problems)} rows to "
            f"train on and {len(heldout)} held out; each needs some"
        )
    return OpenSet(
        train=RowSupply(train, origins, spec.seed, left_out),
        heldout=RowSupply(heldout, origins, spec.seed),
        where=where,
    )


def _left_out(table: ProblemTable) -> LeftOut:
    return LeftOut(bad_rows=table.bad_rows, first_bad=table.first_bad, outside=table.outside)


def _joined(tables: Sequence[tuple[str, ProblemTable]]) -> list[Problem]:
    """The problems of all tables; ids that several have begin with their file's name and number."""
    seen: dict[str, int] = {}
    for _, table in tables:
        for problem in table.problems:
            seen[problem.id] = seen.get(problem.id, 0) + 1
    return [
        problem if seen[problem.id] == 1 else replace(problem, id=f"{number}-{Path(name).stem}/{problem.id}")
        for number, (name, table) in enumerate(tables, start=1)
        for problem in table.problems
    ]


def _open_place(place: Place, spec: SetSpec) -> tuple[str, TaskSupply | ProblemTable]:
    """What is there, by the name that was taken: the first of several that there is."""
    names = place.any_of if isinstance(place, AnyOf) else (place,)
    missing: list[str] = []
    for name in names:
        try:
            return _open_one(name, spec)
        except MissingSource as error:
            missing.append(str(error))
    raise MissingSource(f"{spec.setting}: " + "; and ".join(missing))


def _open_one(name: str, spec: SetSpec) -> tuple[str, TaskSupply | ProblemTable]:
    if name in TASKS:
        return name, TaskSupply(make_task(name, spec.options, spec.seed), spec.form.data_set)
    if name.endswith(FILE_ENDINGS):
        if name in spec.copies:
            return name, read_file(spec.copies[name], spec.form, source=name)
        path = locate(name, spec.base)
        return str(path), read_file(path, spec.form)
    if is_function(name):
        file = spec.copies.get(name)
        found = read_function(name, spec.options, spec.form, seed=spec.seed, setting=spec.setting, file=file)
        return name, TaskSupply(found, spec.form.data_set) if isinstance(found, Task) else found
    if is_hub_id(name):
        return name, read_hub(name, spec.form, split=spec.hub_split, setting=spec.setting)
    known = (*TASKS, *extensions.offered(extensions.DATA))
    raise UsageError(
        f"{spec.setting}={name!r} is neither a task ({', '.join(known)}), nor a file ({', '.join(SUFFIXES)}), "
        f"nor a hub id (owner/name), nor a function of yours (path/file.py:name){nearest(name, known)}"
    )


def _span(start: int, count: int) -> range:
    if start < 0 or count < 0:
        raise ValueError(f"start={start}, count={count}: neither may be negative")
    return range(start, start + count)

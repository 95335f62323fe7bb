"""Suites that people quote, compared with what a run trains on: before the run, in its report, and by a command."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlreason.data.files import MissingSource, locate
from rlreason.data.places import AnyOf, Where
from rlreason.data.rows import Columns, RowFormat
from rlreason.data.run_data import RunData
from rlreason.data.source import SetSpec, open_set
from rlreason.data.supplies import RowSupply
from rlreason.errors import UsageError
from rlreason.eval.contamination import Index, Kind, Match
from rlreason.eval.suites import SUITES, Suite, find_suite
from rlreason.types import Problem

__all__ = ["Contamination", "contamination_of", "contamination_of_run"]

#: How each kind is said.
_WORDS = {
    Kind.EXACT: "word for word",
    Kind.LATEX: "in other LaTeX",
    Kind.NGRAM: "half or more of their 10-grams",
    Kind.RENUMBERED: "with other numbers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """What a suite has in common with training data. ``of``: problems of the suite."""

    suite: str
    of: int
    matches: Sequence[Match]

    def __str__(self) -> str:
        if not self.matches:
            return f"none of the {self.of:,} problems of {self.suite} is like a training prompt"
        kinds = Counter(match.kind for match in self.matches)
        told = ", ".join(f"{kinds[kind]} {_WORDS[kind]}" for kind in Kind if kind in kinds)
        first = self.matches[0]
        return (
            f"{len(self.matches):,} of the {self.of:,} problems of {self.suite} are also trained on ({told}), such as "
            f"{first.problem!r}, which is like {first.row!r}"
        )


def contamination_of(
    train: Iterable[Problem], suites: Sequence[Suite], base: Path | None = None, *, local: bool = False
) -> list[Contamination]:
    """Compare training problems with suites. ``local``: only with those whose file is on this machine.

    Raises UsageError for a suite whose problems can't be had.
    """
    problems = {suite.name: found for suite in suites if (found := _problems(suite, base, local=local)) is not None}
    if not problems:
        return []
    index = Index({f"{name}\n{one.id}": _text(one) for name, found in problems.items() for one in found})
    by_suite: dict[str, list[Match]] = defaultdict(list)
    for match in index.matches((one.id, _text(one)) for one in train):
        name, _, problem = match.problem.partition("\n")
        by_suite[name].append(Match(problem=problem, kind=match.kind, row=match.row, share=match.share))
    return [Contamination(suite=name, of=len(found), matches=by_suite[name]) for name, found in problems.items()]


def contamination_of_run(data: RunData, base: Path | None) -> list[Contamination]:
    """What a run trains on, compared with every shipped suite whose file is on this machine. Tasks make problems that
    are in no suite."""
    supplies = [supply for supply in data.trained.values() if isinstance(supply, RowSupply)]
    rows = [problem for supply in supplies for problem in supply.specimens()]
    return contamination_of(rows, list(SUITES.values()), base, local=True) if rows else []


def training_problems(places: Sequence[str], columns: Columns) -> list[Problem]:
    """The problems of files and hub sets, whatever their answers are. Raises UsageError."""
    return [problem for place in places for problem in _read(place, RowFormat(columns=columns), "DATA")]


def named(names: str) -> list[Suite]:
    """Suites by their names, comma separated; "all": those whose data is files or on the hub."""
    if names == "all":
        return [suite for suite in SUITES.values() if isinstance(suite.data, tuple)]
    return [find_suite(name.strip()) for name in names.split(",")]


def _problems(suite: Suite, base: Path | None, *, local: bool) -> Sequence[Problem] | None:
    if not isinstance(suite.data, tuple):
        if local:
            return None
        if suite.data is None or not suite.data.endswith((".jsonl", ".parquet", ".json", ".csv")):
            raise UsageError(f"suite {suite.name!r} has no problems of its own to compare with")
    places = (suite.data,) if isinstance(suite.data, str) else suite.data
    where: Where = AnyOf(any_of=tuple(places))
    if local:
        try:
            where = str(locate(places[0], base))
        except MissingSource:
            return None
    columns = Columns() if suite.convert else Columns(prompt=suite.prompt, answer=suite.answer)
    form = RowFormat(
        columns=columns, answer_after=suite.answer_after, convert=suite.convert, verifier=suite.verifier,
        skip_bad_rows=True,
    )  # fmt: skip
    return list(_read(where, form, f"suite {suite.name}"))


def _read(where: Where, form: RowFormat, setting: str) -> Iterator[Problem]:
    yield from open_set(SetSpec(where=where, setting=setting, form=form)).train.specimens()


def _text(problem: Problem) -> str:
    """What is asked: of a chat the user's turns."""
    turns = [one.content for one in problem.messages if one.role == "user"]
    return "\n".join(turns) or problem.prompt

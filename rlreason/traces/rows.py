"""One line of a trace file."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlreason.errors import UsageError

SCHEMA = 1
KEPT, REJECTED = "traces.jsonl", "traces_rejected.jsonl"
#: Of a reject stage with filters: all completions, of which the others are made.
DRAWS = "draws.jsonl"


class Turn(BaseModel):
    """A chat turn of the problem."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: str


class Provenance(BaseModel):
    """How a completion came about. Hashes are of the files' contents; "" where nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str = ""
    weights_sha256: str = ""
    tokenizer_sha256: str = ""
    template_sha256: str = ""
    policy_version: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stream: str = ""
    #: Its place among the problem's draws.
    draw: int = 0


class PassRate(BaseModel):
    """Of the problem's draws that have a verdict."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    correct: int
    drawn: int


class TraceRow(BaseModel):
    """A completion, kept or not. Unknown keys are an error, so that a newer file is not half understood."""

    model_config = ConfigDict(extra="forbid")
    schema_version: int = Field(SCHEMA, alias="schema")
    id: str
    problem_id: str
    prompt: str
    messages: tuple[Turn, ...] = ()
    data_set: str = ""
    source: str = ""
    tags: tuple[str, ...] = ()
    verifier: str = ""
    #: What the verifier compares with: a gold answer, several, or tests.
    reference: Any = ""
    response: str
    #: Of the completion, as drawn; empty of texts from elsewhere.
    token_ids: tuple[int, ...] = ()
    finish_reason: Literal["stop", "length", "unknown"] = "unknown"
    #: Tokens (of texts from elsewhere words) up to the end of thinking, and behind it.
    think_tokens: int = 0
    answer_tokens: int = 0
    verdict: str = ""
    detail: str = ""
    pass_rate: PassRate | None = None
    #: What the filters measured.
    filters: dict[str, float] = {}
    #: The first filter that stopped it; "": kept.
    first_reason: str = ""
    provenance: Provenance = Provenance()

    @property
    def tokens(self) -> int:
        """Length of the response."""
        return len(self.token_ids) or self.think_tokens + self.answer_tokens

    def as_line(self) -> str:
        """As a line of JSON, always in the same bytes. Lone surrogates, which no text file can hold, are escaped."""
        text = json.dumps(self.model_dump(mode="json", by_alias=True), ensure_ascii=False, sort_keys=True)
        return text.encode("utf-8", "backslashreplace").decode() + "\n"


class LearntRow(BaseModel):
    """What a student learns of a line: of a set, or of a reject stage without filters, which writes no more."""

    problem_id: str
    prompt: str
    messages: tuple[Turn, ...] = ()
    data_set: str = ""
    response: str
    finish_reason: Literal["stop", "length", "unknown"] = "unknown"


class Rows(Protocol):
    """Rows that are read one at a time: in order, and any of them again by its place. A list is one, too."""

    def __iter__(self) -> Iterator[TraceRow]:
        """All of them, in order."""
        ...

    def __getitem__(self, at: int, /) -> TraceRow:
        """One of those that were gone over."""
        ...


class RowFile:
    """Rows of a file, of which one at a time is in memory. Blank lines are none."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        """``name``: of the file, in messages."""
        self._file, self._name = file, name
        self._starts = array("q")

    def __iter__(self) -> Iterator[TraceRow]:
        """All rows. Raises UsageError naming file and line of one that is none."""
        del self._starts[:]
        end, number = 0, 0
        while True:
            self._file.seek(end)  # somebody may have read another row
            line = self._file.readline()
            if not line:
                return
            start, end, number = end, end + len(line), number + 1
            if line.strip():
                self._starts.append(start)
                yield _parsed(line, f"{self._name}, line {number}", TraceRow)

    def __getitem__(self, at: int, /) -> TraceRow:
        self._file.seek(self._starts[at])
        return _parsed(self._file.readline(), f"{self._name}, row {at + 1}", TraceRow)


_Line = TypeVar("_Line", bound=BaseModel)


def _parsed(line: bytes, where: str, kind: type[_Line]) -> _Line:
    try:
        try:
            return kind.model_validate_json(line)
        except ValidationError as error:
            if error.errors()[0]["type"] != "json_invalid" or b"\\u" not in line:
                raise
            return kind.model_validate(json.loads(line))  # pydantic's reader refuses an escaped lone surrogate
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the line"
        raise UsageError(f"{where}: {place}: {first['msg']}") from error
    except ValueError as error:
        raise UsageError(f"{where}: no line of JSON ({error})") from error


@contextmanager
def row_file(path: Path) -> Iterator[RowFile]:
    """The rows of a file. Raises UsageError for one that can't be read."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    with file:
        yield RowFile(file, str(path))


@contextmanager
def spooled(rows: Iterable[TraceRow], folder: Path) -> Iterator[RowFile]:
    """The same of rows from elsewhere: they wait in a file of ``folder`` that has no name and goes with the process."""
    with TemporaryFile(dir=folder) as file:
        for row in rows:
            file.write(row.as_line().encode())
        yield RowFile(file, f"rows that wait in {folder}")


def read_rows(path: Path) -> Iterator[TraceRow]:
    """The rows of a file, one at a time. Raises UsageError naming file and line of one that is none."""
    with row_file(path) as rows:
        yield from rows


def read_learnt(path: Path) -> Iterator[LearntRow]:
    """What a student learns of the rows of a file, one at a time. Raises UsageError naming file, line and fix."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parsed(line, f"{path}, line {number}", LearntRow)
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    except UsageError as error:
        raise UsageError(
            f"{error}: no row of traces; make a set of another's file by `rlreason traces import FILE FOLDER`"
        ) from error

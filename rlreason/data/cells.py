"""One row of any table, read by what its columns mean. Errors name the row and the column."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from rlreason.errors import UsageError, nearest
from rlreason.types import Message

__all__ = ["Cells", "Column", "Columns", "Row", "Turns", "kind_of", "response_in", "structure", "turns_in"]

Cells = Mapping[str, object]
#: A column's name, or several of which the first that the data has is taken; ``a.b`` is field b of column a.
Column = str | tuple[str, ...]
Meaning = Literal["id", "prompt", "answer", "solution", "completion", "tests", "messages"]

_ABSENT = object()
#: Names of roles in ShareGPT's ``{"from": ..., "value": ...}``.
_SHAREGPT: Mapping[str, Literal["system", "user", "assistant"]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column holds what. Several names for one thing: the first that the data has is taken.

    Example: ``Columns(prompt=("prompt", "question"), answer="reward_model.ground_truth")``, a dot for a field of a
    column. A prompt or messages, and an answer, tests or a written demonstration, are needed; a column that is named
    differently from its default is needed too.
    """

    #: A recipe's table is this class: pydantic refuses unknown columns.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    #: Name of the problem; default: the file's and the row's number.
    id: Column = "id"
    #: Text, or a list of messages.
    prompt: Column = "prompt"
    #: The gold answer: text, a number, a list of accepted ones, or an object for the verifier.
    answer: Column = "answer"
    #: A demonstration: its reasoning is trained on in the recipe's answer style; as it is where it has </think>.
    solution: Column = "solution"
    #: A demonstration: the assistant's whole turn, trained on as it is; text, or a list of one message.
    completion: Column = "completion"
    #: Tests of a program, in place of an answer.
    tests: Column = "tests"
    #: The question as a list of {role, content}, in place of a prompt.
    messages: Column = "messages"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A chat up to the user's last turn, and the assistant's answer to it where it has one."""

    asked: tuple[Message, ...] = ()
    response: str | None = None


class Row:
    """The cells of one row; remembers which columns were made use of."""

    def __init__(self, cells: Cells, columns: Columns, where: str) -> None:
        self._cells = cells
        self._columns = columns
        self._where = where
        self._used: set[str] = set()

    def fail(self, meaning: Meaning, problem: str) -> UsageError:
        """The error about a cell that is there but wrong."""
        name = next((name for name in self._names(meaning) if self._find(name) is not _ABSENT), None)
        return UsageError(f"{self._where}, column {name!r}: {problem}")

    def value(self, meaning: Meaning, *, required: bool = False) -> object:
        """The cell; None where it is null, or the row has no such column and needs none."""
        names = self._names(meaning)
        for name in names:
            found = self._find(name)
            if found is not _ABSENT:
                self._used.add(name)
                return found
        if required or names != _names(Columns(), meaning):
            raise UsageError(
                f"{self._where}: no column {' or '.join(map(repr, names))} for the {meaning}"
                f"{nearest(names[0], self._cells)} (there are: {', '.join(self._cells) or 'none'}); "
                f"set data.columns.{meaning}"
            )
        return None

    def text(self, meaning: Meaning, *, required: bool = False) -> str | None:
        """The cell as text; a number is written out."""
        value = self.value(meaning, required=required)
        if value is None and not required:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return json.dumps(value)
        if not isinstance(value, str):
            raise self.fail(meaning, f"holds {kind_of(value)}; it must be text")
        if required and not value.strip():
            raise self.fail(meaning, "is empty; remove the row or fill it in")
        return value

    def number(self, name: str) -> float:
        """The number in the column ``name``, which may be written as text."""
        found = self._find(name)
        if found is _ABSENT:
            raise UsageError(
                f"{self._where}: no column {name!r} for the pass rate{nearest(name, self._cells)} "
                f"(there are: {', '.join(self._cells) or 'none'}); correct data.pass_rate.column"
            )
        try:
            return float(str(found))
        except ValueError:
            raise UsageError(f"{self._where}, column {name!r}: holds {found!r}; a pass rate is a number") from None

    @property
    def source(self) -> str | None:
        """The row's own word for where it is from."""
        found = self._cells.get("source")
        return found if isinstance(found, str) else None

    def rest(self) -> dict[str, object]:
        """The columns that nothing was made of, for rewards that read them, and those of the gold answer and the
        demonstration as the row has them: what was made of these is shorter."""
        raw = {name for meaning in ("answer", "solution") for name in self._names(meaning)}
        known = (self._used - raw) | {"source"}
        return {name: value for name, value in self._cells.items() if name not in known and value is not None}

    def names(self, meaning: Meaning) -> str:
        """For people: the columns that may hold it."""
        return " or ".join(map(repr, self._names(meaning)))

    def _names(self, meaning: Meaning) -> tuple[str, ...]:
        return _names(self._columns, meaning)

    def _find(self, name: str) -> object:
        if name in self._cells:
            return self._cells[name]
        column, dot, inner = name.partition(".")
        found = structure(self._cells[column]) if dot and column in self._cells else None
        for part in inner.split("."):
            if not isinstance(found, Mapping) or part not in found:
                return _ABSENT
            found = found[part]
        return found


def _names(columns: Columns, meaning: Meaning) -> tuple[str, ...]:
    column: Column = getattr(columns, meaning)
    return (column,) if isinstance(column, str) else column


def turns_in(row: Row) -> Turns:
    """The chat of a row whose ``messages``, or whose ``prompt``, is a list of messages; nothing where neither is.

    A chat that ends with the assistant is a question and its demonstration: the last turn is what is trained on, as it
    is written, and the turns before it are the prompt.
    """
    value = structure(row.value("messages"))
    if value is not None:
        return _turns(row, value, "messages")
    value = structure(row.value("prompt"))
    return _turns(row, value, "prompt") if isinstance(value, list | tuple) else Turns()


def response_in(row: Row) -> str | None:
    """The demonstration in the column ``completion``: text, or a list of one message of the assistant."""
    value = structure(row.value("completion"))
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    match value:
        case [turn]:
            message = _message(turn)
            if message is not None and message.role == "assistant":
                return message.content
    raise row.fail("completion", "must be text, or a list of one message of the assistant")


def _turns(row: Row, value: object, meaning: Meaning) -> Turns:
    found = [_message(turn) for turn in (value if isinstance(value, list | tuple) else [value])]
    turns = [turn for turn in found if turn is not None]
    if len(turns) < len(found) or not turns:
        raise row.fail(
            meaning, "must be a list of {role, content}, the role system, user or assistant, the content text"
        )
    response = turns.pop().content if turns[-1].role == "assistant" and len(turns) > 1 else None
    if turns[-1].role != "user":
        raise row.fail(
            meaning,
            "must end with a turn of the user, which the model is to answer, or with the assistant's answer to it",
        )
    if response is not None and not response.strip():
        raise row.fail(meaning, "ends with an empty turn of the assistant; remove it or the row")
    return Turns(asked=tuple(turns), response=response)


def _message(turn: object) -> Message | None:
    match turn:
        case {"role": "system" | "user" | "assistant" as role, "content": str() as content}:
            return Message(role=role, content=content)
        case {"from": str() as name, "value": str() as content} if name in _SHAREGPT:
            return Message(role=_SHAREGPT[name], content=content)
    return None


def structure(value: object) -> object:
    """CSV and Parquet files often hold nested data as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[{")):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def kind_of(value: object) -> str:
    """For people: ``a list``."""
    return "nothing" if value is None else f"a {type(value).__name__}"

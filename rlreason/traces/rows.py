"""One line of a trace file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlreason.errors import UsageError

SCHEMA = 1
KEPT, REJECTED = "traces.jsonl", "traces_rejected.jsonl"


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
        """As a line of JSON, always in the same bytes."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), ensure_ascii=False, sort_keys=True) + "\n"


def read_rows(path: Path) -> Iterator[TraceRow]:
    """The rows of a file. Raises UsageError naming file and line of one that is none."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield TraceRow.model_validate_json(line)
                except ValidationError as error:
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"])) or "the line"
                    raise UsageError(f"{path}, line {number}: {where}: {first['msg']}") from error
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error


def sha256_of(rows: Iterable[TraceRow]) -> str:
    """Of the rows' lines."""
    found = hashlib.sha256()
    for row in rows:
        found.update(row.as_line().encode("utf-8", "surrogatepass"))
    return found.hexdigest()

"""``rlreason score``: a verifier over a JSONL file, to a JSONL file in the same order."""

from __future__ import annotations

import functools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TextIO

from rlreason.errors import UsageError
from rlreason.outputs import checked_output, opened
from rlreason.progress import Watch
from rlreason.rewards.mix import MixPart, RewardMix
from rlreason.rewards.pool import Pool
from rlreason.rewards.registry import resolve_verifier
from rlreason.scorer import as_reward
from rlreason.types import Completion, Problem, Reference, RewardResult, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScoreRow:
    """One input row. Example: ``_ScoreRow(key="17", response="... \\boxed{6}", reference="6")``."""

    key: object
    response: str
    reference: Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnusableRow:
    """A row that can't be scored. Example: ``_UnusableRow(key="17", reason="a.jsonl, line 2: missing 'response'")``."""

    key: object
    reason: str


def _score_row(mix: RewardMix, verifier: str, row: _ScoreRow) -> RewardResult:
    problem = Problem(id=str(row.key), prompt="", verifier=verifier, reference=row.reference)
    completion = Completion.from_text(row.response)
    return mix(problem, completion)


def score_file(
    verifier: str,
    input_path: Path,
    output_path: Path,
    *,
    workers: int = 1,
    timeout: float = 10.0,
    options: Mapping[str, object] = {},
    watch: Watch = lambda done, total: None,
) -> dict[str, int]:
    """Score every row and return how many got each verdict, and how many were ``unusable``.

    Streams: memory does not grow with the file.

    Rows in: ``{"id", "response", "reference"}`` (reference: text, a list of texts, or a mapping), or ``"tests"`` in
    place of ``"reference"`` for code. Rows out: ``{"id", "verdict", "score", "extracted", "seconds", "detail"}``.
    A row without one of these, or with a reference that is none, comes out as broken, with the reason as its detail.
    ``options`` are the verifier's own, as a recipe's ``[reward.NAME]`` has them. ``timeout``: wall seconds for one row;
    of ``code`` for one case, and six times that for a row, unless its options or tests say otherwise.
    The output file appears only when all rows are done; where ``output_path`` is a link, it is the file behind it. What
    is no file, such as /dev/stdout, is written to as rows are scored. ``watch`` is told how many are. Raises UsageError
    for a line that is no JSON object, for a file none of whose rows can be used, both with file and line, and for an
    output that can't be: before anything is scored, where the input is a file.
    """
    mix, timeout = _mix(verifier, timeout, options)
    if workers < 1 or timeout <= 0:
        raise UsageError(f"score needs workers >= 1 and timeout > 0, not {workers} and {timeout}")
    output_path = checked_output(output_path, "--output")
    total = None
    if input_path.is_file():  # what no row of it can be is said before any work is done; a pipe can't be read twice
        total = _counted(_rows(input_path))
    job = functools.partial(_score_row, mix, verifier)
    with opened(output_path) as out, Pool(job, workers=workers, timeout=timeout) as pool:
        writer = _Writer(out, lambda done: watch(done, total))
        rows = _rows(input_path)
        for outcome in pool.imap(writer.usable(rows)):
            writer.write(as_reward(outcome))
        writer.write_unusable()
        if writer.counts.total() == writer.counts["unusable"] > 0:
            raise UsageError(writer.reason)
    return dict(writer.counts)


def _mix(verifier: str, timeout: float, options: Mapping[str, object]) -> tuple[RewardMix, float]:
    """The verifier with its options, and the seconds for one row. Raises UsageError."""
    try:
        resolve_verifier(verifier)
        if verifier == "code":
            options = {"timeout": timeout, **options}
            case, total = (options.get(key) for key in ("timeout", "total_timeout"))
            if isinstance(case, (int, float)):
                timeout = float(total) if isinstance(total, (int, float)) else case * _CASES
        if not options:
            return RewardMix(parts=(MixPart(name="accuracy", weight=1.0),)), timeout
        return RewardMix.from_table({verifier: {"weight": 1.0, **options}}), timeout
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None


#: Of the seconds for one case, what all cases of a program may take.
_CASES = 6


def _counted(rows: Iterable[_ScoreRow | _UnusableRow]) -> int:
    """How many rows there are. Raises UsageError if none of them can be used."""
    total, reason, usable = 0, "", False
    for row in rows:
        total += 1
        usable = usable or isinstance(row, _ScoreRow)
        if isinstance(row, _UnusableRow):
            reason = reason or row.reason
    if reason and not usable:
        raise UsageError(f"none of the {total} rows can be used: {reason}")
    return total


class _Writer:
    """Rows out in the order of the rows in, those that could not be used in their places."""

    def __init__(self, out: TextIO, watch: Callable[[int], None]) -> None:
        self._out = out
        self._watch = watch
        self._waiting: deque[_ScoreRow | _UnusableRow] = deque()
        self.counts: Counter[str] = Counter()
        #: Why the first row that could not be used could not be used.
        self.reason = ""

    def usable(self, rows: Iterable[_ScoreRow | _UnusableRow]) -> Iterator[_ScoreRow]:
        for row in rows:
            self._waiting.append(row)
            if isinstance(row, _ScoreRow):
                yield row

    def write(self, result: RewardResult) -> None:
        """The result of the next row that could be used."""
        self.write_unusable()
        self._write(self._waiting.popleft().key, result, result.verdict.value)

    def write_unusable(self) -> None:
        while self._waiting and isinstance(row := self._waiting[0], _UnusableRow):
            self._waiting.popleft()
            self.reason = self.reason or row.reason
            self._write(row.key, RewardResult(score=None, verdict=Verdict.BROKEN, detail=row.reason), "unusable")

    def _write(self, key: object, result: RewardResult, counted_as: str) -> None:
        self.counts[counted_as] += 1
        self._out.write(json.dumps(_row_out(key, result)) + "\n")
        self._watch(self.counts.total())


def _row_out(key: object, result: RewardResult) -> dict[str, object]:
    return {
        "id": key,
        "verdict": result.verdict.value,
        "score": result.score,
        "extracted": result.extracted,
        "seconds": round(result.seconds, 6),
        "detail": result.detail,
    }


def _rows(path: Path) -> Iterator[_ScoreRow | _UnusableRow]:
    try:
        with path.open(encoding="utf-8", errors="strict") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row(f"{path}, line {number}", line)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _integer(text: str) -> int:
    """An integer of any length: ``int`` reads no more than 4,300 digits."""
    return int(text) if len(text) < 4000 else int(Decimal(text))


def _row(place: str, line: str) -> _ScoreRow | _UnusableRow:
    try:
        value = json.loads(line, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not a JSON object ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{place}: expected a JSON object, found {type(value).__name__}")
    unusable = functools.partial(_UnusableRow, key=value.get("id"))
    missing = [key for key in ("id", "response") if key not in value]
    if "reference" not in value and "tests" not in value:
        missing.append("reference")
    if missing:
        has = ", ".join(map(repr, value))
        return unusable(reason=f"{place}: missing {', '.join(map(repr, missing))}; it has: {has}")
    if not isinstance(value["response"], str):
        return unusable(reason=f"{place}: 'response' must be text, found {type(value['response']).__name__}")
    key = "reference" if "reference" in value else "tests"
    given = value[key]
    if isinstance(given, (str, Mapping)):
        return _ScoreRow(key=value["id"], response=value["response"], reference=given)
    if isinstance(given, list) and given and all(isinstance(one, str) for one in given):
        return _ScoreRow(key=value["id"], response=value["response"], reference=tuple(given))
    found = json.dumps(given)[:80]
    return unusable(reason=f"{place}: {key!r} must be text, a list of texts or an object, found {found}")

"""``rlreason score``: a verifier over a JSONL file, to a JSONL file in the same order."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rlreason.errors import UsageError
from rlreason.progress import Watch
from rlreason.rewards.mix import MixPart, RewardMix
from rlreason.rewards.pool import Pool
from rlreason.rewards.registry import resolve_verifier
from rlreason.scorer import as_reward
from rlreason.types import Completion, Problem, Reference, RewardResult


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScoreRow:
    """One input row. Example: ``_ScoreRow(key="17", response="... \\boxed{6}", reference="6")``."""

    key: object
    response: str
    reference: Reference


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
    watch: Watch = lambda done, total: None,
) -> dict[str, int]:
    """Score every row and return how many got each verdict. Streams: memory does not grow with the file.

    Rows in: ``{"id", "response", "reference"}`` (reference: text, a list of texts, or a mapping), or ``"tests"`` in
    place of ``"reference"`` for code. Rows out: ``{"id", "verdict", "score", "extracted", "seconds", "detail"}``.
    The output file appears only when all rows are done; where ``output_path`` is a link, it is the file behind it. What
    is no file, such as /dev/stdout, is written to as rows are scored. ``watch`` is told how many are. Raises UsageError
    that names file and line, and for an output that can't be, before anything is scored.
    """
    try:
        resolve_verifier(verifier)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if workers < 1 or timeout <= 0:
        raise UsageError(f"score needs workers >= 1 and timeout > 0, not {workers} and {timeout}")
    output_path = _checked_output(output_path)
    total = None
    if input_path.is_file():  # a bad row is reported before any work is done; a pipe can't be read twice
        total = sum(1 for _ in _rows(input_path))
    counts: Counter[str] = Counter()
    keys: deque[object] = deque()

    def feed() -> Iterator[_ScoreRow]:
        for row in _rows(input_path):
            keys.append(row.key)
            yield row

    job = functools.partial(_score_row, RewardMix(parts=(MixPart(name="accuracy", weight=1.0),)), verifier)
    with _opened(output_path) as out, Pool(job, workers=workers, timeout=timeout) as pool:
        for number, outcome in enumerate(pool.imap(feed()), start=1):
            result = as_reward(outcome)
            counts[result.verdict.value] += 1
            out.write(json.dumps(_row_out(keys.popleft(), result)) + "\n")
            watch(number, total)
    return dict(counts)


def _checked_output(path: Path) -> Path:
    """The file behind ``path``. Raises UsageError where no file can be written there."""
    path = path.resolve()
    if path.is_dir():
        raise UsageError(f"--output {path} is a folder: give a file")
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: the folder {path.parent} does not exist")
    if not os.access(path if _is_special(path) else path.parent, os.W_OK):
        raise UsageError(f"--output {path}: no right to write there")
    return path


def _is_special(path: Path) -> bool:
    """Whether ``path`` is there and no plain file: a pipe or a device, which nothing may replace."""
    return path.exists() and not path.is_file()


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """``path`` to write to: all or nothing where it is a file."""
    if _is_special(path):
        with path.open("w", encoding="utf-8") as out:
            yield out
        return
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _row_out(key: object, result: RewardResult) -> dict[str, object]:
    return {
        "id": key,
        "verdict": result.verdict.value,
        "score": result.score,
        "extracted": result.extracted,
        "seconds": round(result.seconds, 6),
        "detail": result.detail,
    }


def _rows(path: Path) -> Iterator[_ScoreRow]:
    try:
        with path.open(encoding="utf-8", errors="strict") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _row(f"{path}, line {number}", line)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _row(place: str, line: str) -> _ScoreRow:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not a JSON object ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{place}: expected a JSON object, found {type(value).__name__}")
    missing = [key for key in ("id", "response") if key not in value]
    if "reference" not in value and "tests" not in value:
        missing.append("reference")
    if missing:
        raise UsageError(f"{place}: missing {', '.join(map(repr, missing))}; it has: {', '.join(map(repr, value))}")
    if not isinstance(value["response"], str):
        raise UsageError(f"{place}: 'response' must be text, found {type(value['response']).__name__}")
    key = "reference" if "reference" in value else "tests"
    return _ScoreRow(key=value["id"], response=value["response"], reference=_reference(place, key, value[key]))


def _reference(place: str, key: str, value: object) -> Reference:
    if isinstance(value, (str, Mapping)):
        return value
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise UsageError(f"{place}: {key!r} must be text, a list of texts or an object, found {json.dumps(value)[:80]}")

"""Answers with a label: the user's file, a stored run, or our own small problems.

Columns: ``response`` (or ``completion``, ``pred``, ``prediction``), ``reference`` (or ``answer``, ``gold``,
``ground_truth``, ``solution``, ``tests``), and the label ``correct`` (or ``equal``, ``is_correct``, ``label``,
``want`` = pass or fail); ``prompt`` or ``problem`` (or ``question``), ``id``, ``verifier`` where there are. With
``mode`` = "answer" the prediction is an answer without a response around it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlreason.errors import UsageError
from rlreason.rewards.audit.specimens import Specimen, answer_kind
from rlreason.types import Problem, Reference

_RESPONSE = ("response", "completion", "pred", "prediction", "solution_str")
_REFERENCE = ("reference", "answer", "gold", "ground_truth", "tests", "target", "solution")
_LABEL = ("correct", "equal", "is_correct", "label", "want", "right")
_PROMPT = ("prompt", "problem", "question", "instruction")
_YES, _NO = (
    frozenset({"true", "pass", "correct", "right", "yes"}),
    frozenset({"false", "fail", "wrong", "incorrect", "no"}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Example: ``Labelled(problem=Problem(…, reference="42"), response="… \\\\boxed{42}", right=True, bare=False)``."""

    problem: Problem
    response: str
    right: bool
    #: The response is an answer without a form around it.
    bare: bool

    @property
    def kind(self) -> str:
        """Of its reference."""
        return answer_kind(self.problem.reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSet:
    """Labelled answers with where they are from, and what their labels are worth."""

    source: str
    labels: str
    rows: tuple[Labelled, ...]


def read_labelled(path: Path, verifier: str) -> LabelledSet:
    """The rows of a JSONL file (also .gz), or the stored rollouts of a run directory.

    Raises UsageError naming file, line and column for the first row that can't be used.
    """
    if path.is_dir():
        return _run(path, verifier)
    rows = tuple(_row(f"{path}, line {number}", value, verifier) for number, value in _values(path))
    if not rows:
        raise UsageError(f"{path}: no rows")
    return LabelledSet(source=str(path), labels="of the file", rows=rows)


def _run(folder: Path, verifier: str) -> LabelledSet:
    files = sorted([*folder.glob("stages/*/rollouts.jsonl"), *folder.glob("stages/*/rollouts.jsonl.gz")])
    if not files:
        raise UsageError(
            f"{folder} has no stages/*/rollouts.jsonl: give a JSONL file of labelled answers, "
            "or a run that kept rollouts"
        )
    rows = []
    for file in files:
        for number, value in _values(file):
            verified = value.get("verified") if value.get("verified") is not None else value.get("verdict")
            if verified in {"correct", "wrong", "unparsed"}:
                rows.append(_row(f"{file}, line {number}", {**value, "correct": verified == "correct"}, verifier))
    if not rows:
        raise UsageError(f"{folder}: its rollouts have no verdicts")
    return LabelledSet(source=str(folder), labels="of the run's own verifier, not of people", rows=tuple(rows))


def _values(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UsageError(f"{path}, line {number}: not a JSON object ({error})") from None
                if not isinstance(value, dict):
                    raise UsageError(f"{path}, line {number}: expected a JSON object, found {type(value).__name__}")
                yield number, value
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _row(place: str, row: Mapping[str, object], verifier: str) -> Labelled:
    response = row[_column(place, row, _RESPONSE, "the response")]
    if not isinstance(response, str):
        raise UsageError(f"{place}: the response must be text, found {type(response).__name__}")
    taken = _column(place, row, _LABEL, "the label: true or false")
    reference = _reference(place, row[_column(place, row, _REFERENCE, "the gold answer")])
    prompt = next((str(row[name]) for name in _PROMPT if isinstance(row.get(name), str)), "")
    kind = answer_kind(reference)
    judge = {"code": "code", "numbers": "countdown"}.get(kind, verifier)
    known = {*_RESPONSE, *_REFERENCE, *_LABEL, *_PROMPT, "id"}
    problem = Problem(
        id=str(row.get("problem_id", row.get("id", place))),
        prompt=prompt,
        verifier=str(row["verifier"]) if isinstance(row.get("verifier"), str) else judge,
        reference=reference,
        source=str(row.get("source", "")),
        extra={name: value for name, value in row.items() if name not in known},
    )
    return Labelled(
        problem=problem, response=response, right=_label(place, taken, row[taken]), bare=row.get("mode") == "answer"
    )


def _column(place: str, row: Mapping[str, object], names: Sequence[str], what: str) -> str:
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        raise UsageError(
            f"{place}: no column for {what}: expected one of {', '.join(names)}; it has: {', '.join(row) or 'nothing'}"
        )
    return found


def _label(place: str, name: str, value: object) -> bool:
    if isinstance(value, bool) or (isinstance(value, (int, float)) and value in {0, 1}):
        return bool(value)
    if isinstance(value, str) and value.lower() in _YES | _NO:
        return value.lower() in _YES
    raise UsageError(f"{place}: the label {name!r} must be true or false, found {json.dumps(value)[:80]}")


def _reference(place: str, value: object) -> Reference:
    if isinstance(value, (str, Mapping)):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(one, (str, int, float)) for one in value):
        return tuple(map(str, value))
    raise UsageError(
        f"{place}: the gold answer must be text, a list of texts or an object, not {json.dumps(value)[:80]}"
    )


def of_specimens(specimens: Sequence[Specimen]) -> LabelledSet:
    """Our own problems: the right answer and each wrong one, without a form around them."""
    rows = []
    for one in specimens:
        rights = (one.right,) if one.right is not None else ()
        for answers, right in ((rights, True), (one.wrong, False)):
            rows += [Labelled(problem=one.problem, response=a, right=right, bare=True) for a in answers]
    return LabelledSet(source="built-in problems", labels="by construction", rows=tuple(rows))

"""Completions to try a reward on: rows of a file, or the rollouts that a run has stored."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlreason.errors import UsageError, nearest
from rlreason.types import Completion, Message, Problem, Reference, Verdict

#: Turns a response into its token ids.
Tokenize = Callable[[str], Sequence[int]]
#: Keys of a row that are not columns of its data set.
_KNOWN = frozenset(
    {"id", "response", "reference", "tests", "prompt", "messages", "source", "verifier", "tokens", "finish_reason"}
)
#: Those of a run's rollouts, which no data set has.
_OF_A_RUN = frozenset(
    {"step", "group_id", "problem_id", "rendered_prompt", "sample", "verdict", "verified", "score", "extracted",
    "parts",
     "detail", "policy_version", "policy_version_min", "advantage", "logged_for", "extra", "data_set"}
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRow:
    """Example: ``RewardRow(key="17", group="grpo/3/p17", step="grpo/3", problem=…, completion=…, score=1.0,
    verified=Verdict.CORRECT)``."""

    key: object
    #: Rows with one name, one after the other, are the completions of a problem.
    group: str
    #: Rows with one name are a step, for rewards that see a whole one.
    step: str
    problem: Problem
    completion: Completion
    #: What a run gave it; None: nothing, or no run did.
    score: float | None = None
    verified: Verdict | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRows:
    """Rows, and how their lengths were told: "tokens" (their ids), "counts" (as many as the run drew, of unknown ids)
    or "words" (nothing said how many tokens there are)."""

    rows: tuple[RewardRow, ...]
    lengths: str


def rows_of_file(path: Path, tokenize: Tokenize | None, verifier: str | None = None) -> RewardRows:
    """Rows ``{"id", "response", "reference", …}`` of a JSONL file, or a run's rollouts.jsonl.

    ``verifier``: what the problems are checked with where the row does not say. Raises UsageError with file and line.
    """
    rows = [_row(place, value, tokenize, verifier or "math") for place, value in _lines(path)]
    if not rows:
        raise UsageError(f"{path}: no rows in it")
    return RewardRows(rows=tuple(row for row, _ in rows), lengths=_lengths([how for _, how in rows]))


def rows_of_run(run: str, tokenize: Tokenize | None) -> RewardRows:
    """The stored rollouts of a run directory, ``RUN`` or ``RUN:STAGE``. Raises UsageError where there are none."""
    place, _, stage = run.rpartition(":") if ":" in run and not Path(run).exists() else (run, "", "")
    root = Path(place)
    if not (root / "stages").is_dir():
        raise UsageError(f"{place}: no run directory (it has no stages/)")
    found = {path.parent.name.partition("-")[2]: path for path in sorted(root.glob("stages/*/rollouts.jsonl*"))}
    if stage and stage not in found:
        raise UsageError(f"{place}: no stored rollouts of a stage {stage!r}{nearest(stage, found)} (there are: "
                         f"{', '.join(found) or 'none'})")  # fmt: skip
    names = [stage] if stage else list(found)
    if not names:
        raise UsageError(f"{place}: no stage of it has stored rollouts (stages/*/rollouts.jsonl)")
    verifier = _verifier_of(root)
    parts = [rows_of_file(found[name], tokenize, verifier) for name in names]
    rows = tuple(_of_stage(row, name) for part, name in zip(parts, names, strict=True) for row in part.rows)
    return RewardRows(rows=rows, lengths=_lengths([part.lengths for part in parts]))


def _of_stage(row: RewardRow, stage: str) -> RewardRow:
    return replace(row, step=f"{stage}/{row.step}", key=f"{row.group}/{row.key}")


def _verifier_of(root: Path) -> str | None:
    """The recipe's verifier, for rollouts that were stored without."""
    try:
        from rlreason.config import load

        return load(root / "recipe.toml").data.verifier
    except (UsageError, OSError):
        return None


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield (place := f"{path}, line {number}"), _object(place, line)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UsageError(f"{path}: a broken gzip file ({error})") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _object(place: str, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not a JSON object ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{place}: expected a JSON object, found {type(value).__name__}")
    return value


def _row(place: str, value: dict[str, Any], tokenize: Tokenize | None, verifier: str) -> tuple[RewardRow, str]:
    response = value["response"] if "response" in value else value.get("completion")
    if not isinstance(response, str):
        has = ", ".join(map(repr, value))
        raise UsageError(f"{place}: needs 'response', the completion's text; it has: {has}")
    completion, how = _completion(place, value, response, tokenize)
    key = value["id"] if "id" in value else value.get("sample", place.rpartition(" ")[2])
    name = str(value.get("problem_id", key))
    problem = Problem(
        id=name,
        prompt=str(value.get("prompt") or ""),
        verifier=str(value.get("verifier") or verifier),
        reference=_reference(place, value),
        source=str(value.get("source") or ""),
        data_set=str(value.get("data_set") or ""),
        messages=_messages(place, value.get("messages")),
        extra=_extra(value),
    )
    verified = value.get("verified")
    row = RewardRow(
        key=key,
        group=str(value.get("group_id") or value.get("group") or name),
        step=str(value.get("step") if "group_id" in value else ""),
        problem=problem,
        completion=completion,
        score=None if value.get("score") is None else float(value["score"]),
        verified=None if verified is None else Verdict(verified),
    )
    return row, how


def _completion(
    place: str, value: Mapping[str, Any], response: str, tokenize: Tokenize | None
) -> tuple[Completion, str]:
    """With token ids where there is a tokenizer; otherwise with as many numbers as tokens are known, or words."""
    if tokenize is not None:
        ids, how = np.asarray(tokenize(response), dtype=np.int32), "tokens"
    elif value.get("tokens") is not None:
        try:
            ids, how = np.arange(int(value["tokens"]), dtype=np.int32), "counts"
        except (TypeError, ValueError):
            raise UsageError(f"{place}: 'tokens' must be a number, not {value['tokens']!r}") from None
    else:
        ids, how = np.arange(len(response.split()), dtype=np.int32), "words"
    cut = value.get("finish_reason") == "length"
    none = np.zeros(0, dtype=np.int32)
    completion = Completion(
        prompt_ids=none, token_ids=ids, sampler_logprobs=None, text=response, finish_reason="length" if cut else "stop"
    )
    return completion, how


def _reference(place: str, value: Mapping[str, Any]) -> Reference:
    given = next((value[key] for key in ("reference", "tests", "answer") if value.get(key) is not None), "")
    if isinstance(given, (str, Mapping)):
        return given
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return str(given)
    if isinstance(given, list) and given and all(isinstance(one, str) for one in given):
        return tuple(given)
    raise UsageError(f"{place}: 'reference' must be text, a list of texts or an object, found {json.dumps(given)[:80]}")


def _messages(place: str, value: object) -> tuple[Message, ...]:
    if value is None or value == []:
        return ()
    try:
        return tuple(Message(role=one["role"], content=one["content"]) for one in value)  # type: ignore[attr-defined]
    except (TypeError, KeyError):
        raise UsageError(f"{place}: 'messages' must be a list of {{role, content}}") from None


def _extra(value: Mapping[str, Any]) -> dict[str, object]:
    """The columns that rewards may ask for: what a run has stored of them, or all others of the row."""
    stored = value.get("extra")
    if "group_id" in value:
        return dict(stored) if isinstance(stored, Mapping) else {}
    extra = {name: one for name, one in value.items() if name not in _KNOWN | _OF_A_RUN}
    return extra | (dict(stored) if isinstance(stored, Mapping) else {})


def _lengths(found: Sequence[str]) -> str:
    return next((one for one in ("words", "counts", "tokens") if one in found), "words")

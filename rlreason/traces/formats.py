"""Trace files of others: read into rows, written from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlreason.errors import UsageError, nearest
from rlreason.traces.rows import PassRate, TraceRow, Turn

FORMATS = ("openr1", "openthoughts", "messages", "rows")


def read_traces_of(path: Path, form: str) -> Iterator[TraceRow]:
    """Rows of a JSONL or Parquet file in a known form, verdicts empty unless the file has them.

    openr1: problem, answer, generations[], correctness_math_verify[], finish_reasons[]. openthoughts: conversations
    [{from, value}] or problem, deepseek_reasoning, deepseek_solution. messages: messages[{role, content}] (AM's
    info.reference_answer is read). rows: prompt, response, answer. Raises UsageError naming file and row.
    """
    if form not in _READERS:
        raise UsageError(f"--format {form}: known are {', '.join(FORMATS)}{nearest(form, FORMATS)}")
    for number, row in enumerate(_table(path), start=1):
        try:
            yield from _READERS[form](row, number)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise UsageError(f"{path}, row {number}: not a row of {form} ({type(error).__name__}: {error})") from error


def _table(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(256):
                yield from batch.to_pylist()
            return
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UsageError(f"{path} is no file of JSON lines: {error}") from error


def _row(number: int, draw: int, prompt: str, response: str, **more: Any) -> TraceRow:
    name = str(more.pop("key", "") or hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16])
    before, closed, behind = response.partition("</think>")
    return TraceRow(
        id=f"{number:08d}-{draw:03d}",
        problem_id=name,
        prompt=prompt,
        response=response,
        think_tokens=len(before.split()) if closed else 0,
        answer_tokens=len((behind if closed else before).split()),
        **more,
    )


def _openr1(row: Mapping[str, Any], number: int) -> Iterator[TraceRow]:
    generations = list(row["generations"])
    right = list(row.get("correctness_math_verify") or [None] * len(generations))
    ends = list(row.get("finish_reasons") or ["unknown"] * len(generations))
    known = [one for one in right if one is not None]
    for draw, text in enumerate(generations):
        yield _row(
            number,
            draw,
            str(row["problem"]),
            text,
            key=row.get("uuid"),
            source=str(row.get("source") or ""),
            verifier="math",
            reference=str(row.get("answer") or ""),
            finish_reason=ends[draw] if ends[draw] in ("stop", "length") else "unknown",
            verdict="" if right[draw] is None else "correct" if right[draw] else "wrong",
            pass_rate=PassRate(correct=sum(known), drawn=len(known)) if known else None,
        )


def _openthoughts(row: Mapping[str, Any], number: int) -> Iterator[TraceRow]:
    source = str(row.get("source") or row.get("domain") or "")
    if "deepseek_reasoning" in row:
        text = f"<think>\n{row['deepseek_reasoning']}\n</think>\n\n{row['deepseek_solution']}"
        gold = str(row.get("ground_truth_solution") or "")
        yield _row(number, 0, str(row["problem"]), text, source=source, detail=gold[:500])
        return
    turns = {one["from"]: one["value"] for one in row["conversations"]}
    question = turns.get("human", turns.get("user"))
    answer = turns.get("gpt", turns.get("assistant"))
    if question is None or answer is None:
        raise ValueError("conversations has no human or no gpt turn")
    yield _row(number, 0, question, answer, source=source)


def _messages(row: Mapping[str, Any], number: int) -> Iterator[TraceRow]:
    turns = list(row["messages"])
    if not turns or turns[-1]["role"] != "assistant":
        raise ValueError("messages does not end with the assistant's turn")
    before = tuple(Turn(role=one["role"], content=one["content"]) for one in turns[:-1])
    question = next(one.content for one in reversed(before) if one.role == "user")
    gold = next((one["info"].get("reference_answer") for one in turns if one.get("info")), None)
    told = [] if len(before) == 1 else list(before)
    yield _row(
        number,
        0,
        question,
        turns[-1]["content"],
        messages=tuple(told),
        verifier="math" if gold else "",
        reference=str(gold or ""),
        source=next((str(one["info"].get("source") or "") for one in turns if one.get("info")), ""),
    )


def _rows(row: Mapping[str, Any], number: int) -> Iterator[TraceRow]:
    gold = row.get("answer", row.get("reference", ""))
    finish = row.get("finish_reason", "unknown")
    yield _row(
        number,
        0,
        str(row["prompt"]),
        str(row["response"]),
        source=str(row.get("source") or ""),
        verifier="math" if gold not in ("", None) else "",
        reference="" if gold is None else gold,
        finish_reason=finish if finish in ("stop", "length") else "unknown",
    )


_READERS: dict[str, Callable[[Mapping[str, Any], int], Iterator[TraceRow]]] = {
    "openr1": _openr1,
    "openthoughts": _openthoughts,
    "messages": _messages,
    "rows": _rows,
}


def export_rows(rows: Sequence[TraceRow], path: Path, form: str) -> int:
    """Write rows as JSONL, or Parquet where ``path`` ends so; how many lines. Raises UsageError for an unknown form."""
    if form == "rows" or form not in FORMATS:
        known = [one for one in FORMATS if one != "rows"]
        raise UsageError(f"--format {form}: known are {', '.join(known)}{nearest(form, known)}")
    if form == "openr1":
        table = _as_openr1(rows)
    else:
        table = [_as_openthoughts(row) if form == "openthoughts" else _as_messages(row) for row in rows]
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
        return len(table)
    with path.open("w", encoding="utf-8") as file:
        for row in table:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return len(table)


def _turns(row: TraceRow) -> list[dict[str, str]]:
    asked = [{"role": one.role, "content": one.content} for one in row.messages]
    asked = asked or [{"role": "user", "content": row.prompt}]
    return [*asked, {"role": "assistant", "content": row.response}]


def _as_messages(row: TraceRow) -> dict[str, Any]:
    return {"messages": _turns(row)}


def _as_openthoughts(row: TraceRow) -> dict[str, Any]:
    rate = row.pass_rate
    return {
        "difficulty": None if rate is None or not rate.drawn else round(10 * (1 - rate.correct / rate.drawn)),
        "source": row.source or row.data_set,
        "domain": row.verifier,
        "conversations": [{"from": "human", "value": row.prompt}, {"from": "gpt", "value": row.response}],
    }


def _as_openr1(rows: Sequence[TraceRow]) -> list[dict[str, Any]]:
    """One line a problem, its responses together."""
    by_problem: dict[str, list[TraceRow]] = {}
    for row in rows:
        by_problem.setdefault(row.problem_id, []).append(row)
    found = []
    for group in by_problem.values():
        first = group[0]
        right = [row.verdict == "correct" for row in group]
        found.append(
            {
                "problem": first.prompt,
                "solution": "",
                "answer": first.reference if isinstance(first.reference, str) else json.dumps(first.reference),
                "problem_type": "",
                "question_type": "",
                "source": first.source or first.data_set,
                "uuid": first.problem_id,
                "is_reasoning_complete": ["</think>" in row.response for row in group],
                "generations": [row.response for row in group],
                "correctness_math_verify": right,
                "correctness_llama": None,
                "finish_reasons": [row.finish_reason for row in group],
                "correctness_count": sum(right),
                "messages": _turns(first),
            }
        )
    return found

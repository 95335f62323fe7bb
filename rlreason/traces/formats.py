"""Trace files of others: read into rows, written from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlreason.errors import UsageError, nearest
from rlreason.traces.rows import PassRate, TraceRow, Turn

FORMATS = ("openr1", "openthoughts", "messages", "rows")


#: What a row of each form must have, for messages.
_NEEDS = {
    "openr1": '{"problem": text, "answer": text, "generations": [text, …]}',
    "openthoughts": '{"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}]}',
    "messages": '{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}',
    "rows": '{"prompt": text, "response": text, "answer": text, number or a list of them}',
}


def read_traces_of(path: Path, form: str) -> Iterator[TraceRow]:
    """Rows of a JSONL or Parquet file in a known form, verdicts empty unless the file has them; blank lines are none.

    openr1: problem, answer, generations[], correctness_math_verify[], finish_reasons[]. openthoughts: conversations
    [{from, value}] or problem, deepseek_reasoning, deepseek_solution. messages: messages[{role, content}] (AM's
    info.reference_answer is read). rows: prompt, response, answer. Raises UsageError naming file, row and fix.
    """
    if form not in _READERS:
        raise UsageError(f"--format {form}: known are {', '.join(FORMATS)}{nearest(form, FORMATS)}")
    for number, row in _table(path):
        try:
            found = list(_READERS[form](row, number))
            for one in found:
                _check_text(one)
        except KeyError as error:
            raise _wrong(path, number, form, f"it has no {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise _wrong(path, number, form, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (TypeError, IndexError, AttributeError, ValueError) as error:
            raise _wrong(path, number, form, str(error)) from error
        yield from found


def _wrong(path: Path, number: int, form: str, why: str) -> UsageError:
    return UsageError(
        f"{path}, row {number}: not a row of {form}: {why}; a row is {_NEEDS[form]}: mend the row or leave it out, or "
        f"name another --format ({', '.join(FORMATS)})"
    )


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers, of JSONL their lines."""
    number = 0
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UsageError(f"{path}, row {number}: no table, such as {_NEEDS['rows']}, but {row!r:.40}")
                    yield number, row
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UsageError(
            f"{path} is no file of JSON lines: row {number or 1} can't be read ({error}); mend it or leave it out"
        ) from error


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(256):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pyarrow.ArrowException, ValueError) as error:
        raise UsageError(f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}") from error


def _check_text(row: TraceRow) -> None:
    """Raises ValueError for half a character, which no text file can hold."""
    texts = [row.id, row.problem_id, row.prompt, row.source, row.response, row.detail, str(row.reference)]
    for text in [*texts, *(turn.content for turn in row.messages)]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(text[error.start]):04x}"
            raise ValueError(f"it holds {half}, half of a surrogate pair and no character: replace it") from error


def _text(row: Mapping[str, Any], key: str) -> str:
    """The text of a key. Raises KeyError, and ValueError for what is none."""
    if not isinstance(row[key], str):
        raise ValueError(f"{key} must be text, not {row[key]!r:.40}")
    return str(row[key])


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(row[key], (list, tuple)):
        raise ValueError(f"{key} must be a list, not {row[key]!r:.40}")
    return list(row[key])


def _gold(value: object, key: str) -> str | list[str]:
    """A gold answer as text; "" for none. Raises ValueError for what is none."""
    if isinstance(value, (list, tuple)):
        return [one for one in (_gold(part, key) for part in value) if isinstance(one, str)]
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key} must be text, a number or a list of them, not {value!r:.40}")
    return str(value)


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
    generations = _list(row, "generations")
    right = list(row.get("correctness_math_verify") or [None] * len(generations))
    ends = list(row.get("finish_reasons") or ["unknown"] * len(generations))
    if len(right) != len(generations) or len(ends) != len(generations):
        raise ValueError(
            f"of {len(generations)} generations, it has {len(right)} of correctness_math_verify, {len(ends)} of "
            "finish_reasons"
        )
    known = [one for one in right if one is not None]
    for draw, text in enumerate(generations):
        if not isinstance(text, str):
            raise ValueError(f"generations must be texts, not {text!r:.40}")
        yield _row(
            number,
            draw,
            _text(row, "problem"),
            text,
            key=row.get("uuid"),
            source=str(row.get("source") or ""),
            verifier="math",
            reference=_gold(row.get("answer"), "answer"),
            finish_reason=ends[draw] if ends[draw] in ("stop", "length") else "unknown",
            verdict="" if right[draw] is None else "correct" if right[draw] else "wrong",
            pass_rate=PassRate(correct=sum(known), drawn=len(known)) if known else None,
        )


def _openthoughts(row: Mapping[str, Any], number: int) -> Iterator[TraceRow]:
    source = str(row.get("source") or row.get("domain") or "")
    if "deepseek_reasoning" in row:
        text = f"<think>\n{_text(row, 'deepseek_reasoning')}\n</think>\n\n{_text(row, 'deepseek_solution')}"
        gold = str(row.get("ground_truth_solution") or "")
        yield _row(number, 0, _text(row, "problem"), text, source=source, detail=gold[:500])
        return
    turns = {one["from"]: _text(one, "value") for one in _list(row, "conversations")}
    question = turns.get("human", turns.get("user"))
    answer = turns.get("gpt", turns.get("assistant"))
    if question is None or answer is None:
        raise ValueError("conversations has no human or no gpt turn")
    yield _row(number, 0, question, answer, source=source)


def _messages(row: Mapping[str, Any], number: int) -> Iterator[TraceRow]:
    turns = _list(row, "messages")
    if not turns or turns[-1]["role"] != "assistant":
        raise ValueError("messages does not end with the assistant's turn")
    before = tuple(Turn(role=one["role"], content=_text(one, "content")) for one in turns[:-1])
    asked = [one.content for one in before if one.role == "user"]
    if not asked:
        raise ValueError("messages has no turn of the user")
    infos = [_info(one) for one in turns if one.get("info")]
    gold = next((_gold(one.get("reference_answer"), "info.reference_answer") for one in infos), "")
    told = [] if len(before) == 1 else list(before)
    yield _row(
        number,
        0,
        asked[-1],
        _text(turns[-1], "content"),
        messages=tuple(told),
        verifier="math" if gold else "",
        reference=gold,
        source=next((str(one.get("source") or "") for one in infos), ""),
    )


def _info(turn: Mapping[str, Any]) -> Mapping[str, Any]:
    info = turn["info"]
    if not isinstance(info, Mapping):
        raise ValueError(f'info of a turn must be a table, such as {{"reference_answer": "4"}}, not {info!r:.40}')
    return info


def _rows(row: Mapping[str, Any], number: int) -> Iterator[TraceRow]:
    key = "answer" if "answer" in row else "reference"
    gold = _gold(row.get(key), key)
    finish = row.get("finish_reason", "unknown")
    yield _row(
        number,
        0,
        _text(row, "prompt"),
        _text(row, "response"),
        source=str(row.get("source") or ""),
        verifier="math" if gold else "",
        reference=gold,
        finish_reason=finish if finish in ("stop", "length") else "unknown",
    )


_READERS: dict[str, Callable[[Mapping[str, Any], int], Iterator[TraceRow]]] = {
    "openr1": _openr1,
    "openthoughts": _openthoughts,
    "messages": _messages,
    "rows": _rows,
}


def export_rows(rows: Iterable[TraceRow], path: Path, form: str) -> int:
    """Write rows as JSONL, or Parquet where ``path`` ends so; how many lines. Raises UsageError for an unknown form."""
    if form == "rows" or form not in FORMATS:
        known = [one for one in FORMATS if one != "rows"]
        raise UsageError(f"--format {form}: known are {', '.join(known)}{nearest(form, known)}")
    table: Iterable[dict[str, Any]]
    if form == "openr1":
        table = _as_openr1(rows)
    else:
        table = map(_as_openthoughts if form == "openthoughts" else _as_messages, rows)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        whole = pyarrow.Table.from_pylist(list(table))
        pyarrow.parquet.write_table(whole, path)
        return int(whole.num_rows)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in table:
            count += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


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


def _as_openr1(rows: Iterable[TraceRow]) -> list[dict[str, Any]]:
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

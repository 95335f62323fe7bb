"""An answer in a JSON object: ``42`` of ``{"reasoning": "…", "answer": 42}``."""

from __future__ import annotations

import json
import re

_KEYS = ("final_answer", "answer", "finalAnswer", "result", "solution", "choice", "option", "value")
_MOST_TRIED = 8
_RAW = re.compile(r'"(?:final_answer|answer)"\s*:\s*"((?:[^"\\]|\\.){0,500})"')


def json_answer(text: str) -> str | None:
    """The value of the JSON object that ends ``text``, alone or in a code fence; "" where it is no text or number, None
    where there is no such object."""
    text = text.strip().strip("`").strip()
    if not text.endswith("}"):
        return None
    start = len(text)
    for _ in range(_MOST_TRIED):
        start = text.rfind("{", 0, start)
        if start < 0:
            return None
        if text[:start].rstrip(" \t").endswith("\n") or not text[:start].strip() or text[:start].endswith("json"):
            found = _value_of(text[start:])
            if found is not None:
                return found
    return None


def _value_of(text: str) -> str | None:
    try:
        found = _picked(json.loads(text))
    except (ValueError, RecursionError):
        found = None
    if found is not None and found.isprintable():
        return found
    raw = _RAW.search(text)  # "\frac12" with one backslash is no JSON, or another text in JSON
    return raw[1] if raw else found


def _picked(value: object, depth: int = 0) -> str | None:
    if isinstance(value, dict):
        keys = [key for key in _KEYS if key in value]
        return _picked(value[keys[0]], depth + 1) if keys and depth < 3 else None
    if not depth:
        return None
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""

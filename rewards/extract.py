"""Where the answer stands in a response. Linear scans only: no regex that can backtrack."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])|(?:boxed|fbox)(?=\{)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A ``\\boxed{…}``. Example: ``Box(start=14, end=23, text="7")``; ``text`` None where it is never closed."""

    start: int
    end: int
    text: str | None


def matching_brace(text: str, opening: int) -> int:
    """Index of the ``}`` that closes the ``{`` at ``opening``, or -1. Escaped braces do not count."""
    depth, i = 0, opening
    while i < len(text):
        char = text[i]
        if char == "\\":
            i += 2
            continue
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return i
        i += 1
    return -1


def boxes(text: str) -> list[Box]:
    """Outermost ``\\boxed{…}`` and ``\\fbox{…}``, from left to right; ``\\boxed 5`` takes one token."""
    found: list[Box] = []
    at = 0
    while True:
        command = _BOX.search(text, at)
        if command is None:
            return found
        start, after = command.span()
        while after < len(text) and text[after] in " \t\n":
            after += 1
        if after < len(text) and text[after] == "{":
            close = matching_brace(text, after)
            if close < 0:
                found.append(Box(start=start, end=len(text), text=None))
                return found
            found.append(Box(start=start, end=close + 1, text=text[after + 1 : close]))
            at = close + 1
        else:
            end = after
            while end < len(text) and not text[end].isspace() and text[end] not in "$.,;":
                end += 1
            found.append(Box(start=start, end=end, text=text[after:end] or None))
            at = max(end, after)


def after_thought(response: str) -> str | None:
    """Text after the last ``</think>``; None where a ``<think>`` after it, or the only one, is never closed."""
    _, _, after = response.rpartition("</think>")
    return None if "<think>" in after else after


def marked_answer(response: str) -> str | None:
    """The last ``<answer>…</answer>`` or ``\\boxed{…}`` after the thought; None if there is none or it is unclosed."""
    text = after_thought(response)
    if text is None:
        return None
    inner = last_tagged(text)
    found = boxes(text)
    if inner is not None and (not found or found[-1].start < inner[1]):
        inside = boxes(text[inner[0] : inner[1]])
        return inside[-1].text if inside else text[inner[0] : inner[1]].strip() or None
    return found[-1].text if found else None


def last_tagged(text: str) -> tuple[int, int] | None:
    """Where the content of the last ``<answer>`` starts and ends; an unclosed one is empty."""
    opened = text.rfind("<answer>")
    if opened < 0:
        return None
    start = opened + len("<answer>")
    close = text.find("</answer>", start)
    return (start, close) if close >= 0 else (len(text), len(text))

"""Where the answer stands in a response. Linear scans only: no regex that can backtrack."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOX = re.compile(
    r"\\(?:boxed|fbox|framebox|bbox)(?![A-Za-z])(?:\s*\[[^\[\]{}\n]{0,60}\]){0,2}(?=\s*\{)"  # \bbox[5px,border:1px]{7}
    r"|\\(?:boxed|fbox|framebox)(?![A-Za-z])|\\box\s*(?=\{)|(?:boxed|fbox)(?=\{)"
)
#: ``\boxed so here it is`` speaks of a box; ``\boxed x`` is one.
_A_WORD = re.compile(r"[A-Za-z]{2,}(?![A-Za-z0-9{\\^_=(])|[A-Za-z](?=[ ,]+[A-Za-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A ``\\boxed{…}``. Example: ``Box(start=14, end=23, text="7")``; ``text`` None where it is never closed."""

    start: int
    end: int
    text: str | None


def matching_brace(text: str, opening: int) -> int:
    """Index of the ``}`` that closes the ``{`` at ``opening``, or -1. Escaped braces do not count."""
    depth = 0
    for brace in _BRACE.finditer(text, opening):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0 and brace[0] == "}":
            return brace.start()
    return -1


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def _next_box(text: str, at: int) -> re.Match[str] | None:
    """The first command for a box from ``at`` on; looked for where "box" stands, which is quick."""
    word = text.find("box", at)
    while word >= 0:
        command = _BOX.search(text, max(at, word - _LONGEST), word + _REACH)
        if command is not None:
            return command
        word = text.find("box", word + 3)
    return None


#: Letters of ``\\framebox`` before "box", and how far its options may go on.
_LONGEST, _REACH = 6, 160


def boxes(text: str) -> list[Box]:
    """Outermost boxes from left to right: ``\\boxed{…}``, ``\\fbox``, ``\\framebox``, ``\\bbox``; ``\\boxed 5`` takes
    one token, unless that is a word."""
    found: list[Box] = []
    at = 0
    while True:
        command = _next_box(text, at)
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
        elif _A_WORD.match(text, after):
            at = after
        else:
            end = after
            while end < len(text) and not text[end].isspace() and text[end] not in "$.,;":
                end += 1
            found.append(Box(start=start, end=end, text=text[after:end] or None))
            at = max(end, after)


def innermost(content: str) -> str:
    """What stands in the innermost of boxes that hold nothing but a box. Linear in any depth."""
    if "box" not in content or not _BOX.match(content.lstrip()):
        return content
    closing = _closing_braces(content)
    start, end = 0, len(content)
    while True:
        while start < end and content[start].isspace():
            start += 1
        while end > start and content[end - 1].isspace():
            end -= 1
        command = _BOX.match(content, start, end)
        after = command.end() if command else end
        while after < end and content[after].isspace():
            after += 1
        if closing.get(after) != end - 1:
            return content[start:end]
        start, end = after + 1, end - 1


def _closing_braces(text: str) -> dict[int, int]:
    """Where each brace that is closed closes."""
    opened: list[int] = []
    closing: dict[int, int] = {}
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif brace[0] == "}" and opened:
            closing[opened.pop()] = brace.start()
    return closing


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

"""Where the answer stands in a response. Linear scans only: no regex that can backtrack."""

from __future__ import annotations

from dataclasses import dataclass

_BOX_COMMANDS = ("\\boxed", "\\fbox")


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
        starts = [(i, command) for command in _BOX_COMMANDS if (i := text.find(command, at)) >= 0]
        if not starts:
            return found
        start, command = min(starts)
        after = start + len(command)
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
    """Text after the last ``</think>``; None where a ``<think>`` is never closed."""
    _, found, after = response.rpartition("</think>")
    if found:
        return after
    return None if "<think>" in after else after


def marked_answer(response: str) -> str | None:
    """The last ``<answer>…</answer>`` or ``\\boxed{…}`` after the thought; None if there is none or it is unclosed."""
    text = after_thought(response)
    if text is None:
        return None
    found = boxes(text)
    opened = text.rfind("<answer>")
    if opened >= 0 and (not found or found[-1].end <= opened or found[-1].start > opened):
        close = text.find("</answer>", opened)
        if found and close >= 0 and found[-1].start > close:
            return found[-1].text
        if close < 0:
            return None
        inner = text[opened + len("<answer>") : close]
        inside = boxes(inner)
        return inside[-1].text if inside else inner.strip() or None
    return found[-1].text if found else None

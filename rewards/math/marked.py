"""Answers in boxes and answer tags, and boxes that are one answer in pieces."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlreason.rewards.extract import Box, boxes, innermost
from rlreason.rewards.math.prose import is_answer
from rlreason.rewards.math.words import word_set

_MAX_BOXES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What kind of answer the gold is: it decides how prose is read, never which value is taken.

    Example: ``Wanted(letter=True)`` for a multiple-choice gold."""

    letter: bool = False
    many: bool = False
    words: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Example: ``Found(text="7", how="box")``. ``text`` None: a mark without an answer in it."""

    text: str | None
    how: str
    #: Where its mark ends in the text.
    end: int = 0


_TAG = re.compile(r"<(final[_ -]?answer|answer)>", re.IGNORECASE)


def marked(text: str, wanted: Wanted) -> Found | None:
    """The last box or answer tag, whichever comes later."""
    tag = last_tag(text) if "nswer>" in text or "NSWER>" in text else None
    found = boxes(text) if "box" in text else []
    if tag is not None and (not found or found[-1].start < tag[1]):
        content = text[tag[0] : tag[1]].strip()
        inside = boxes(content)
        if inside:
            inner = boxed(content, inside, wanted)
            return Found(text=inner.text, how=inner.how, end=tag[1])
        return Found(text=innermost(content) or None, how="answer tag", end=tag[1])
    return boxed(text, found, wanted) if found else None


def last_tag(text: str) -> tuple[int, int] | None:
    """Where the content of the last answer tag starts and ends. One that is never closed, as where ``</answer>`` is a
    stop word, holds what follows if that is nothing but an answer, else nothing."""
    opened = list(_TAG.finditer(text))
    if not opened:
        return None
    start = opened[-1].end()
    close = re.compile(rf"</{re.escape(opened[-1][1])}>", re.IGNORECASE).search(text, start)
    if close:
        return start, close.start()
    rest = text[start:].strip()
    whole = "\n" not in rest and len(rest) < 200 and (is_answer(rest, bare=True) or bool(boxes(rest)))
    return (start, len(text)) if whole else (len(text), len(text))


def boxed(text: str, found: list[Box], wanted: Wanted) -> Found:
    """The last box; with the boxes beside it where they are one answer in pieces."""
    last = found[-1]
    if last.text is None:
        return Found(text=None, how="unclosed box", end=last.end)
    found = _without_restatements(text, found)
    run = _adjacent(text, found, wanted.many)
    contents = [(innermost(box.text or "") + _percent_after(text, box)).strip() for box in run]
    if len(set(contents)) > 1:
        return Found(text=", ".join(contents), how="boxes", end=last.end)
    return Found(text=contents[-1] or None, how="box", end=last.end)


_RESTATES = re.compile(r"[\s$]*(?:\\approx|\\simeq|≈|≃|~|or about|or approximately|approximately)[\s$]*")


def _without_restatements(text: str, found: list[Box]) -> list[Box]:
    """``\\boxed{\\frac13} \\approx \\boxed{0.333}``: the first says what the answer is."""
    count = len(found)
    while count > 1 and _RESTATES.fullmatch(text, found[count - 2].end, found[count - 1].start):
        count -= 1
    return found[:count]


_PERCENT = re.compile(r"\s*\$?\s*(?:\\?%|(?:percent|per cent|pct)\b)")


def _percent_after(text: str, box: Box) -> str:
    return "\\%" if _PERCENT.match(text, box.end, box.end + 20) and "%" not in (box.text or "") else ""


def _adjacent(text: str, found: list[Box], many: bool) -> list[Box]:
    """The run of boxes that ends in the last one: joined by ``and``, ``or``, a comma; if the gold has many values,
    also by a few other words. "Wait, actually" and the like start anew."""
    run = [found[-1]]
    for box in reversed(found[-_MAX_BOXES:-1]):
        between = text[box.end : run[0].start]
        if not _joins(between, many):
            break
        run.insert(0, box)
    return run


_FRESH_START = word_set(
    "then wait no not actually so therefore thus hence but final finally check correction corrected instead sorry "
    "rather hmm answer answers is wrong recheck again first second"
)
#: ``(b)``, ``Part 2:`` before the box of a part.
_PART = re.compile(
    r"(?:\bpart\s*)?\(\s*(?:[a-h]|[ivx]{1,4}|\d)\s*\)[.:]?|\b(?:part|question|problem)\s+(?:[a-h]|\d)\b[.:]?",
    re.IGNORECASE,
)


def _joins(between: str, many: bool) -> bool:
    if len(between) > 80:
        return False
    bare = re.sub(r"\\(?:text|mbox|textbf)\s*\{([^{}]*)\}|\\q?quad|\\[a-zA-Z,;! ()\[\]]", r" \1 ", between)
    if many:
        bare = _PART.sub(" ", bare)
    words = re.findall(r"[A-Za-z]+", re.sub(r"[A-Za-z]\w*(?:_\{?\w+\}?)?(?:\(\w\))?\s*(?:=|\\in)", " ", bare))
    if {w.lower() for w in words} & _FRESH_START:
        return False
    linked = any(w.lower() in ("and", "or") for w in words)
    if many:
        return len(words) <= 6 and (linked or not words)
    return (linked and len(words) == 1) or (not words and bool(re.search(r"[,;]", bare)))

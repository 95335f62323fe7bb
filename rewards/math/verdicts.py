"""What a yes, a no, a true or a false says: "Yes, since 2 is even" says yes; "no idea" and "yes, if 2" say none.

The word must stand alone, or have a stop, a reason or a short sentence with a pronoun behind it that leaves it be.
"""

from __future__ import annotations

import re

YES_NO = frozenset({"yes", "no", "true", "false"})
_POSITIVE = frozenset({"yes", "true"})
#: Words that leave it open, or bound it, wherever they stand.
_OPEN = re.compile(
    r"[?？]|\bfor\b[^.]{0,80}[<>≤≥]|\b(?:or|(?:for|in) some|as long as|hardly|barely|scarcely|nope|nah|might|could be"
    r"|none"
    r"|neither|maybe|perhaps|possibly|probably|unless|if|except|excluding|sometimes|often|usually"
    r"|mostly"
    r"|partly|partially|depends|depending|only|otherwise|assuming|provided|providing|supposing|in general|generally"
    r"|(?:un)?sure|uncertain|unclear|unknown|idea|clue|guess(?:ing)?|don['’]t know|doubt|not always|almost"
    r"|when\b[^.]{0,80}[<>=≤≥]"
    r"|when (?:\w+ )?(?:is|are)|but|however|although|though|until|once|except|kind of|sort of|yes and no|no and yes)\b",
    re.IGNORECASE,
)
_WRONG = re.compile(r"\b(?:false|fails?|wrong|incorrect|untrue|mistaken|nonsense|impossible)\b", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:not|never|cannot|nor)\b|n['’]t\b", re.IGNORECASE)
_REASON = re.compile(
    r"\s*[,;:.!(—–-]*\s*(?:because|since|as\b|for\b|due to|given that|by\b|the\b[^.]*\b(?:because|since)\b)",
    re.IGNORECASE,
)
#: What may follow at once, without a stop.
_FOLLOWS = re.compile(
    r"\s*(?:[,;:!(—–。，]|\.(?!\s*\d)|\s-{1,2}\s|\s(?:because|since|as|it|they|he|she|we|you|there|this|that|these|those"
    r"|indeed|always|definitely|for (?:all|every|any|each)|by)\b)",
    re.IGNORECASE,
)


BINARY = re.compile(r"\W*(?:yes|no|true|false)\b", re.IGNORECASE)
_GOES_ON = re.compile(
    r"[\s.!*]*(?:(?:or|but|unless|if|only|maybe|perhaps|no|yes|not|however|except)\b|\d)", re.IGNORECASE
)


def binary(phrase: str, text: str) -> str:
    """The sentence ``phrase`` at the start of ``text``, with the next where that goes back on it: "Yes. Or no."."""
    rest = text.strip()[len(phrase) :]
    return text.strip().partition("\n")[0] if _GOES_ON.match(rest) and rest.strip()[:1] != "\n" else phrase


def says(text: str, word: str) -> bool:
    """Does an answer in words say ``word``, one of ``YES_NO``, and nothing that takes it back or leaves it open?"""
    text = text.strip(" *_\"'“”`().,!$\n")
    if text[: len(word)].lower() != word:
        return False
    rest = text[len(word) :].lstrip('*_"”')
    if not rest.strip(" .!*"):
        return True
    if not _FOLLOWS.match(rest) or _OPEN.search(rest):
        return False
    if word == "no" and re.match(r"[\s.#]*\d", rest):
        return False  # "No. 5"
    others = {w for w in re.findall(r"[a-z]+", rest.lower()) if w in YES_NO} - {word}
    if others and not _REASON.match(rest):
        return False
    if word not in _POSITIVE:
        return not re.search(
            r"\b(?:yes|it (?:is|does|can|has) (?:true|so|correct))\b|\b(?:one|problem)\b", rest, re.IGNORECASE
        )
    return bool(_REASON.match(rest)) or not (_WRONG.search(rest) or _DENIED.search(rest))

"""Which choice a piece of prose settles on: ``B`` of "Options A and C are wrong, so (B)."."""

from __future__ import annotations

import re

from rlreason.rewards.math.read import choice_letter

_LETTER = re.compile(r"(?<![A-Za-z'’\\])\(?([A-Z])\)?(?![A-Za-z'’])")
_FIRST = re.compile(r"\W{0,3}([A-Z])(?=[).:,。、]|\s*$|\s*\n|(?!不对|不正确|不成立|错)[^\x00-\x7f])")
_SAID = re.compile(
    r"(?:it's|it’s|it is|think|believe|choose|choice|option|select|pick|is|选"
    r"|选择)\s*:?\s*\**\(?([A-Z])\)?(?![A-Za-z'’])"
)
_CALLED_RIGHT = re.compile(
    r"\(?(?<![A-Za-z'’\\])([A-Z])\)?\**\s+(?:is|must be|seems|has to be)\s+(?:the\s+)?(?:right|correct|true|best"
    r"|answer)"
)
_OR_ANOTHER = re.compile(r"\)?\s*(?:or|and|/|&|,)\s*\(?[A-Z]\)?(?![A-Za-z'’])")
_SO = re.compile(
    r"\b(?:therefore|thus|hence|so|consequently|leaving|leaves|which leaves|we choose|i choose|donc|daher)\b"
    r"|因此|所以|故",
    re.IGNORECASE,
)
_WHY = re.compile(
    r"[,;(]?\s*\b(?:because|since|as (?:it|option|\(?[A-Z]\)?\s)|whereas|while|but not|and not|rather than)\b.*"
)
_REFUSED = re.compile(
    r"[?？]\s*$|\b(?:not|never|cannot|wrong|incorrect|false|eliminat\w+|rul(?:e|es|ed|ing) out|excluded?|fails?"
    r"|violates?|invalid|neither|nor|none|let|might|may|could|check|consider|suppose|assume|if|maybe|perhaps|try"
    r"|between|either|decide"
    r"|unsure|guess|versus|vs|doubt\w*|false)\b|n['’]t\b|不|错",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[\w)$*][.!?])\**\s+(?=\S)|(?<=[。！？])|\n+")
_SET = re.compile(r"\(?[A-H]\)?(?:\s*(?:[,、;和与及&]|,?\s*and)?\s*\(?[A-H]\)?){1,7}")


def letter_set(text: str) -> str | None:
    """``ABD`` of ``ABD。`` or ``A, B and D``: two or more choices and nothing else."""
    text = text.strip(" .。*$")
    return text if _SET.fullmatch(text) else None


def _unhedged(found: re.Match[str] | None) -> str | None:
    """The letter found, unless another follows it: "A or B"."""
    if found is None or _OR_ANOTHER.match(found.string, found.end()):
        return None
    return str(found[1])


def said_choice(phrase: str) -> str | None:
    """The choice of what follows "the answer is"; None where the phrase denies it."""
    sentence = phrase.partition("\n")[0] or phrase
    letter = choice_letter(sentence.strip(" .*"))
    if letter:
        return letter
    found = _LETTER.search(_WHY.sub("", sentence))
    return None if found is None or _REFUSED.search(sentence[: found.start()]) else _unhedged(found)


def settled_choice(text: str) -> str | None:
    """The choice of a sentence such as "the answer is C"; None where a letter only stands in it."""
    return _settled(text) if len(text) < _LONGEST else None


_LONGEST = 300


def concluded_choice(text: str) -> str | None:
    """The choice that prose settles on; None if it names several and settles on none."""
    first = _FIRST.match(text)
    if first:
        return _unhedged(first)
    sentences = [s for s in _SENTENCE.split(text) if s.strip()][-_MOST_SENTENCES:]
    for sentence in reversed(sentences):
        found = _settled(sentence)
        if found is not None:
            return found
    named = {m for m in _LETTER.findall(_WHY.sub("", sentences[-1])) if m != "I"} if sentences else set()
    return named.pop() if len(named) == 1 and not _REFUSED.search(sentences[-1]) else None


_MOST_SENTENCES = 30


def _settled(sentence: str) -> str | None:
    """The letter that a sentence chooses: after its last "so", or after "option", "I think it is"."""
    if sentence.rstrip(' *"').endswith(("?", "？")):
        return None
    so = list(_SO.finditer(sentence))
    if so:
        end = _WHY.sub("", sentence[so[-1].end() :])
        named = [m for m in _LETTER.finditer(end) if m[1] != "I"]
        if len(named) == 1 and not _REFUSED.search(end):
            return str(named[0][1])
    main = _WHY.sub("", sentence)
    right = list(_CALLED_RIGHT.finditer(main))
    if right and not _REFUSED.search(main[: right[-1].start()]):
        return str(right[-1][1])
    said = list(_SAID.finditer(main))
    if said and not _REFUSED.search(main[said[-1].start() :]) and not _REFUSED.search(_clause(main, said[-1].start())):
        return _unhedged(said[-1])
    return None


def _clause(text: str, end: int) -> str:
    """The clause that leads up to a place."""
    return re.split(r"[,;:]|\btherefore\b|\bso\b|\bbut\b", text[:end])[-1]

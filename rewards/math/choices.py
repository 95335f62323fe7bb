"""Which choice a piece of prose settles on: ``B`` of "Options A and C are wrong, so (B)."."""

from __future__ import annotations

import re

from rlreason.rewards.math.letters import choice_letter, small_choice, stands

_LETTER = re.compile(r"(?<![A-Za-z'’\\])\(?([A-Z])\)?(?![A-Za-z'’])")
_FIRST = re.compile(
    r"[\s(*\[$\"'>_-]{0,3}([A-Z])(?=[).:,。、*]|\s*$|\s*\n|\s+[-\u2013\u2014]{1,2}\s|(?!不对|不正确|不成立"
    r"|错)[\u2e80-\u9fff\uff00-\uffef])"
)
_SAID = re.compile(
    r"(?:it's|it’s|it is|think|believe|choose|choice|option|select|pick|is|选"
    r"|选择)\s*:?\s*\**\(?([A-Z])\)?(?![A-Za-z'’])"
)
_CALLED_RIGHT = re.compile(
    r"\(?(?<![A-Za-z'’\\])([A-Z])\)?\**\s+(?:is|must be|seems|has to be)\s+(?:the\s+)?(?:right|correct|true|best"
    r"|answer)"
)
#: "C, A tree grows" goes on with the article.
_OR_ANOTHER = re.compile(r"\)?\s*(?:or|and|/|&|,)\s*\(?(?!A (?!or\b|and\b)[a-z])[A-Z]\)?(?![A-Za-z'’])")
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
    r"|unsure|guess|versus|vs|doubt\w*|unless|except|excluding|other than|anything but|everything but|all but)\b"
    r"|n['’]t\b|不|错",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[\w)$*][.!?])\**\s+(?=\S)|(?<=[。！？])|\n+")
_SET = re.compile(r"\(?[A-H]\)?(?:\s*(?:[,、;和与及&]|,?\s*and)?\s*\(?[A-H]\)?){1,7}")


def letter_set(text: str) -> str | None:
    """``ABD`` of ``ABD。`` or ``A, B and D``: two or more choices and nothing else."""
    text = text.strip(" .。*$")
    return text if _SET.fullmatch(text) else None


def _unhedged(found: re.Match[str] | None) -> str | None:
    """The letter found, if it stands as a choice and no other follows it: "A or B"."""
    if found is None or _OR_ANOTHER.match(found.string, found.end()) or not _stands(found):
        return None
    return str(found[1])


def _stands(found: re.Match[str]) -> bool:
    return stands(found.string, found.start(1), found.end(1))


def said_choice(phrase: str) -> str | None:
    """The choice of what follows "the answer is"; None where the phrase denies it."""
    sentence = phrase.partition("\n")[0] or phrase
    letter = choice_letter(sentence.strip(" .*")) or small_choice(sentence)
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
    if "\n" not in text and choice_letter(text.strip(" .*")):
        return choice_letter(text.strip(" .*"))
    text = _BECAUSE_FIRST.sub("", text)
    if small_choice(text):
        return small_choice(text)
    first = _FIRST.match(text)
    if first and _alone_at_first(first):
        return str(first[1])
    sentences = [s for s in _SENTENCE.split(text) if s.strip()][-_MOST_SENTENCES:]
    for sentence in reversed(sentences):
        found = _settled(sentence)
        if found is not None:
            return found
        if _GOES_BACK.match(sentence):
            return None
    named = [m for m in _LETTER.finditer(_WHY.sub("", sentences[-1])) if m[1] != "I"] if sentences else []
    if len({m[1] for m in named}) != 1 or _REFUSED.search(sentences[-1]) or _aside(sentences[-1]):
        return None
    before, after = named[-1].string[: named[-1].start(1)], named[-1].string[named[-1].end(1) :]
    return named[-1][1] if (_LEADS.search(before) or _FITS.match(after)) and _stands(named[-1]) else None


_BECAUSE_FIRST = re.compile(r"^\s*because\s+(?=\(?[A-H]\)?\s+is\s+\w+\W*$)", re.IGNORECASE)


def _aside(sentence: str) -> bool:
    """Is a letter of it set beside another, or what others choose?"""
    return bool(_BESIDE.search(sentence) or _OTHERS.search(sentence))


_GOES_BACK = re.compile(r"\W*(?:(?:or|maybe|perhaps|unless|only if|but only)\b|no[,.!])", re.IGNORECASE)
_BESIDE = re.compile(r"\b(?:rather than|instead of|as well as)\b", re.IGNORECASE)
_FITS = re.compile(r"\W*(?:is valid|matches|fits|satisfies|agrees|works(?=\W*$))", re.IGNORECASE)


def _alone_at_first(first: re.Match[str]) -> bool:
    """Does a text that begins with a letter choose it: no other choice beside it, no verdict on it?"""
    line, _, more = first.string[first.start(1) :].partition("\n")
    if _OR_ANOTHER.match(line, 1) or _LISTS_ON.search(more):
        return False
    return stands(line, 0, 1)


_LISTS_ON = re.compile(
    r"^\W{0,3}[A-H](?:[).:]\s|\W{0,3}$)|(?i:\b(?:no,? wait|wait,|actually|oops|scratch that|correction"
    r"|on second thought)\b)",
    re.MULTILINE,
)
#: What others choose, or what was chosen once, is no choice.
_OTHERS = re.compile(
    r"\b(?:nobody|no one|(?:most|many|some|few|the) (?:students|people|readers)|many|they|students|people|author"
    r"|someone"
    r"|everyone|others|used to|he|she)\b",
    re.IGNORECASE,
)
#: What a letter may follow in a sentence that names one: nothing, or a word that leads to it.
_LEADS = re.compile(
    r"(?:^[\s*\"'“(\[$]*|(?:[:：是为选]|\b(?:with|match(?:es)?|is|be|to|choose|pick|select|gives?|yields?|option|choice"
    r"|answer|as|get|statement|letter|e?s la|est la|ist))[\s*\"'“(\[$]*)$",
    re.IGNORECASE,
)
_MOST_SENTENCES = 30


def _settled(sentence: str) -> str | None:
    """The letter that a sentence chooses: after its last "so", or after "option", "I think it is"."""
    if sentence.rstrip(' *"').endswith(("?", "？")):
        return None
    so = list(_SO.finditer(sentence))
    if so:
        end = _WHY.sub("", sentence[so[-1].end() :])
        named = [m for m in _LETTER.finditer(end) if m[1] != "I"]
        if len(named) == 1 and not _REFUSED.search(end) and _stands(named[0]):
            return str(named[0][1])
    main = _WHY.sub("", sentence)
    right = list(_CALLED_RIGHT.finditer(main))
    if right and not _REFUSED.search(main[: right[-1].start()]) and _stands(right[-1]):
        return str(right[-1][1])
    said = list(_SAID.finditer(main))
    if (
        said
        and not _OTHERS.search(main[: said[-1].start(1)])
        and not _REFUSED.search(main[said[-1].start() : _said_until(said[-1])])
        and not _REFUSED.search(_clause(main, said[-1].start()))
    ):
        return _unhedged(said[-1])
    return None


def _said_until(said: re.Match[str]) -> int:
    """Where what is said of a letter ends: at the letter, where the text of its option follows a delimiter."""
    delimited = re.match(r"(?<=\))\s+\S|\**[):.](?=\s)", said.string[said.end() :]) or said[0].endswith(")")
    return said.end() if delimited else len(said.string)


def _clause(text: str, end: int) -> str:
    """The clause that leads up to a place."""
    return re.split(r"[,;:]|\btherefore\b|\bso\b|\bbut\b", text[:end])[-1]

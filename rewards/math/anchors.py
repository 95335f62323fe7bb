"""What a response says that its answer is: "the answer is 7", "Answer: 7", "7 is the answer", and second thoughts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from rlreason.rewards.math.chain import chain
from rlreason.rewards.math.choices import concluded_choice, letter_set, said_choice
from rlreason.rewards.math.json_answer import json_answer
from rlreason.rewards.math.marked import Found, Wanted
from rlreason.rewards.math.prose import first_sentence, last_sentence, stated
from rlreason.rewards.math.verdicts import BINARY, binary
from rlreason.rewards.math.wording import BECAUSE, COPULA

_ANSWER = (
    r"(?:answers?|results?|solution|réponse|respuesta|antwort|risposta|resposta|odpowiedź|antwoord"
    r"|svaret|svar|jawaban(?:nya)?|คำตอบ|cevap|đáp án|ответ"
    r"|答案|答え|故选|应选|答|정답|답|उत्तर|الإجابة|الجواب)"
)
ANCHOR = re.compile(
    rf"{_ANSWER}[\s*_]*(?:turns out to be\b|comes? out (?:to be|to|as)\b|works out to be\b|lautet\b|은|는"
    r"|:|：|=|→|⇒|—|–|(?:is|are|was)\b|['’]s\b|(?:finale?\s+)?est\b|es\b|ist\b|är\b|er\b|là\b|adalah\b|คือ|है|هي|هو|è\b|é\b|是|为|為|は"
    r"|(?:would|will|should|must) be\b)",
    re.IGNORECASE,
)
BARE_ANCHOR = re.compile(r"(?:^|\n)[^\w\n]*(?:final\s+)?(?:answer|ans|a(?=[:.] ?[-\d$(\\]))\b", re.IGNORECASE)
#: "42 is the answer."
_TURNED = re.compile(
    r"\b(?:is|are|was)\s+(?:thus |therefore |then )?(?:the|our|my)\s+(?:(?:final|correct|required|desired|only|unique"
    r"|smallest|largest)\s+)*"
    r"(?:answer|result|solution)s?\b(?![\s*_]*(?:of|to\b|:|=|is\b|set\b))",
    re.IGNORECASE,
)
_MOST_ANCHORS = 50


class _Anchored(NamedTuple):
    """Where a text says what its answer is: ``7 apples`` and what follows it, of "the answer is 7 apples. …"."""

    phrase: str
    #: What is read: the phrase, or all that follows "the answer is".
    text: str
    rest: str
    #: May the phrase be a whole sentence, as after "Answer:"?
    sentence: bool
    #: "The result is", which may be one of many in a solution.
    weak: bool


def said_answer(tail: str, wanted: Wanted, *, weak: bool = False) -> Found | None:
    """What the last "answer is" or "Answer:" says; None where none says anything.

    "The result is" and "the solution is" count where nothing follows them, or, with ``weak``, anywhere. A phrase that
    says no value, as "the answer is obtained by adding", is passed over. One that denies or bounds a value ends the
    search: there is no answer, or it stands in what follows.
    """
    for anchored in _anchors(tail, letter=wanted.letter):
        last = not re.search(r"[\w\\]", anchored.rest)
        if anchored.weak != weak and not (anchored.weak and last):
            continue
        text = phrase_answer(anchored.text, wanted, said=anchored.sentence)
        retracted = _retracted(anchored.rest, text, wanted)
        if retracted is not None:
            return retracted
        if text is not None:
            return Found(text=text, how="answer is")
        if _SAYS_MORE.search(anchored.phrase) and not wanted.words:
            return Found(text=None, how="answer is") if last else None
    return None


_SAYS_MORE = re.compile(r"\d|\b(?:not|never)\b|n['’]t\b")


def _anchors(tail: str, *, letter: bool) -> Iterator[_Anchored]:
    """From the last to the first; none in a question, or in what is doubted or supposed. ``letter``: of a choice."""
    found = {m.end(): m for m in (*BARE_ANCHOR.finditer(tail), *ANCHOR.finditer(tail), *_TURNED.finditer(tail))}
    for end in sorted(found, reverse=True)[:_MOST_ANCHORS]:
        match = found[end]
        before = _SENTENCE_START.split(tail[max(match.start() - 80, 0) : match.start()])[-1]
        if match.re is not BARE_ANCHOR and _DOUBTED.search(before):
            continue
        if letter and match.re is BARE_ANCHOR and match[0][-2:].strip(" *_#>").lower() == "a":
            continue  # "A. 50" is a choice
        if match.re is _TURNED:
            phrase = text = last_sentence(tail[: match.start()])
            rest = tail[end:]
        else:
            text = tail[end:].lstrip(" :*_\n—–→⇒")
            text = text[2:].lstrip() if text.startswith(("| ", "- ")) else text
            phrase = first_sentence(text)
            rest = text[len(phrase) :] if text.startswith(phrase) else text
        if not phrase or phrase.rstrip(' *"').endswith(("?", "？")):
            continue
        sentence = match.re is BARE_ANCHOR or tail[end - 1 : end] in ":：答选"
        yield _Anchored(phrase, text, rest, sentence, match.re is not BARE_ANCHOR and bool(_WEAK.search(match[0])))


_WEAK = re.compile(r"result|solution", re.IGNORECASE)


#: "I doubt that the answer is 7", "If the answer is 7, …" say no answer.
_DOUBTED = re.compile(
    r"\b(?:doubt|false|not true|untrue|suppos\w+|assum\w+|if|unless|whether|claims?|claimed|pretend|wrongly|deny"
    r"|incorrect|to (?:get|find|obtain|reach|compute|determine|check|verify)"
    r"|guess(?:es|ed)?|imagine|would say)\b",
    re.IGNORECASE,
)
_SENTENCE_START = re.compile(r"[.!?。]\s|\n|[,;] ")


def phrase_answer(after: str, wanted: Wanted, *, said: bool) -> str | None:
    """The answer in what follows an anchor."""
    from_json = json_answer(after)
    if from_json is not None:
        return from_json or None
    if wanted.letter:
        return said_choice(after.strip())
    phrase = first_sentence(after)
    if wanted.words and BINARY.match(phrase):
        return binary(phrase, after)
    if wanted.words:
        return BECAUSE.sub("", phrase).strip(" .*$") or None
    return letter_set(phrase) or stated(chain(phrase), said=said)


_SOFT = re.compile(
    r"(?:^|[.!?\n]\s*)(?:(?:but|oh|no|and)[, ]\s*)?"
    r"(?:wait|actually|oops|sorry|hmm+|hold on|on second thought|scratch that)\b"
    r"|\b(?:wait|actually|oops|hmm+|no)\s*[,!…]",
    re.IGNORECASE,
)
_HARD = re.compile(
    r"\b(?:mistake|error|wrong|incorrect|not (?:right"
    r"|correct)|should (?:have been|be|actually be)|correction)\b",
    re.IGNORECASE,
)
_AFFIRMS = re.compile(
    r"\b(?:yes|correct|right|indeed|confirmed|confirms|holds|checks out|matches|consistent|fine)\b", re.IGNORECASE
)


def _retracted(after: str, first: str | None, wanted: Wanted) -> Found | None:
    """What a text says that goes on "Wait, I made a mistake: …" after its answer; None where it does not."""
    word = _SOFT.search(after) or re.search(
        r"\bI (?:made|was|have made)\b|\bthat(?:'s|’s| is| was) (?:wrong|incorrect)",
        after,
    )
    if word is None:
        return None
    rest = after[word.end() :].strip(" ,.:\n")
    hard = bool(_HARD.search(rest) or _HARD.search(word[0]))
    again = concluded_choice(rest) if wanted.letter else _again(rest) if hard or re.search(r"\d", rest) else None
    if again is not None and not _AFFIRMS.search(rest):
        return Found(text=again, how="answer is")
    if hard and not (_AFFIRMS.search(rest) and first is not None and not re.search(r"\bmistake|wrong|should", rest)):
        return Found(text=again, how="answer is")
    return None if not re.search(r"\d", rest) or _AFFIRMS.search(rest) else Found(text=again, how="answer is")


def _again(rest: str) -> str | None:
    """What the last sentence of a second thought says that it is."""
    for sentence in reversed(re.split(r"(?<=[\w)$*])[.!]\s+|\n+", rest)):
        copulas = list(COPULA.finditer(sentence))
        found = stated(sentence[copulas[-1].end() :]) if copulas else stated(sentence) if "=" in sentence else None
        if found:
            return found
    return None

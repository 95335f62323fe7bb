"""Which part of a response is its answer.

From the surest mark to the weakest: the last ``\\boxed{}`` or ``<answer>``, ``####``, "the answer is", and, unless
``marked_only``, what the last sentence concludes with. Only text after ``</think>`` counts, and only up to the end of
the turn: docs/verifiers.md has the rules. All scans are linear.
"""

from __future__ import annotations

import re

from rlreason.rewards.extract import after_thought
from rlreason.rewards.math.chain import chain
from rlreason.rewards.math.choices import concluded_choice, letter_set, said_choice
from rlreason.rewards.math.json_answer import json_answer
from rlreason.rewards.math.marked import Found, Wanted, marked
from rlreason.rewards.math.prose import concluded, first_sentence, is_answer, last_sentence, stated
from rlreason.rewards.math.turns import before_next_problem, ended
from rlreason.rewards.math.wording import BECAUSE, COPULA, LEAD, denied, undecorated

#: Without a mark only the end of a response is read.
_TAIL = 3000
_STATED = 30_000
_CLOSING = re.compile(r"I hope (?:it|this) is correct\.?\s*")


def extract(response: str, wanted: Wanted, *, marked_only: bool = False) -> Found:
    """The answer of a response, and how it was found."""
    text = after_thought(_this_turn(ended(response), wanted))
    if text is None:
        return Found(text=None, how="the thought is not closed")
    return _extract(text, wanted, marked_only=marked_only)


def _this_turn(response: str, wanted: Wanted) -> str:
    """The response without a next problem that follows an answer; what a thought says of problems starts none."""

    def cut(text: str) -> str:
        return before_next_problem(text, lambda part: _answers(part, wanted))

    if "\n" not in response:
        return response
    thought, closed, rest = response.partition("</think>")
    if not closed:
        return cut(response)
    spoken = thought.partition("<think>")[0] if "<think>" in thought else ""
    if spoken.strip() and len(first := cut(spoken)) < len(spoken):
        return first
    return thought + closed + cut(rest)


def _unclosed(text: str) -> str:
    """``text`` without the closing words of the few-shot prompt of Minerva (arXiv 2206.14858, appendix D)."""
    at = text.rfind("I hope")
    return text[:at].rstrip() if at >= 0 and _CLOSING.fullmatch(text, at) else text


def _is_whole(tail: str) -> bool:
    """Is all of a response an answer, and nothing else?"""
    if "\n" in tail or LEAD.match(tail) or _BARE_ANCHOR.match(tail) or _ANCHOR.match(tail):
        return False
    return is_answer(tail, bare=True)


def _answers(part: str, wanted: Wanted) -> bool:
    """Does a part of a response hold an answer already?"""
    text = after_thought(part)
    return text is not None and _extract(text, wanted, marked_only=False).text is not None


def _extract(text: str, wanted: Wanted, *, marked_only: bool) -> Found:
    found = marked(text, wanted)
    if found is not None:
        return _later_word(text, found, wanted) or found
    hashed = _hashed(text, wanted)
    if hashed is not None:
        return hashed
    tail = _unclosed(text[-_TAIL:]).strip()
    if not marked_only and not wanted.letter and len(text.strip()) < 200 and _is_whole(tail):
        return Found(text=tail, how="all of it")
    value = json_answer(tail)
    if value is not None:
        return Found(text=value or None, how="json")
    said = _said(_unclosed(text[-_STATED:]), wanted)
    if said is not None:
        return said
    if marked_only:
        return Found(text=None, how="no mark")
    if wanted.letter:
        return Found(text=concluded_choice(tail), how="letter")
    return Found(text=conclusion(tail, wanted) if tail else None, how="last sentence")


_FINAL = re.compile(r"final answer is\b", re.IGNORECASE)
_CHOSEN_LINE = re.compile(
    r"^[\s>*_#]*(?:the )?(?:final |correct )*(?:answer|option|choice)[\s*_]*(?::|："
    r"|is\b)[\s*_]*\$?\(?([A-Z])\)?[\s*_.$]*$",
    re.IGNORECASE | re.MULTILINE,
)


def _later_word(text: str, found: Found, wanted: Wanted) -> Found | None:
    """What comes after the last box and counts instead of it: "the final answer is 7", or a line "Answer: D" where the
    gold is a choice. A phrase without an answer leaves the box its word; one that denies leaves nothing."""
    after = text[found.end :]
    if wanted.letter:
        lines = [line for line in _CHOSEN_LINE.finditer(after) if line[1].isupper()]
        if lines:
            return Found(text=lines[-1][1], how="answer is")
    final = list(_FINAL.finditer(after))
    if not final:
        return None
    phrase = _unclosed(after[final[-1].end() :]).lstrip(" :*\n")
    said = _phrase(phrase, wanted, said=False)
    if said is not None:
        return Found(text=said, how="answer is")
    return Found(text=None, how="answer is") if _DENIED.match(phrase) else None


_DENIED = re.compile(r"(?:not|never|unlikely|wrong|incorrect)\b", re.IGNORECASE)


def _hashed(text: str, wanted: Wanted) -> Found | None:
    """``#### 7``; a heading of the fourth level is none."""
    at = text.rfind("####")
    if at < 0:
        return None
    line = text[at + 4 :].strip().partition("\n")[0].strip()
    anchor = _ANCHOR.search(line)
    content = line[anchor.end() :].strip() if anchor else line
    if wanted.letter or wanted.words or is_answer(content, bare=True):
        return Found(text=content or None, how="####")
    said = stated(content)
    return Found(text=said, how="####") if said else None


_ANSWER = (
    r"(?:answers?|results?|solution|réponse|respuesta|antwort|risposta|resposta|odpowiedź|antwoord|cevap|đáp án"
    r"|ответ|答案|答え"
    r"|故选|应选|答|정답|답|उत्तर|الإجابة|الجواب)"
)
_ANCHOR = re.compile(
    rf"{_ANSWER}[\s*_]*(?:turns out to be\b|comes? out (?:to be|to|as)\b|works out to be\b|lautet\b|은|는"
    r"|:|：|=|→|⇒|—|–|(?:is|are|was)\b|['’]s\b|(?:finale?\s+)?est\b|es\b|ist\b|è\b|é\b|是|为|為|は"
    r"|(?:would|will|should|must) be\b)",
    re.IGNORECASE,
)
_BARE_ANCHOR = re.compile(r"(?:^|\n)[^\w\n]*(?:final\s+)?(?:answer|ans|a(?=[:.] ?[-\d$(\\]))\b", re.IGNORECASE)
#: "42 is the answer."
_TURNED = re.compile(
    r"\b(?:is|are|was)\s+(?:thus |therefore |then )?(?:the|our|my)\s+(?:(?:final|correct|required|desired|only"
    r"|unique|smallest|largest)\s+)*"
    r"(?:answer|result|solution)s?\b(?![\s*_]*(?:of|to\b|:|=|is\b|set\b))",
    re.IGNORECASE,
)
_MOST_ANCHORS = 50


def _said(tail: str, wanted: Wanted) -> Found | None:
    """What the last "answer is" or "Answer:" says. One that says no value, as "the answer is obtained by adding", is
    passed over; one that denies or bounds a value ends the search."""
    anchors = {m.end(): m for m in (*_BARE_ANCHOR.finditer(tail), *_ANCHOR.finditer(tail), *_TURNED.finditer(tail))}
    doubted = False
    for end in sorted(anchors, reverse=True)[:_MOST_ANCHORS]:
        if anchors[end].re is not _BARE_ANCHOR and _DOUBTED.search(
            _SENTENCE_START.split(tail[: anchors[end].start()])[-1][-80:]
        ):
            doubted = True
            continue
        if anchors[end].re is _TURNED:
            before = last_sentence(tail[: anchors[end].start()])
            phrase, after = before, tail[end:]
        else:
            rest = tail[end:].lstrip(" :*_\n—–→⇒")
            rest = rest[2:].lstrip() if rest.startswith(("| ", "- ")) else rest
            phrase, after = first_sentence(rest), rest
        if not phrase or phrase.rstrip(' *"').endswith(("?", "？")):
            continue
        colon = anchors[end].re is _BARE_ANCHOR or tail[end - 1 : end] in ":：答选"
        text = _phrase(phrase if anchors[end].re is _TURNED else after, wanted, said=colon)
        retracted = _retracted(after[len(phrase) :] if after.startswith(phrase) else after, text, wanted)
        if retracted is not None:
            return retracted
        if text is not None:
            return Found(text=text, how="answer is")
        if re.search(r"\d|\b(?:not|never)\b|n['’]t\b", phrase) and not wanted.words:
            return Found(text=None, how="answer is")
    return Found(text=None, how="answer is") if doubted else None


#: "I doubt that the answer is 7", "If the answer is 7, …" say no answer.
_DOUBTED = re.compile(
    r"\b(?:doubt|false|not true|untrue|suppos\w+|assum\w+|if|unless|whether|claims?|claimed|pretend|wrongly|deny"
    r"|incorrect"
    r"|guess(?:es|ed)?|imagine|would say)\b",
    re.IGNORECASE,
)
_SENTENCE_START = re.compile(r"[.!?。]\s|\n|[,;] ")


def _phrase(after: str, wanted: Wanted, *, said: bool) -> str | None:
    """The answer in what follows an anchor."""
    from_json = json_answer(after)
    if from_json is not None:
        return from_json or None
    if wanted.letter:
        return said_choice(after.strip())
    phrase = first_sentence(after)
    if wanted.words:
        return BECAUSE.sub("", phrase).strip(" .*$") or None
    return letter_set(phrase) or stated(chain(phrase), said=said)


_SOFT = re.compile(
    r"(?:^|[.!?\n]\s*|\s)(?:wait|actually|oops|sorry|hmm+|hold on|on second thought|scratch that|no,)\b", re.IGNORECASE
)
_HARD = re.compile(
    r"\b(?:mistake|error|wrong|incorrect|not (?:right|correct)|should (?:have been|be|actually be)|correction)\b",
    re.IGNORECASE,
)
_AFFIRMS = re.compile(
    r"\b(?:yes|correct|right|indeed|confirmed|confirms|holds|checks out|matches|consistent|fine)\b", re.IGNORECASE
)


def _retracted(after: str, first: str | None, wanted: Wanted) -> Found | None:
    """What a text says that goes on "Wait, I made a mistake: …" after its answer; None where it does not."""
    word = _SOFT.search(after) or re.search(
        r"\bI (?:made|was|have made)\b|\bthat(?:'s|’s| is| was) (?:wrong|incorrect)", after
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


def conclusion(text: str, wanted: Wanted) -> str | None:
    """What the last sentence of a text concludes with."""
    if wanted.words:
        return BECAUSE.sub("", last_sentence(text).replace("**", "")).strip(" .*$") or None
    return concluded(text)


def statement(text: str) -> str | None:
    """What a sentence says that something is, if that is mathematics: ``(1, 2)`` of "The domain is (1, 2)"."""
    found = list(COPULA.finditer(text)) if len(text) < 400 else []
    said = undecorated(text[found[0].end() :]).strip(" .$}") if len(found) == 1 else ""
    return said if said and not denied(text[: found[0].start()]) and is_answer(said) else None

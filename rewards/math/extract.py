"""Which part of a response is its answer.

From the surest mark to the weakest: the last ``\\boxed{}`` or ``<answer>``, ``####``, "the answer is", and, unless
``marked_only``, what the last sentence concludes with. Only text after ``</think>`` counts, and only up to the end of
the turn: docs/verifiers.md has the rules. All scans are linear.
"""

from __future__ import annotations

import re

from rlreason.rewards.extract import after_thought
from rlreason.rewards.math.anchors import ANCHOR, BARE_ANCHOR, phrase_answer, said_answer
from rlreason.rewards.math.choices import concluded_choice
from rlreason.rewards.math.json_answer import json_answer
from rlreason.rewards.math.letters import choice_letter
from rlreason.rewards.math.marked import Found, Wanted, marked
from rlreason.rewards.math.prose import concluded, is_answer, last_sentence, stated
from rlreason.rewards.math.turns import before_next_problem, ended
from rlreason.rewards.math.verdicts import BINARY
from rlreason.rewards.math.wording import BECAUSE, COPULA, LEAD, denied, undecorated

#: Without a mark only the end of a response is read.
_TAIL = 3000
_STATED = 30_000
#: A response that is nothing but one line in a fence.
_FENCED = re.compile(r"\A```\w{0,10}\n([^\n`]{1,200})\n```\Z")
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


def _without_closing(text: str) -> str:
    """``text`` without the closing words of the few-shot prompt of Minerva (arXiv 2206.14858, appendix D)."""
    at = text.rfind("I hope")
    return text[:at].rstrip() if at >= 0 and _CLOSING.fullmatch(text, at) else text


def _is_whole(tail: str) -> bool:
    """Is all of a response an answer, and nothing else?"""
    if "\n" in tail or LEAD.match(tail) or BARE_ANCHOR.match(tail) or ANCHOR.match(tail):
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
    tail = _FENCED.sub(r"\1", _without_closing(text[-_TAIL:]).strip())
    if not marked_only and not wanted.letter and len(text.strip()) < 200 and _is_whole(tail):
        return Found(text=tail, how="all of it")
    value = json_answer(tail)
    if value is not None:
        return Found(text=value or None, how="json")
    said = said_answer(_without_closing(text[-_STATED:]), wanted)
    if said is not None:
        return said
    if marked_only:
        return Found(text=None, how="no mark")
    if wanted.letter:
        return Found(text=concluded_choice(tail), how="letter")
    last = conclusion(tail, wanted) if tail else None
    if last is None:
        said = said_answer(tail, wanted, weak=True)
    return said or Found(text=last, how="last sentence")


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
    phrase = _without_closing(after[final[-1].end() :]).lstrip(" :*\n")
    said = None if _NO_VALUE.match(phrase) else phrase_answer(phrase, wanted, said=False)
    if said is not None:
        return Found(text=said, how="answer is")
    return Found(text=None, how="answer is") if _DENIED.match(phrase) else None


#: "The final answer is found above" names none.
_NO_VALUE = re.compile(
    r"(?:obtained|given|found|shown|stated|boxed|marked|written|derived|computed|above|below|as|in)\b"
    r"|the (?:boxed|value|one|result|number|expression)\b[^$\d]*$",
    re.IGNORECASE,
)
_DENIED = re.compile(r"(?:not|never|unlikely|wrong|incorrect)\b", re.IGNORECASE)


def _hashed(text: str, wanted: Wanted) -> Found | None:
    """``#### 7``; a heading of the fourth level is none."""
    at = text.rfind("####")
    if at < 0:
        return None
    line = text[at + 4 :].strip().partition("\n")[0].strip()
    anchor = ANCHOR.search(line)
    content = line[anchor.end() :].strip() if anchor else line
    said: str | None
    if wanted.letter:
        said = choice_letter(content.strip(" .*"))
    elif wanted.words:
        said = content if not text[at + 4 :].strip().partition("\n")[2].strip() else None
    else:
        said = content if is_answer(content, bare=True) else stated(content)
    return Found(text=said, how="####") if said else None


def conclusion(text: str, wanted: Wanted) -> str | None:
    """What the last sentence of a text concludes with."""
    if wanted.words:
        if BINARY.match(text) and "\n" not in text:
            return text
        return BECAUSE.sub("", last_sentence(text).replace("**", "")).strip(" .*$") or None
    return concluded(text)


def statement(text: str) -> str | None:
    """What a sentence says that something is, if that is mathematics: ``(1, 2)`` of "The domain is (1, 2)"."""
    found = list(COPULA.finditer(text)) if len(text) < 400 else []
    said = undecorated(text[found[0].end() :]).strip(" .$}") if len(found) == 1 else ""
    return said if said and not denied(text[: found[0].start()]) and is_answer(said) else None

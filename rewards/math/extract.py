"""Which part of a response is its answer.

From the surest mark to the weakest: the last ``\\boxed{}`` or ``<answer>``, ``####``, "the answer is", and, unless
``marked_only``, what the last sentence concludes with. Only text after ``</think>`` counts. All scans are linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlreason.rewards.extract import Box, after_thought, boxes, last_tagged
from rlreason.rewards.math.read import choice_letter, read
from rlreason.rewards.math.words import FUNCTIONS, unit_word, word_set

#: Without a mark only the end of a response is read.
_TAIL = 3000
_STATED = 30_000
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


def extract(response: str, wanted: Wanted, *, marked_only: bool = False) -> Found:
    """The answer of a response, and how it was found."""
    text = after_thought(_this_turn(response))
    if text is None:
        return Found(text=None, how="the thought is not closed")
    marked = _marked(text, wanted)
    if marked is not None and not _FINAL.search(text, _last_mark(text)):
        return marked
    hashed = text.rfind("####")
    if hashed >= 0:
        line = text[hashed + 4 :].strip().partition("\n")[0].strip()
        return Found(text=line or None, how="####")
    tail = _CLOSING.sub("", text[-_TAIL:]).strip()
    if not marked_only and not wanted.letter and len(tail) < 200 and "\n" not in tail and _is_answer(tail, bare=True):
        return Found(text=tail, how="all of it")
    anchored = _after_anchor(_CLOSING.sub("", text[-_STATED:]))
    if anchored is not None:
        answer = _letter(anchored, anchored=True) if wanted.letter else conclusion(anchored, wanted, anchored=True)
        if answer is not None:
            return Found(text=answer, how="answer is")
    if marked_only:
        return Found(text=None, how="no mark")
    if wanted.letter:
        return Found(text=_letter(tail, anchored=False), how="letter")
    return Found(text=_last_statement(tail, wanted), how="last sentence")


_FINAL = re.compile(r"final answer is\b", re.IGNORECASE)


def _last_mark(text: str) -> int:
    """Where the last box or answer tag ends: a "final answer is" after it is the later word."""
    return max(text.rfind("boxed"), text.rfind("fbox"), text.rfind("</answer>"))


_OTHER_TURN = re.compile(r"<\|im_start\|>\s*(?:user|system)|<\|start_header_id\|>user")


_CLOSING = re.compile(r"\s*I hope (?:it|this) is correct\.?\s*$")


def _this_turn(response: str) -> str:
    """The response up to a next turn that a model went on to write."""
    found = _OTHER_TURN.search(response) if "<|" in response else None
    return response[: found.start()] if found else response


def _marked(text: str, wanted: Wanted) -> Found | None:
    inner = last_tagged(text)
    found = boxes(text)
    if inner is not None and (not found or found[-1].start < inner[1]):
        content = text[inner[0] : inner[1]].strip()
        inside = boxes(content)
        return _boxed(content, inside, wanted) if inside else Found(text=content or None, how="answer tag")
    return _boxed(text, found, wanted) if found else None


def _boxed(text: str, found: list[Box], wanted: Wanted) -> Found:
    """The last box; with the boxes beside it where they are one answer in pieces."""
    last = found[-1]
    if last.text is None:
        return Found(text=None, how="unclosed box")
    run = _adjacent(text, found, wanted.many)
    contents = [(_unbox(box.text or "") + _percent_after(text, box)).strip() for box in run]
    if len(set(contents)) > 1:
        return Found(text=", ".join(contents), how="boxes")
    return Found(text=contents[-1] or None, how="box")


def _unbox(content: str) -> str:
    inner = boxes(content)
    if len(inner) == 1 and inner[0].start == 0 and inner[0].end == len(content):
        return _unbox(inner[0].text or "")
    return content


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


def _joins(between: str, many: bool) -> bool:
    if len(between) > 80:
        return False
    bare = re.sub(r"\\(?:text|mbox|textbf)\s*\{([^{}]*)\}|\\q?quad|\\[a-zA-Z,;! ()\[\]]", r" \1 ", between)
    words = re.findall(r"[A-Za-z]+", re.sub(r"[A-Za-z]\w*(?:_\{?\w+\}?)?(?:\(\w\))?\s*(?:=|\\in)", " ", bare))
    if {w.lower() for w in words} & _FRESH_START:
        return False
    linked = any(w.lower() in ("and", "or") for w in words)
    if many:
        return len(words) <= 6 and (linked or not words)
    return (linked and len(words) == 1) or (not words and bool(re.search(r"[,;]", bare)))


_ANCHOR = re.compile(
    r"(?:answer|result|solution|réponse|respuesta|antwort|risposta|resposta|ответ|答案|答え|答)\**\s*"
    r"(?::|：|=|is\b|are\b|was\b|est\b|es\b|ist\b|è\b|é\b|是|为|為|would be\b|will be\b|should be\b|must be\b)",
    re.IGNORECASE,
)
_BARE_ANCHOR = re.compile(r"(?:^|\n)\W*(?:final\s+)?answer\b", re.IGNORECASE)


def _after_anchor(tail: str) -> str | None:
    """What follows the last "answer is" or "Answer:"."""
    last = None
    for match in (*_BARE_ANCHOR.finditer(tail), *_ANCHOR.finditer(tail)):
        if last is None or match.end() > last:
            last = match.end()
    if last is None:
        return None
    rest = tail[last:].lstrip(" :*\n")
    return rest or None


_LETTER = re.compile(r"(?<![A-Za-z'’\\])\(?([A-Z])\)?(?![A-Za-z'’])")
_LETTER_FIRST = re.compile(r"\W{0,3}([A-Z])(?=[).:,。、]|\s*$|\s*\n|[^\x00-\x7f])")
_LETTER_SAID = re.compile(
    r"(?:it's|it’s|it is|think|choose|choice|option|select|pick|is)\s*:?\s*\(?([A-Z])\)?(?![A-Za-z'’])"
)


_OR_ANOTHER = re.compile(r"\)?\s*(?:or|and|/|&|,)\s*\(?[A-Z]\)?(?![A-Za-z'’])")


def _unhedged(found: re.Match[str] | None) -> str | None:
    """The letter found, unless another follows it: "A or B"."""
    if found is None or _OR_ANOTHER.match(found.string, found.end()):
        return None
    return str(found[1])


def _letter(text: str, *, anchored: bool) -> str | None:
    """The choice that prose settles on; None if it names several and settles on none."""
    if anchored:
        sentence = text.partition("\n")[0] or text
        letter = choice_letter(sentence.strip(" .*"))
        return letter or _unhedged(_LETTER.search(sentence))
    first = _LETTER_FIRST.match(text)
    if first:
        return _unhedged(first)
    said = list(_LETTER_SAID.finditer(text))
    if said:
        return _unhedged(said[-1])
    named = {m for m in _LETTER.findall(text.rpartition("\n")[2]) if m != "I"}
    return named.pop() if len(named) == 1 else None


_SPAN = re.compile(r"\$\$([^$]{1,2000})\$\$|\$([^$]{1,1000})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,1000}?)\\\)", re.DOTALL)
_IS = re.compile(
    r"(?:\b(?:is|are|was|equals|be|it's|est|becomes|gives|get|have|total is)\b|[:：]|[是为為])\s*", re.IGNORECASE
)
_BECAUSE = re.compile(
    r"\s*(?:[,;(]\s*)?\b(?:because|since|as it|due to|which|where|when|after|for the|so)\b.*", re.DOTALL | re.IGNORECASE
)
#: Code or broken mathematics: a number in it is no conclusion.
_NOT_PROSE = re.compile(r"[{}_\\^]|[A-Za-z]\(|\)\.")
_HEDGE = re.compile(r"\b(?:not|never|cannot|between|either|or|wrong|incorrect|unless)\b|n['’]t\b", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w.\\])[-−]?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?(?:\s*\\?%)?(?![\d/])|(?<=[^\x00-\x7f])\d+(?:\.\d+)?(?:/\d+)?"
)


def conclusion(text: str, wanted: Wanted, *, anchored: bool, numbers: bool = True) -> str | None:
    """The answer that a piece of prose states: all of it, a formula in it, what follows "is", or its number."""
    sentence = _sentence(text, first=anchored)
    if wanted.words:
        return _BECAUSE.sub("", sentence).strip(" .*$") or None
    candidates = _candidates(sentence, anchored=anchored)
    if numbers and "=" in sentence:
        candidates.append(sentence.rpartition("=")[2])
    for candidate in candidates:
        if _is_answer(candidate):
            return candidate.strip()
    if not numbers:
        return None
    prose = _SPAN.sub(" ", sentence)
    if _NOT_PROSE.search(prose) or _HEDGE.search(prose):
        return None
    found = [match[0].strip() for match in _NUMBER.finditer(prose)]
    return (found[0] if anchored else found[-1]) if found else None


def _candidates(sentence: str, *, anchored: bool) -> list[str]:
    out = [sentence, _BECAUSE.sub("", sentence)]
    spans = [next(g for g in m.groups() if g) for m in _SPAN.finditer(sentence)]
    after = [sentence[m.end() :] for m in _IS.finditer(sentence)]
    if after:
        out.extend((after[-1], _BECAUSE.sub("", after[-1])))
    if spans:
        chosen = spans[0] if anchored and not after else spans[-1]
        out.extend((chosen, chosen.rpartition("=")[2]))
    return out


def statement(text: str) -> str | None:
    """What a sentence says that something is, if that is mathematics: ``(1, 2)`` of "The domain is (1, 2)"."""
    found = list(_IS.finditer(text)) if len(text) < 400 else []
    stated = text[found[0].end() :].strip(" .$}") if len(found) == 1 else ""
    return stated if stated and _is_answer(stated) else None


def _sentence(text: str, *, first: bool) -> str:
    """The first or last sentence; a formula on lines of its own counts as one."""
    text = text.replace("**", "").strip()
    if first:
        if text.startswith(("$$", "\\[")):
            return text
        return re.split(r"\n|(?<=[\w)}$*])[.。](?:\s|$)", text, maxsplit=1)[0].strip(" *")
    if text.rstrip(" .").endswith(("\\]", "$$", "\\)", "\\end{align*}")):
        spans = list(_SPAN.finditer(text))
        if spans and spans[-1].end() >= len(text.rstrip(" .")):
            return text[text.rfind("\n", 0, spans[-1].start()) + 1 :].strip()
    line = text.rpartition("\n")[2]
    return (re.split(r"(?<=[\w)}$*])[.。!?]\$*\s+", line.strip(" *"))[-1] or line).strip(" *.。")


def _last_statement(tail: str, wanted: Wanted) -> str | None:
    return conclusion(tail, wanted, anchored=False) if tail else None


_LOWER_WORD = re.compile(r"(?<![\\A-Za-z{])[a-z]{2,}")


def _is_prose(word: str) -> bool:
    return (
        word not in FUNCTIONS
        and word not in ("and", "or", "pi", "to", "inf", "percent", "repeating", "recurring")
        and not unit_word(word)
    )


def _is_answer(candidate: str, *, bare: bool = False) -> bool:
    """Does it read as mathematics? ``bare``: it stands alone, so a lone symbol counts too."""
    if not candidate or len(candidate) > 500:
        return False
    answer = read(candidate.strip(" *,"))
    if answer.node is None or answer.node.kind == "text":
        return False
    words = _LOWER_WORD.findall(candidate)
    if any(map(_is_prose, words)) and (not bare or re.match(r"[A-Za-z]+\s", candidate)):
        return False
    if answer.node.kind in ("sym", "mul") and not bare and not re.search(r"[\d\\$]", candidate):
        return False
    return not any(n.kind == "text" for n in answer.node.args)

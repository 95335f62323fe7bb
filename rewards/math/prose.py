"""What a piece of prose states: ``7`` of "Therefore there are 7 ways.", nothing of "less than 7"."""

from __future__ import annotations

import re

from rlreason.rewards.math.chain import chain
from rlreason.rewards.math.read import read
from rlreason.rewards.math.tree import EMPTY, Node, rational, symbols
from rlreason.rewards.math.units import unit_word
from rlreason.rewards.math.wording import (
    AFTERTHOUGHT,
    BECAUSE,
    COPULA,
    DENIED_CLAUSE,
    LEAD,
    SO,
    SPAN,
    TAKEN_BACK,
    TOTAL,
    TURNED_DOWN,
    UNDER_WAY,
    UNDONE,
    changes,
    denied,
    denied_at_once,
    undecorated,
)
from rlreason.rewards.math.words import FUNCTIONS, number_from_words, word_set

NUMBER = re.compile(
    r"(?<![\w.\\])[-−+]?(?:US|A|C)?[$€£¥₹]?\s?(?:\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
    r"|\.\d+)(?:\s*/\s*\d+)?(?:\s*\\?%)?(?![\d/])|(?<=[^\x00-\x7f])\d+(?:\.\d+)?(?:/\d+)?"
)
_CIRCUMSTANCE = word_set(
    "in at after by from within for of on to per during until before every with out dans en pour sur d'ici après nach "
    "für bis vor por para dentro desde"
)
#: A number behind one of these says where, not how many.
_POSITION = word_set(
    "after before from to until than past first last next previous since beyond near like versus another step case "
    "page problem question equation line part number"
)
#: Code or broken mathematics: a number in it is no conclusion.
_NOT_PROSE = re.compile(r"[{}_\\^]|[A-Za-z]\(|\)\.|[=<>+*]|\d\s*[-−/×÷]\s*\d")
_LOWER_WORD = re.compile(r"(?<![\\A-Za-z{])(?:[A-Za-z]?[a-z]{2,}|[A-Z][a-z](?![A-Za-z]))")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_ENDED = re.compile(r"(?:[.!。！।…)\]$*}%✓✔□∎]|\\\]|\\\))\s*$")


#: Words of other alphabets that bound, change, deny or suppose; words of alphabets with letter case are prose.
_FOREIGN = re.compile(
    r"[不非没未错倍设]|以上|以下|超过|大于|小于|至少|至多|如果|检查|考虑|[\u0400-\u04ff]{3,}|[\u0900-\u097f]{3,}"
)


#: Labels that the reading of the answer sees to.
_IN_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textrm)\s*\{[^{}]*\}")


def is_answer(candidate: str, *, bare: bool = False) -> bool:
    """Does it read as mathematics? ``bare``: it stands alone, so a lone symbol counts too."""
    if not candidate or len(candidate) > 500:
        return False
    answer = read(candidate.strip(" *,"))
    if answer.node is None or answer.node.kind == "text":
        return False
    if not candidate.isascii() and _FOREIGN.search(candidate):
        return False
    if answer.node == EMPTY or answer.node.kind == "numbers":
        return True
    if any(map(_is_prose, _LOWER_WORD.findall(_IN_TEXT.sub(" ", candidate)))) and (
        not bare or re.match(r"[A-Za-z]+\s", candidate)
    ):
        return False
    if answer.node.kind in ("sym", "mul") and not bare and not re.search(r"[\d\\$¼-¾⅐-⅞]", candidate):
        return False
    return not any(n.kind == "text" for n in answer.node.args)


def _is_prose(word: str) -> bool:
    return (
        word not in FUNCTIONS
        and word.lower() not in ("and", "or", "pi", "to", "inf", "percent", "repeating", "recurring")
        and not unit_word(word)
    )


def formula(match: re.Match[str]) -> str:
    """The content of a ``SPAN``; a chain of equations over several lines as one."""
    return chain(next(g for g in match.groups() if g))


def stated(phrase: str, *, said: bool = False) -> str | None:
    """The answer of a phrase such as what follows "the answer is": a formula, a number, either with a label.

    Any word beside it that could change it makes the phrase unreadable. ``said``: the phrase may be a whole sentence,
    as after "Answer:", and then its one number counts.
    """
    phrase = undecorated(phrase[:_PHRASE].replace("**", "").replace("__", "")).strip()
    core = AFTERTHOUGHT.sub("", BECAUSE.sub("", phrase))
    core = _PARENTHESIS.sub(_harmless, core)
    if phrase.endswith(("?", "？")) or (said and UNDER_WAY.search(SPAN.sub(" ", core))):
        return None
    if TAKEN_BACK.search(phrase):
        return None
    led = LEAD.match(core)
    bare = (core[led.end() :] if led else core).strip(" \"'“”‘’`*")
    if re.fullmatch(r"[\d.,]+!", bare):
        return bare[:-1]  # "The answer is 42!"
    for candidate in (bare, phrase, core, *_alone(bare)):
        if is_answer(candidate):
            return candidate.strip().rstrip(".。 ")
    return _labelled(bare) or _said_to_be(core) or (_its_number(core) if said else None) or _said_to_be(phrase)


#: No answer is longer: a longer phrase is read as far as this.
_PHRASE = 1000
_PARENTHESIS = re.compile(r"(?<=[\w$%])\s+[(\[](?=[^()]{0,300}[A-Za-z]{3})([^()\[\]\\$]{1,300})[)\]]")


def _harmless(match: re.Match[str]) -> str:
    """Nothing, where the parenthesis only explains; itself where it denies, doubts, or goes on with the number."""
    inner = match[1]
    first = next(iter(_WORD.findall(inner)), "")
    return str(match[0]) if denied(inner) or changes(first) or _LEFT_OPEN.search(inner) else ""


_GUESSED = re.compile(r"\b(?:guess\w*|unsure|not sure|probably)\b", re.IGNORECASE)
_LEFT_OPEN = re.compile(
    r"^times\b|\bfor\b.*[<>≤≥]|\b(?:or|maybe|perhaps|possibly|guess\w*|could|might|may be|unsure|not sure|probably)\b",
    re.IGNORECASE,
)


def _alone(text: str) -> list[str]:
    """Number words as a number."""
    number = number_from_words(text.rstrip(" .!")) if text[:1].isalpha() else None
    return [] if number is None else [str(number)]


def _labelled(text: str) -> str | None:
    """A number or a formula at the start, with nothing behind it but a label: ``42 apples``."""
    span = SPAN.match(text)
    number = span or NUMBER.match(text)
    if number is None:
        return None
    if _GROWN.match(text, number.end()) or _ADDRESS.match(text, number.end()):
        return None
    value, label = number[0].strip(), _FOR_HOW_MANY.sub("", text[number.end() :]).strip(" .,;!*\"'")
    if re.search(r"\d", label) or any(p.search(label) for p in (_NOT_PROSE, SPAN, _GUESSED)) or changes(label):
        return None
    words = _WORD.findall(label)
    if len(words) > 12 or _VERB.match(label):
        return None
    if span is None and words:
        whole = read(f"{value} {label}")
        if whole.node is not None and not symbols(whole.node) and (whole.node.kind == "unit" or _scaled(whole.node)):
            return f"{value} {label}"
    return value if is_answer(value) else None


def _scaled(node: Node) -> bool:
    """Is it a number with a scale worked in, as "12 bn" is?"""
    return rational(node) is not None or (node.kind == "mul" and all(rational(a) is not None for a in node.args))


#: "12th", "12-sided", "12-ish": another word, of which the number is a part; "12-inch" is a measure.
_GROWN = re.compile(
    r"(?:st|nd|rd|th)\b|(?:-|\u2010|\u2011)(?!(?:inch|foot|hour|minute|day|week|year|month|mile)\b)[A-Za-z]"
)
#: "12, Main Street"
_ADDRESS = re.compile(
    r"\s*,\s*[A-Z][a-z]+(?:\s+[A-Z][a-z]+)+\W*$|\s*,?\s*(?:[A-Z][a-z]+\s+)+(?:Street|Road|Avenue|Lane|Drive|Ave|St|Rd)\b"
)
#: "$12 for 4 books"
_FOR_HOW_MANY = re.compile(r"\s+(?:for|after|on)\s+(?:the\s+|all\s+)?\d{1,6}\s+[a-z]+[\s.]*$")
_VERB = re.compile(
    r"(?:is|are|was|were|be|would|will|can|should|must|has|have|does|do|did|to|and|but)\b", re.IGNORECASE
)


def _said_to_be(sentence: str, *, firmly: bool = False) -> str | None:
    """``34`` of "the largest n is 34", ``5`` of "x + y = 5 meters". ``firmly``: not of "we have 5"."""
    for match in reversed(list(COPULA.finditer(sentence))[-4:]):
        if firmly and _FOUND_SO_FAR.match(match[0]):
            continue
        before, after = sentence[: match.start()], sentence[match.end() :]
        if denied_at_once(before):
            return None
        found = _value(after)
        if found:
            return found
    if "=" in sentence and not SPAN.search(sentence) and not denied_at_once(sentence.rpartition("=")[0]):
        return _value(sentence.rpartition("=")[2].strip(" )"))
    return None


_FOUND_SO_FAR = re.compile(r"get|obtain|find|have", re.IGNORECASE)


def _value(text: str) -> str | None:
    text = LEAD.sub("", text, count=1) if LEAD.match(text) else text
    text = text.strip(" \"'“”*").rstrip(".。")
    return text if is_answer(text) else (_labelled(text) or next(iter(_alone(text)), None))


def _its_number(sentence: str) -> str | None:
    """The one number of a sentence; numbers behind a preposition ("in 12 months") are circumstances."""
    if _NOT_PROSE.search(SPAN.sub(" ", sentence)) or changes(sentence) or TURNED_DOWN.search(sentence):
        return None
    spans = [formula(m) for m in SPAN.finditer(sentence)]
    if spans:
        values = [s for s in spans if re.search(r"\d", s)] or spans
        alone = len(values) == 1 and not NUMBER.search(SPAN.sub(" ", sentence))
        return values[0] if alone and is_answer(values[0]) else None
    numbers = list(NUMBER.finditer(sentence))
    main = [m for m in numbers if _word_before(sentence, m) not in _CIRCUMSTANCE]
    chosen = main if len(numbers) > 1 else numbers
    if len({m[0].strip() for m in chosen}) != 1 or _word_before(sentence, chosen[0]) in _POSITION:
        return None
    if _GROWN.match(sentence, chosen[0].end()):
        return None
    after = sentence[chosen[0].end() :].strip()
    if _VERB.match(after) and not _THE_ONE.match(after):
        return None
    return chosen[0][0].strip()


#: "12 is the smallest such number."
_THE_ONE = re.compile(
    r"is (?:the|our) (?:smallest|largest|greatest|minimum|maximum|only|unique|required|desired|final|correct|total)\b",
    re.IGNORECASE,
)


def _word_before(sentence: str, number: re.Match[str]) -> str:
    words = _WORD.findall(sentence[max(number.start() - 20, 0) : number.start()].replace("’", "'"))
    return words[-1].lower() if words else ""


def concluded(text: str) -> str | None:
    """What the last sentence of a text concludes with; None where it concludes nothing.

    A sentence concludes with a word such as "therefore" or "total", with "is", an equals sign or a colon before its
    value, or by being nothing but an answer. One that supposes, tries or announces concludes nothing.
    """
    sentence = last_sentence(text)
    whole = "\n" not in text and len(sentence) >= len(text.strip()) - 4
    clauses = list(SO.finditer(sentence))
    clause = sentence[clauses[-1].start() :] if clauses else sentence
    plain = undecorated(clause).strip()
    led = LEAD.match(plain)
    words = SPAN.sub(" ", plain[led.end() :] if led else plain)
    if TOTAL.search(words) or "=" in words:
        words = _SETTING.sub("", words)
    labelled = whole and bool(SPAN.search(plain)) and _said_in_the_end(plain)
    if (
        not plain
        or TAKEN_BACK.search(words)
        or (UNDER_WAY.search(words) and not labelled)
        or DENIED_CLAUSE.search(words)
    ):
        return None
    concludes = bool(clauses) or bool(TOTAL.search(plain))
    if not concludes and not labelled and not (whole or _ENDED.search(sentence)):
        return None
    if not concludes and UNDONE.search(words.rpartition("=")[0] or words):
        return None
    if not concludes and not whole and plain.endswith(("$$", "\\]")) and (_STEP.search(words) or not words.strip(" .")):
        return None
    return _concluded_with(plain, concludes=concludes, whole=whole)


#: A formula on a line of its own, said to come out of a step, or said to be nothing.
_STEP = re.compile(
    r"^\W*(?:simplify|expand|rearrang|solv|cross|divid|multipl|subtract|add|factor|differentiat|integrat|combin|convert"
    r"|evaluat|express|comput|calculat|complet|sett|us|apply|isolat|plugg|sum|tak|not)ing\b",
    re.IGNORECASE,
)
#: "With 3 dogs and 4 cats, " in front of what comes to a total.
_SETTING = re.compile(r"^\W*(?:for|with|when|given|after)\b[^,=]*,", re.IGNORECASE)


def _concluded_with(sentence: str, *, concludes: bool, whole: bool) -> str | None:
    led = LEAD.match(sentence)
    bare = (sentence[led.end() :] if led else sentence).replace("**", "").strip(" .。")
    if _LISTED.fullmatch(bare) and not whole:
        return None
    for candidate in (bare, BECAUSE.sub("", bare)):
        if is_answer(candidate):
            return candidate
    spans = [formula(m) for m in SPAN.finditer(sentence)]
    if spans and (_said_in_the_end(sentence) or (concludes and _names_one(sentence, spans))):
        for candidate in (spans[-1], spans[-1].rpartition("=")[2]):
            if is_answer(candidate):
                return candidate.strip().rstrip(".。 ")
    bold: list[str] = re.findall(r"\*\*([^*\n]{1,80})\*\*", sentence)
    if concludes and bold and is_answer(bold[-1].strip()) and not denied(SPAN.sub(" ", sentence)):
        return bold[-1].strip()
    flat = sentence.replace("**", "")
    why = BECAUSE.search(flat)
    flat = flat[: why.start()] if why and NUMBER.search(flat, 0, why.start()) else flat
    ended = _ENDED.search(sentence) is not None
    return _said_to_be(flat, firmly=not concludes) or (_its_number(flat) if concludes and ended else None)


#: ``7.`` at the end of a text that broke off is the number of a list.
_LISTED = re.compile(r"\(?\d{1,2}[.)]?")


def _said_in_the_end(sentence: str) -> bool:
    """Does it end in a formula behind a copula, a colon or an equals sign? "The sum is $7$." """
    spans = list(SPAN.finditer(sentence))
    if sentence[spans[-1].end() :].strip(" .*!"):
        return False
    before = sentence[: spans[-1].start()].rstrip()
    leads = _LEADS_TO.search(before)
    return not before if leads is None else not denied_at_once(before[: leads.start()])


_LEADS_TO = re.compile(
    r"(?:[:：=是为]|\b(?:is|are|be|equals?|to|est|ist|es|gives?(?: us)?|get|obtain|have|find|becomes|yields?))$",
    re.IGNORECASE,
)


def _names_one(sentence: str, spans: list[str]) -> bool:
    """Is there one formula that could be the answer: the only one with a digit in it, or an equation at the end?"""
    if denied(SPAN.sub(" ", sentence)):
        return False
    return "=" in spans[-1] or len([s for s in spans if re.search(r"\d", s)] or spans) == 1


def first_sentence(text: str) -> str:
    """The first sentence; a formula on lines of its own counts as one."""
    text = text.strip()
    span = SPAN.match(text)
    start = span.end() if span else 0
    end = re.compile(r"\n|(?<=[\w)}$*\]\"”])[.。!?！？](?=\s|$)|[。।]").search(text, start)
    if end is None:
        return text.strip(" *")
    return (text[: end.start()] + (end[0] if end[0] in "!?！？" else "")).strip(" *")


def last_sentence(text: str) -> str:
    """The last sentence; a formula on lines of its own counts as one."""
    text = undecorated(text).strip()
    if text.rstrip(" .").endswith(("\\]", "$$", "\\)", "\\end{align*}")):
        spans = list(SPAN.finditer(text))
        if spans and spans[-1].end() >= len(text.rstrip(" .")):
            start = text.rfind("\n", 0, spans[-1].start()) + 1
            introduction = (
                "" if text[start : spans[-1].start()].strip() else _last_of(text[:start].rstrip().rpartition("\n")[2])
            )
            introduction = "" if introduction.endswith(("\\]", "$$")) else introduction
            return f"{introduction} {text[start:]}".strip()
    return _last_of(text.rpartition("\n")[2].strip())


def _last_of(line: str) -> str:
    return re.split(r"(?<=[\w)}$*])(?:[.!?]\$*\**\s+|[。！？।]\s*)(?=\S)", line)[-1].strip() or line

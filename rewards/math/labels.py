"""What words beside a value mean: a label, a factor (``5 hundred``, ``5 tenths``), or a denial (``5 is wrong``).

A label is a noun phrase. Words that count, deny or retract make the value unreadable: it is not known what is stated.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from rlreason.rewards.math.tree import MathError, Node, add, call, mul, num, power, rational
from rlreason.rewards.math.units import Dimensions, unit_size
from rlreason.rewards.math.wording import alters
from rlreason.rewards.math.words import SCALES, number_from_words, word_set

_VERBS = word_set(
    "is are was were be been can could cannot may might must shall should will would do does did has have had gives "
    "equals makes seems looks appears works becomes contradicts violates follows means leads holds satisfies stays"
)
_DENIALS = word_set(
    "not no never none neither nor wrong incorrect incorrectly false invalid impossible unlikely unknown "
    "undefined excluding extraneous ruled except unless or less more least most fewer greater bigger smaller "
    "larger too but wait actually maybe perhaps possibly guess unsure doubtful error mistake mistaken "
    "contradiction contradictory inadmissible unacceptable absurd spurious untrue plus minus over divided "
    "multiplied double twice triple thrice doubled tripled halved half pas nicht kein falsch falso versus vs "
    "squared cubed factorial modulo mod if nope"
)
#: These deny a value unless they say what became of the things counted: "8 (rejected)", but "8 books removed".
_REFUSALS = word_set(
    "reject rejected discard discarded exclude excluded eliminated failed dropped ignored omitted removed "
    "disproved fail fails"
)
_OF_A_VALUE = word_set("value root solution answer as it this and or candidate case")
_DENIALS_CHINESE = re.compile("[不错舍非否无未]|至少|至多|大于|小于|超过")
_APPROVAL = re.compile(
    r"(?:is|are)\s+(?:the\s+|our\s+|my\s+)?(?:(?:correct|right|final|required|desired|unique|minimum|maximum|smallest|"
    r"largest|least|greatest)\s*)*(?:answers?|solutions?|values?|result|choice)?"
)
_ORDINALS = frozenset({"st", "nd", "rd", "th"})
_CLAUSE = word_set("who whom whose that which where when with such so")
_MAX_WORDS = 14
#: "8 more apples" says how many more; "8 more" and "8 or more" do not stand for 8.
_MORE_OF = re.compile(r"^(?:more|fewer|less|additional|extra)\s+(?!than\b|or\b|to\b)(?=[a-z]{3})")
_MORE_WORDS = re.compile(
    r"and\s+(?:(?:an?|one)\s+)?(half|quarter|third)\b|and\s+(two|three)[\s-]+(quarters|thirds|fourths)\b"
)
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
    "tenth": 10, "eleventh": 11, "twelfth": 12, "twentieth": 20, "hundredth": 100, "thousandth": 1000,
    "millionth": 10**6, "quarter": 4,
}  # fmt: skip
_PLACES = {"ten": 10, "tens": 10, "ones": 1}
_OLD_COUNTS = {"gross": 144, "score": 20}
_RAISED = {"squared": 2, "cubed": 3}


def labelled(value: Node, words: str) -> Node:
    """The value that stands before ``words``: with what they count worked in, and what they name as its label.

    MathError where the words deny, compare or retract it, or are a sentence of their own."""
    rest = " ".join(words.replace("~", " ").split())
    if rest.startswith("(") and rest.endswith(")"):
        rest = rest[1:-1].strip()
    lower = rest.lower().strip(" .,;!")
    if _APPROVAL.fullmatch(lower) or (rational(value) is not None and number_from_words(lower) == rational(value)):
        return value
    value, rest = _counted(value, rest)
    lower = rest.lower().strip(" .,;!")
    if not lower:
        return value
    if lower.split()[0] in ("percent", "%") or lower.startswith("per cent"):
        return _with_label(Node("percent", (value,)), re.sub(r"^(?:percent|per cent|%)\s*", "", rest, flags=re.I))
    if lower.split()[0] in ("degree", "degrees") and not re.match(r"degrees?\s+[cf]", lower):
        return _with_label(Node("degree", (value,)), re.sub(r"^degrees?\s*", "", rest, flags=re.I))
    return _with_label(value, rest)


def _with_label(value: Node, rest: str) -> Node:
    if not rest.strip(" .,;!()"):
        return value
    if unit_size(rest) is None and denies(rest):
        raise MathError("words that are no label")
    return Node("unit", (value,), rest)


def denies(words: str) -> bool:
    """Do the words say more than what is counted: a verb, a denial, a number?"""
    if alters(words):
        return True
    words = _MORE_OF.sub("", words.lower().replace("’", "'"))
    found = re.findall(r"[^\s(),.;:!?]+", words)
    if len(found) > _MAX_WORDS or _DENIALS_CHINESE.search(words):
        return True
    if found[:1] and found[0] in _ORDINALS and {"root", "power"} & set(found[1:]):
        return True
    if set(found) & _REFUSALS and not set(found) - _REFUSALS - _OF_A_VALUE:
        return True
    clause = next((i for i, w in enumerate(found) if w in _CLAUSE), len(found))
    return any(w in _DENIALS or w.endswith("n't") for w in found) or any(
        w in _VERBS or number_from_words(w) is not None for w in found[:clause]
    )


def retracts(words: str) -> bool:
    """Do words in front of a value deny or compare it: ``The answer is not``, ``at least``?"""
    found = re.findall(r"[^\s(),.;:!?]+", words.lower().replace("’", "'"))
    denials = (_DENIALS | _REFUSALS) - _IN_FRONT
    return bool(_DENIALS_CHINESE.search(words)) or any(w in denials or w.endswith("n't") for w in found)


#: "The least number = 5" names what is meant.
_IN_FRONT = word_set("least most more less fewer")


def _counted(value: Node, rest: str) -> tuple[Node, str]:
    """Scales, parts and powers at the start of the words, as arithmetic."""
    more = _MORE_WORDS.match(rest.lower())
    if more:
        top = {"two": 2, "three": 3}.get(more[2] or "", 1)
        part = Fraction(top, _PARTS[more[1] or more[3].removesuffix("s")])
        return add(value, num(part)), rest[more.end() :].strip()
    while True:
        first, _, tail = rest.partition(" ")
        word = first.lower().strip(".,")
        if rest.lower() in _OLD_COUNTS:
            return mul(value, num(_OLD_COUNTS[rest.lower()])), ""
        scale = SCALES.get(word) or SCALES.get(word.removesuffix("s")) or _PLACES.get(word)
        if scale:
            value, rest = mul(value, num(scale)), tail.removeprefix("of ").strip()
            continue
        if word in _RAISED and unit_size(tail.partition(" ")[0]) is None:
            return power(value, num(_RAISED[word])), tail.strip()
        if word == "factorial":
            return call("factorial", value), tail.strip()
        size = _PARTS.get(word if word == "halves" else word.removesuffix("s"))
        if size and (not word.startswith("quarter") or (word == "quarter" and rational(value) != 1)):
            if rational(value) is None or (word in _PARTS and word != "halves" and rational(value) != 1):
                raise MathError("an ordinal behind a number")
            return mul(value, num(Fraction(1, size))), tail.strip()
        return value, rest


class Label(NamedTuple):
    """Example: ``km north`` is ``Label(size=((("m", 1),), 1000), words={"north"}, text="km north")``."""

    size: tuple[Dimensions, Fraction] | None
    words: frozenset[str]
    text: str


_GENERIC = word_set(
    "unit way solution answer value number total in all altogether exactly approximately about possible different "
    "distinct result final the a an of is are was be per and has have there each its their it to at for with time "
    "overall roughly around only ans 个 person item object thing "
    "combination arrangement permutation outcome possibility"
)
_IRREGULAR = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "teeth": "tooth", "dice": "die", "leaves": "leaf", "loaves": "loaf", "halves": "half",
    "knives": "knife", "wolves": "wolf", "shelves": "shelf", "vertices": "vertex", "indices": "index", "oxen": "ox",
    "min": "minimum", "least": "minimum", "smallest": "minimum", "lowest": "minimum", "minimal": "minimum",
    "max": "maximum", "greatest": "maximum", "largest": "maximum", "highest": "maximum", "biggest": "maximum",
    "maximal": "maximum", "a.m": "am", "p.m": "pm",
}  # fmt: skip
#: Words that say what one thing is: where one side has them, the other must too.
_COLLECTIVE = word_set("pair couple dozen set group pack package box bag team row half quarter gross")


def stem(word: str) -> str:
    """Singular of a noun, as far as its ending tells."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


@lru_cache(maxsize=4096)
def label(text: str) -> Label:
    """A label as a unit at its start, and the words behind."""
    size = unit_size(text)
    if size is not None:
        return Label(size, frozenset(), text)
    words = text.split()
    for count in range(min(len(words) - 1, 4), 0, -1):
        head = " ".join(words[:count])
        if count == 1 and head.lower() in ("in", "a", "an", "as"):
            break
        size = unit_size(head)
        if size is not None:
            return Label(size, _stems(" ".join(words[count:])), text)
    return Label(None, _stems(text), text)


def _stems(text: str) -> frozenset[str]:
    text = re.sub(r"\b([ap])\.\s?m\b\.?", r"\1m", text.lower())
    text = re.sub(r"units?\s*\^\s*\{?2\}?", "square", text)
    words = {stem(w) for w in re.findall(r"[^\s(),.;:!?^{}]+", re.sub(r"units?\s*\^\s*\{?3\}?", "cubic", text))}
    return frozenset(words - _GENERIC)


def agree(a: Label, b: Label) -> bool:
    """Can the two name one thing? The words of one must be among the other's, and units must convert."""
    if (a.size is None) != (b.size is None) and (a.words or a.size) and (b.words or b.size):
        return False
    if a.size is not None and b.size is not None and a.size[0] != b.size[0]:
        return False
    if a.words & _COLLECTIVE != b.words & _COLLECTIVE:
        return False
    return a.words <= b.words or b.words <= a.words

"""One answer's text -> its tree, with the spellings that mean the same thing made one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rlreason.rewards.extract import boxes
from rlreason.rewards.math.labels import retracts
from rlreason.rewards.math.letters import STYLE, letter_and_choice
from rlreason.rewards.math.matrices import TRANSPOSE, matrix_arithmetic, transposed
from rlreason.rewards.math.parse import parse
from rlreason.rewards.math.renamed import choice_set
from rlreason.rewards.math.spelling import clean
from rlreason.rewards.math.tree import (
    EMPTY,
    INFINITY,
    MINUS_INFINITY,
    MathError,
    Node,
    add,
    call,
    decimals,
    group,
    neg,
    num,
    rational,
    walk,
)
from rlreason.rewards.math.words import RELATIONS, number_from_words

_MAX_ALTERNATIVES = 8
#: Longer texts are read anew each time: a cache of them could grow large.
_REMEMBERED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer as text and as tree. ``node`` None: not readable as mathematics or words.

    Example: ``read("x = 5").node`` is ``relation(x, 5)``; ``read("odd").words`` is ``"odd"``.
    """

    text: str
    node: Node | None
    #: Lower-case words and digits without LaTeX: how texts are compared.
    words: str
    #: The letter of a choice such as ``(B)`` or ``B. Paris``, or "".
    letter: str = ""
    #: What stands after the letter: ``27`` of ``(C) 27``.
    choice: str = ""
    #: A number written in words inside ``\\text{}``: counts in a gold, or against another one.
    in_words: bool = False
    #: Several choices, ``ACD`` or ``①③``, as a set.
    choices: frozenset[str] = frozenset()


def read(text: str) -> Answer:
    """Read one answer. Never raises. Short texts are remembered: a gold meets many answers."""
    return _read_short(text) if len(text) <= _REMEMBERED else _read(text)


def _read(text: str) -> Answer:
    plain = strip(text)
    letter, choice = letter_and_choice(plain)
    words = plain_words(plain)
    node: Node | None
    remainder = _REMAINDER.fullmatch(plain) if len(plain) < 90 else None
    if remainder:
        node = call("remainder", num(int(remainder[1])), num(int(remainder[2])))
        return Answer(text=plain, node=node, words=words)
    called = _CALLED.match(plain) if "=" in plain and len(plain) <= _REMEMBERED else None
    try:
        if called:
            node = named(called[1], simplify(parse(plain[called.end() :])))
        else:
            node = _SAME_WORDS.get(words) or simplify(parse(plain))
    except (MathError, RecursionError):
        sign = RELATIONS.get(plain.strip(" $"))
        node = Node("text", (), sign) if sign else Node("text", (), words) if _wordy(plain) and words else None
    in_words = False
    if node is not None and node.kind == "text":
        node = _worded(words) if words else node
        in_words = node.kind == "num" and "\\text" in plain
    return Answer(
        text=plain,
        node=node,
        words=words,
        letter=letter,
        choice=choice,
        in_words=in_words,
        choices=choice_set(plain),
    )


#: What stands before "=" and names a value without being a formula: P(A|B), Var(X), E[X], deg f, (f+g)(x), d/dx f(x).
_CALLED = re.compile(
    r"\s*((?:P\([^()=]*(?:\||\\mid)[^()=]*\)|\\(?:text|mathrm|operatorname|mathbb)\{[A-Za-z]{1,12}\}[(\[][^()\[\]=]*[)\]]"
    r"|\\deg\s*\(?\w\)?|\([fgh]\s*(?:[-+]|\\cdot)\s*[fgh]\)\s*\(\w+\)|\\frac\{d\}\{d\w\}[^=]{1,30}))\s*=(?!.*=)"
)
_REMAINDER = re.compile(
    r"(-?\d{1,30})[\s,~]*(?:\\(?:text|mathrm|mbox)\s*\{)?\s*(?:R|rem\.?|remainder)\s*(?:of)?\s*\}?[\s~]*(\d{1,30})"
)
_read_short = lru_cache(maxsize=4096)(_read)


def strip(text: str) -> str:
    """The answer without what stands around it: boxes, mathematics signs, bold, quotes, a full stop."""
    text = text.strip()
    if "boxed" in text:
        found = boxes(text)
        if len(found) == 1 and found[0].text and found[0].start == 0 and found[0].end >= len(text.rstrip(" .$")):
            text = found[0].text.strip()
    text = clean(text)
    while text.endswith("}") and text.count("}") - text.count("\\}") > text.count("{") - text.count("\\{"):
        text = text[:-1].rstrip()  # a brace too many, as some data sets leave it
    if "}" in text or "\\text" in text:
        text = _with_braces(text)
    while len(text) >= 2 and (text[0], text[-1]) in _PAIRS:
        text = text[1:-1].strip()
    if text.startswith(("\\[", "\\(")) and text.endswith(("\\]", "\\)")):
        text = text[2:-2].strip()
    if _BARE_BUILDER.match(text) and (text.count("|") + text.count("\\mid")) % 2:
        text = f"\\{{{text}\\}}"  # a set that lost its braces
    if text.startswith("<") and text.endswith(">") and "," in text:
        text = f"({text[1:-1]})"  # a vector
    if text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2].strip()
    if text.endswith("["):
        text = _OUTWARD.sub(r"\1\2)", text)
    if _GOES_ON.search(text):
        return text
    return text.rstrip(" \n.,;:。") if not text.endswith("\\,") else text


_OPEN_TEXT = re.compile(r"\\text\s*\{[^{}]*[A-Za-z]{3}[^{}]*$")
_CLOSED_TEXT = re.compile(r"[A-Za-z][^{}\\]*[A-Za-z]{3}[^{}\\]*\}")


def _with_braces(text: str) -> str:
    """The brace of a ``\\text{}`` that a data set cut off at the start or the end of an answer."""
    if 0 <= text.find("}") < text.find("{") or (text.count("{") < text.count("}") and "{" not in text):
        text = f"\\text{{{text}" if _CLOSED_TEXT.match(text) else text
    return f"{text}}}" if text.count("{") > text.count("}") and _OPEN_TEXT.search(text) else text


_OUTWARD = re.compile(r"^([\[(])([^\[\]]+,[^\[\]]+)\[$")
_GOES_ON = re.compile(r"\.\d+\s*\.\.\.+$")
_BARE_BUILDER = re.compile(r"[A-Za-z]\s*(?:\||\\mid)")
_PAIRS = frozenset({("`", "`"), ('"', '"'), ("_", "_")})
_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|textrm|mathbf|operatorname|textnormal)\s*\{([^{}]*)\}")


def plain_words(text: str) -> str:
    """Words and digits in lower case, for comparing texts."""
    if len(text) > 20_000:
        return text
    text = _COMMAND.sub(r" \1 ", text.replace("~", " "))
    text = STYLE.sub(" ", text)
    text = re.sub(r"\\[,;:! ]|[${}\\\"'`*]|\\\\", " ", text)
    text = re.sub(r"\b(?:the|a|an)\b", " ", text.lower()) if " " in text.strip() else text.lower()
    return " ".join(re.sub(r"(?<![.!?,;:])[.!?,;:]+(?=\s|$)", " ", text).replace("-", " ").split())


def _wordy(text: str) -> bool:
    """Is this text in words, rather than broken mathematics?"""
    bare = re.sub(r"\\[A-Za-z]+", " ", _COMMAND.sub(r" \1 ", text))
    return bool(re.search(r"[^\W\d_]{2,}", bare)) and bare.count("{") == bare.count("}")


_SAME_WORDS = {
    "all real numbers": Node("numbers", (), "R"),
    "all reals": Node("numbers", (), "R"),
    "all integers": Node("numbers", (), "Z"),
    "integers": Node("numbers", (), "Z"),
    "real numbers": Node("numbers", (), "R"),
    "rational numbers": Node("numbers", (), "Q"),
    "positive integers": Node("numbers", (), "Z^+"),
    "all positive integers": Node("numbers", (), "Z^+"),
    "natural numbers": Node("numbers", (), "N"),
    "all natural numbers": Node("numbers", (), "N"),
    "no solution": EMPTY,
    "no solutions": EMPTY,
    "no real solution": EMPTY,
    "no real solutions": EMPTY,
    "empty set": EMPTY,
    "无解": EMPTY,
    "dne": Node("text", (), "does not exist"),
    "infinitely many solutions": Node("text", (), "infinitely many"),
    "infinite solutions": Node("text", (), "infinitely many"),
    "infinite number of solutions": Node("text", (), "infinitely many"),
}
_EXCEPT = re.compile(r"all reals?(?: numbers?)?(?: [a-z])? (?:except|but|other than|excluding)(?: for)? (.{1,60})")


def _all_but(words: str) -> Node | None:
    """``all real numbers except 1 and 2``."""
    found = _EXCEPT.fullmatch(words)
    if found is None:
        return None
    items = [re.sub(r"^[a-z]\s*=\s*", "", item) for item in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", found[1])]
    try:
        return Node("minus", (Node("numbers", (), "R"), group("{}", tuple(parse(item) for item in items))))
    except MathError:
        return None


def _worded(words: str) -> Node:
    number = number_from_words(words)
    if number is not None:
        return num(number)
    return _SAME_WORDS.get(words) or _all_but(words) or Node("text", (), words)


def simplify(node: Node) -> Node:
    """Approximations dropped, plus-minus as two values, nested lists as matrices, matrix arithmetic done."""
    if not node.args:
        return node
    node = Node(node.kind, tuple(simplify(a) for a in node.args), node.value)
    if node.kind == "builder":
        return _listed(node)
    if node.kind == "pow" and node.args[1] in TRANSPOSE:
        return transposed(node)
    if node.kind == "relation":
        if node.value == ("=",) and node.args[0].kind == "text":
            return named(str(node.args[0].value), node.args[1])  # "Total pieces = 3n + 1"
        return _without_approximation(node)
    if node.kind == "group":
        node = _open_at_infinity(_spliced(node))
        if node.value == "[]" and node.args and all(a.kind == "group" and a.value == "[]" for a in node.args):
            widths = {len(a.args) for a in node.args}
            if len(widths) == 1:
                return Node("matrix", tuple(c for a in node.args for c in a.args), (len(node.args), widths.pop()))
        return node
    if (
        node.kind == "unit"
        and node.args[0].kind == "decimal"
        and str(node.value).startswith(("repeating", "recurring"))
    ):
        return _repeating(node.args[0])
    if node.kind in ("add", "mul") and any(a.kind == "matrix" for a in node.args):
        return matrix_arithmetic(node)
    return node


def _open_at_infinity(node: Node) -> Node:
    """``[0, \\infty]`` is written for ``[0, \\infty)``."""
    if len(node.args) != 2 or node.value not in ("[]", "[)", "(]"):
        return node
    brackets = str(node.value)
    left = "(" if node.args[0] == MINUS_INFINITY else brackets[0]
    right = ")" if node.args[1] == INFINITY else brackets[1]
    return group(left + right, node.args)


def _listed(node: Node) -> Node:
    """``{x | x = k\\pi, k \\in Z}`` lists values: ``k\\pi, k \\in Z``."""
    head, condition = node.args
    if head.kind not in ("sym", "relation") and condition.kind == "relation" and condition.value == ("in",):
        return head  # {2k | k in Z}
    parts = condition.args if condition.kind == "group" and condition.value in ("", "and") else (condition,)
    first = parts[0]
    if head.kind == "sym" and first.kind == "relation" and first.value == ("=",) and first.args[0] == head:
        return _spliced(group("", (first.args[1], *parts[1:]))) if len(parts) > 1 else first.args[1]
    return node


def named(words: str, value: Node) -> Node:
    """A value with words in front. MathError where the words deny it."""
    if retracts(words):
        raise MathError("words that deny what follows")
    return Node("named", (value,), words) if value.kind not in ("text", "named") else value


def _repeating(node: Node) -> Node:
    """``0.1666 repeating``: the last digit goes on for ever."""
    shown, places = rational(node), decimals(node)
    assert shown is not None
    unit = Fraction(1, 10**places)
    return num(shown + unit * (int(abs(shown) / unit) % 10) / 9)


def _without_approximation(node: Node) -> Node:
    operators = node.value
    assert isinstance(operators, tuple)
    if "~" not in operators:
        return node
    cut = operators.index("~")
    if cut == 0:
        left = node.args[0]
        if left.kind == "sym" or (rational(left) is not None and len(node.args) == 2 and node.args[1].kind == "sym"):
            return Node("relation", node.args, tuple("=" if o == "~" else o for o in operators))
        return left
    return Node("relation", node.args[: cut + 1], operators[:cut])


def alternatives(node: Node) -> list[Node]:
    """All values of an expression with ``±``; itself where there is none. ``∓`` takes the other sign."""
    signs = [n for n in walk(node) if n.kind in ("pm", "mp")]
    if not signs:
        return [node]
    together = any(n.kind == "mp" for n in signs)
    count = 1 if together else len(signs)
    if 2**count > _MAX_ALTERNATIVES:
        raise MathError("too many plus-minus signs")
    out = []
    for pattern in range(2**count):
        state = [0]

        def pick(n: Node, pattern: int = pattern, state: list[int] = state) -> Node:
            if n.kind not in ("pm", "mp"):
                return Node(n.kind, tuple(pick(a) for a in n.args), n.value) if n.args else n
            bit = pattern if together else pattern >> state[0] & 1
            state[0] += 1
            left, right = pick(n.args[0]), pick(n.args[1])
            positive = (bit == 0) == (n.kind == "pm")
            if rational(left) == 0:
                return right if positive else neg(right)
            return add(left, right if positive else neg(right))

        out.append(pick(node))
    return out


def _spliced(node: Node) -> Node:
    """``{1±√5, -2}``: plus-minus items of a list become items of their own."""
    if node.value in ("", "and", "or", "{}"):
        items: list[Node] = []
        for arg in node.args:
            items.extend(alternatives(arg))
        # "k \\in Z" after a formula says what k is; it is no item of the list.
        rest = [i for i in items if not (i.kind == "relation" and i.value == ("in",) and i.args[1].kind == "numbers")]
        if rest and len(rest) < len(items):
            return rest[0] if len(rest) == 1 and node.value != "{}" else group(str(node.value), tuple(rest))
        return group(str(node.value), tuple(items))
    return node


def with_alternatives(node: Node) -> Node:
    """A whole answer with ``±`` as the list of its values."""
    if node.kind == "group" and node.value in ("", "and", "or", "{}"):
        return node
    found = alternatives(node)
    if node.kind == "relation" and node.value == ("!=",) and len(found) > 1:
        return group("and", tuple(found))
    return node if len(found) == 1 else group("", tuple(found))

"""Answers that are equal up to a choice of letters: whole numbers ``k``, constants of integration, sets of options.

``2k\\pi, k \\in Z`` and ``2n\\pi, n \\in Z`` are one family; ``x^2 + C`` and ``x^2 + 1 + c`` one antiderivative.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import permutations

from rlreason.rewards.math.relations import assignment
from rlreason.rewards.math.tree import MINUS_ONE, Node, add, mul, name_of, neg, num, symbols
from rlreason.rewards.math.values import Options, values_equal

Equal = Callable[[Node, Node, Options], bool | None]

_INTEGERS = r" ?(?:\\in|in) ?\\?(?:mathbb|mathbf|Bbb|mathrm|bf)? ?\{? ?([ZN])(?![A-Za-z])"
_DECLARED = re.compile(
    r"(?:(?<=[,;(]) ?([a-z]) ?, ?|(?<![A-Za-z\\]))([a-zA-Z])(?:_\{?\d\}?)?" + _INTEGERS
    + r"|(?<![A-Za-z\\])([a-zA-Z]) ?(?:\\text ?\{)? ?(?:is|are|being|为|是)? ?(?:an?|any|some)? ?(?:integer|整数)"
    + r"|(?:integers?|整数) ?\}? ?\$?([a-zA-Z])(?![A-Za-z])"
)  # fmt: skip
_CONSTANT = re.compile(r"(?:[CcKk]|const)(?:_?\{?\d\}?)?|[ABab]")
_VARIABLES = frozenset({"x", "t", "s", "u", "v", "y", "z", "theta", "phi"})
_SHIFTS = tuple((sign, by) for by in (0, 1, -1, 2, -2) for sign in (1, -1))


def equal_up_to_letters(gold: str, answer: str, a: Node, b: Node, options: Options, equal: Equal) -> bool:
    """Are the two equal if letters that the answer is free to choose are renamed? Asked after ``equal`` said no.

    ``gold`` and ``answer`` are the texts, in which the letters are declared."""
    declared, other = _declared(gold), _declared(answer)
    if declared or other:
        return _same_family(a, b, declared, other, options, equal)
    return bool(_HAS_C.search(gold) or _HAS_C.search(answer)) and _same_constants(a, b, options, equal)


_HAS_C = re.compile(r"(?<![A-Za-z\\])[Cc](?![a-z]{2})")


def _declared(text: str) -> dict[str, str]:
    """Letters and the set each is declared to run over: ``{"k": "Z"}``."""
    found: dict[str, str] = {}
    if "in" not in text and "整" not in text:
        return found
    for match in _DECLARED.finditer(" ".join(text.split())):
        one, two, numbers, said, named = match.groups()
        for letter in (one, two, said, named):
            if letter:
                found[letter] = numbers or "Z"
    return found


def _same_family(
    a: Node, b: Node, first: dict[str, str], second: dict[str, str], options: Options, equal: Equal
) -> bool:
    left, right = sorted(first.keys() & symbols(a)), sorted(second.keys() & symbols(b))
    if not left or not right:  # declared on one side only: the letter that only the other side has
        free_a, free_b = sorted(symbols(a) - symbols(b)), sorted(symbols(b) - symbols(a))
        if len(free_a) != 1 or len(free_b) != 1 or (left or right) not in (free_a, free_b):
            return False
        left, right = free_a, free_b
    elif {first[n] for n in left} != {second[n] for n in right}:
        return False
    if len(left) != len(right) or len(left) > 3:
        return False
    for order in permutations(left):
        renamed = _renamed(b, {old: Node("sym", (), new) for old, new in zip(right, order, strict=True)})
        if equal(a, renamed, options):
            return True
    if len(left) != 1 or "N" in {*first.values(), *second.values()}:
        return False
    letter = Node("sym", (), left[0])
    for sign, by in _SHIFTS:  # k and -k, k + 1 run over the same whole numbers
        value = add(mul(num(sign), letter), num(by))
        if (sign, by) != (1, 0) and equal(a, _renamed(b, {right[0]: value}), options):
            return True
    return False


def _renamed(node: Node, names: dict[str, Node]) -> Node:
    if node.kind == "sym":
        return names.get(name_of(node), node)
    return Node(node.kind, tuple(_renamed(x, names) for x in node.args), node.value) if node.args else node


def _same_constants(a: Node, b: Node, options: Options, equal: Equal) -> bool:
    """Constants of integration: beside a variable, ``C`` by another name, ``C_1`` and ``C_2`` exchanged, or a lone
    ``+ C`` that takes up a difference."""
    left, right = _constants(a), _constants(b)
    if not left or len(left) != len(right) or len(left) > 3:
        return False
    named_c = bool({"C", "const"} & {*left, *right})
    if len(left) == 1 and named_c:
        rest_a, rest_b = _without(_body(a), left[0]), _without(_body(b), right[0])
        if rest_a is not None and rest_b is not None and _same_subject(a, b):
            return _constant_difference(rest_a, rest_b, options)
    if not named_c and not any(all("_" in name for name in side) for side in (left, right)):
        return False
    for order in permutations(left):
        names = {old: Node("sym", (), new) for old, new in zip(right, order, strict=True)}
        if equal(a, _renamed(b, names), options):
            return True
    return False


def _constants(node: Node) -> list[str]:
    """Names of constants of integration; [] where the rest is no function of one or two variables."""
    names = symbols(_body(node))
    found = sorted(n for n in names if _CONSTANT.fullmatch(n))
    rest = names - set(found)
    return found if rest and rest <= _VARIABLES else []


def _body(node: Node) -> Node:
    named = assignment(node) if node.kind == "relation" else None
    return named[1] if named else node


def _same_subject(a: Node, b: Node) -> bool:
    first, second = (assignment(n) if n.kind == "relation" else None for n in (a, b))
    return first is None or second is None or first[0] == second[0]


def _without(node: Node, constant: str) -> Node | None:
    """The sum without its addend ``C``; None where the constant stands anywhere else."""
    if node.kind != "add":
        return None
    lone = Node("sym", (), constant)
    rest = tuple(x for x in node.args if x not in (lone, neg(lone), mul(MINUS_ONE, lone)))
    if len(rest) != len(node.args) - 1 or any(constant in symbols(x) for x in rest):
        return None
    return rest[0] if len(rest) == 1 else Node("add", rest)


def _constant_difference(a: Node, b: Node, options: Options) -> bool:
    """Do two functions differ by a constant? Their difference is the same at two independent points."""
    difference = add(a, neg(b))
    elsewhere = _renamed(difference, {n: Node("sym", (), f"other {n}") for n in symbols(difference)})
    return bool(values_equal(difference, elsewhere, options))


_PLAIN = re.compile(r"\\(?:text|mathrm|textbf|mbox|mathbf|textrm)\s*\{([^{}]*)\}")
_LETTERS = re.compile(r"\(?[A-H]\)?(?:\s*(?:,|;|、|&|/)?\s*(?:and\s+)?\(?[A-H]\)?)+")
_NUMBERS = re.compile(r"(?:[①-⑳]|\(\d\))(?:\s*(?:,|;|、|&)?\s*(?:and\s+)?(?:[①-⑳]|\(\d\)))*")


def choice_set(text: str) -> frozenset[str]:
    """``ACD``, ``A, C and D``, ``①③``, ``(1)(3)`` as a set of options; empty for anything else."""
    if text[:1] not in _OPENS or len(text) > 80:
        return frozenset()
    bare = _PLAIN.sub(r" \1 ", text).replace("$", " ").strip(" .")
    if _LETTERS.fullmatch(bare):
        found = re.findall("[A-H]", bare)
        return frozenset(found) if len(set(found)) == len(found) else frozenset()
    if _NUMBERS.fullmatch(bare):
        return frozenset(m[1] if m[0] == "(" else str(ord(m) - ord("①") + 1) for m in re.findall(r"[①-⑳]|\(\d\)", bare))
    return frozenset()


_OPENS = frozenset("ABCDEFGH($\\①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳")

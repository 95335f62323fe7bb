"""The typed tree that a mathematical answer is read into, and its canonical form.

Kinds of expression (``args`` are nodes, ``value`` is data):

- ``num`` value = Fraction; ``decimal`` value = (Fraction, digits after the point); ``literal`` value = digits that are
  too many to compute with; ``sym`` name; ``const`` one of pi, e, i, inf
- ``add``, ``mul`` (n-ary), ``pow`` (base, exponent), ``call`` value = function name, ``pm`` (left, right), ``mp``
- ``percent``, ``degree`` (one argument), ``unit`` (one argument, value = unit text)

Kinds of answer: ``group`` value = brackets ("()", "[)", "{}", "" for a bare list); ``relation`` value = operators;
``union``, ``inter``, ``minus``; ``numbers`` value = R, Z, N, Q, C; ``empty``; ``builder`` (item, condition);
``matrix`` value = (rows, columns); ``ratio``; ``text`` value = text.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

#: Beyond these an answer is not computed with: it is compared as text only.
MAX_LENGTH = 4000
MAX_NODES = 1500
MAX_DEPTH = 50
MAX_DIGITS = 1000
#: Bits of an exact rational that is worked out; larger ones go through logarithm-sized floating point.
MAX_BITS = 16_384


class Node(NamedTuple):
    """One node. Example: ``x^2`` is ``Node("pow", (sym("x"), num(2)))``. Equality and hash are structural."""

    kind: str
    args: tuple[Node, ...] = ()
    value: object = None


class MathError(Exception):
    """The text is no mathematics that we read, or is beyond the limits."""


def num(value: int | Fraction) -> Node:
    return Node("num", (), Fraction(value))


def sym(name: str) -> Node:
    return Node("sym", (), name)


def const(name: str) -> Node:
    return Node("const", (), name)


def call(name: str, *args: Node) -> Node:
    return Node("call", args, name)


def add(first: Node, *rest: Node) -> Node:
    """A sum; a long one stays flat, so that the depth of the tree is the depth of its brackets."""
    return Node("add", (*(first.args if first.kind == "add" else (first,)), *rest))


def mul(first: Node, *rest: Node) -> Node:
    """A product, flat like ``add``."""
    return Node("mul", (*(first.args if first.kind == "mul" else (first,)), *rest))


def power(base: Node, exponent: Node) -> Node:
    return Node("pow", (base, exponent))


def neg(node: Node) -> Node:
    if node.kind == "num":
        return num(-_fraction(node))
    if node.kind == "decimal":
        return Node("decimal", (), (-_fraction(node), decimals(node)))
    return Node("mul", (MINUS_ONE, node))


def divide(top: Node, bottom: Node) -> Node:
    return Node("mul", (top, Node("pow", (bottom, MINUS_ONE))))


def group(brackets: str, items: tuple[Node, ...]) -> Node:
    return Node("group", items, brackets)


def _fraction(node: Node) -> Fraction:
    value = node.value[0] if isinstance(node.value, tuple) else node.value
    assert isinstance(value, Fraction)
    return value


def rational(node: Node) -> Fraction | None:
    """The value of a literal number; None for anything else."""
    return _fraction(node) if node.kind in ("num", "decimal") else None


def decimals(node: Node) -> int:
    """Digits after the point of a decimal literal; -1 for anything else."""
    if node.kind == "decimal" and isinstance(node.value, tuple):
        return int(node.value[1])
    return -1


def name_of(node: Node) -> str:
    """``value`` of a node whose value is text."""
    return node.value if isinstance(node.value, str) else ""


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    stack = [node]
    while stack:
        top = stack.pop()
        yield top
        stack.extend(top.args)


def symbols(node: Node) -> frozenset[str]:
    """Names of all symbols in it."""
    return frozenset(name_of(n) for n in walk(node) if n.kind == "sym")


def too_large(node: Node) -> bool:
    return sum(1 for _ in walk(node)) > MAX_NODES


_COMMUTATIVE = frozenset({"add", "mul", "union", "inter"})


def canonical(node: Node) -> Node:
    """Nested sums and products flattened, arguments of commutative operations in one order, decimals as fractions,
    literal numbers folded. Two trees with one canonical form are equal; the reverse does not hold."""
    if node.kind == "decimal":
        return num(_fraction(node))
    if not node.args:
        return node
    args = [canonical(a) for a in node.args]
    if node.kind in ("add", "mul"):
        return _fold(node.kind, args)
    if node.kind in _COMMUTATIVE:
        return Node(node.kind, tuple(sorted(args, key=hash)))
    if node.kind == "pow" and args[1] == MINUS_ONE:
        base = rational(args[0])
        if base:
            return num(1 / base)
    return Node(node.kind, tuple(args), node.value)


def _fold(kind: str, args: list[Node]) -> Node:
    flat: list[Node] = []
    for arg in args:
        flat.extend(arg.args if arg.kind == kind else (arg,))
    total = Fraction(0) if kind == "add" else Fraction(1)
    for arg in flat:
        if arg.kind == "num":
            total = total + _fraction(arg) if kind == "add" else total * _fraction(arg)
            if total.numerator.bit_length() + total.denominator.bit_length() > MAX_BITS:
                return Node(kind, tuple(sorted(flat, key=hash)))
    rest = [a for a in flat if a.kind != "num"]
    if kind == "add":
        rest = _like_terms(rest)
    rest.sort(key=hash)
    if not rest or (kind == "mul" and total == 0 and all(a.kind == "sym" for a in rest)):
        return num(total)
    if total != (0 if kind == "add" else 1):
        rest.insert(0, num(total))
    return rest[0] if len(rest) == 1 else Node(kind, tuple(rest))


def _like_terms(terms: list[Node]) -> list[Node]:
    """``2x + 3x`` as ``5x``; a symbol-free term is left alone, it might be undefined."""
    weights: dict[Node, Fraction] = {}
    if any((t.kind == "mul" and (t.args[0] == ZERO or INFINITY in t.args)) or t == INFINITY for t in terms):
        return terms
    for term in terms:
        weight, body = Fraction(1), term
        if term.kind == "mul" and term.args[0].kind == "num":
            weight, body = _fraction(term.args[0]), _fold("mul", list(term.args[1:]))
        weights[body] = weights.get(body, Fraction(0)) + weight
    return [_fold("mul", [num(weight), body]) for body, weight in weights.items() if weight]


MINUS_ONE = num(-1)
ZERO = num(0)
ONE = num(1)
HALF = num(Fraction(1, 2))
EMPTY = Node("empty")
INFINITY = const("inf")
MINUS_INFINITY = Node("mul", (MINUS_ONE, INFINITY))

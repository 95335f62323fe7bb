"""Notations that only a look at the finished node tells: mixed numbers, bases, selections, periods."""

from __future__ import annotations

from fractions import Fraction

from rlreason.rewards.math.tree import MathError, Node, call, decimals, mul, name_of, num, rational


def builder_of_ratio(node: Node) -> Node:
    """``{x : x > 2}`` arrives as the relation ``x:x > 2``."""
    if node.kind == "group" and len(node.args) == 1 and node.args[0].kind == "relation":
        first = node.args[0].args[0]
        if first.kind == "ratio":
            condition = Node("relation", (first.args[1], *node.args[0].args[1:]), node.args[0].value)
            return Node("builder", (first.args[0], condition))
    return node


def going_on(node: Node) -> Node:
    """``0.333...``: the digit that ends it three times goes on for ever."""
    shown, places = rational(node), decimals(node)
    assert shown is not None
    digits = str(abs(int(shown * 10**places)))[-3:]
    if len(set(digits)) != 1 or len(digits) < 3:
        raise MathError("a decimal that goes on unknown")
    return num(shown + (1 if shown > 0 else -1) * Fraction(int(digits[-1]), 9 * 10**places))


def selections(name: Node, exponent: Node) -> Node | None:
    """``C_{10}^{3}`` and ``A_{5}^{2}``: combinations and arrangements; None for a power of a symbol."""
    letter, _, below = name_of(name).partition("_")
    above = rational(exponent)
    if letter not in ("C", "A", "P") or not below.isdigit() or above is None or above.denominator != 1:
        return None
    n, k = int(below), int(above)
    if not 0 <= k <= n <= 1000:
        return None
    chosen = call("binom", num(n), num(k))
    return chosen if letter == "C" else mul(chosen, call("factorial", num(k)))


def proper_fraction(node: Node) -> Fraction | None:
    """The value of ``\\frac{1}{2}`` with whole positive parts and value below 1."""
    if node.kind == "mul" and len(node.args) == 2 and node.args[1].kind == "pow":
        top, bottom = rational(node.args[0]), rational(node.args[1].args[0])
        if top is not None and bottom and top.denominator == bottom.denominator == 1 and 0 < top < bottom:
            return top / bottom
    return None


def in_base(digits: str, base: int) -> int:
    try:
        return int(digits, base) if base else int("no base")
    except ValueError:
        raise MathError(f"{digits} is no number in base {base}") from None

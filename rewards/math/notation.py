"""Notations that only a look at the finished node tells: mixed numbers, bases, selections, periods."""

from __future__ import annotations

import re
from fractions import Fraction

from rlreason.rewards.math.tree import ONE, MathError, Node, add, call, decimals, mul, name_of, num, rational


def plain_bracket(node: Node) -> Node:
    """``[x+1]`` beside an operator groups, as ``(x+1)`` does."""
    return node.args[0] if node.kind == "group" and node.value == "[]" and len(node.args) == 1 else node


def named_point(name: Node, inner: Node) -> Node | None:
    """``P(2,-3)`` is the point ``P = (2,-3)``; None where the letter does not name one."""
    letter = name_of(name).rstrip("'_0123456789{}")
    if len(letter) != 1 or not letter.isupper() or inner.kind != "group" or inner.value != "" or len(inner.args) < 2:
        return None
    return Node("relation", (name, Node("group", inner.args, "()")), ("=",))


def going_on(node: Node) -> Node:
    """``0.333...``: a digit that ends it three times, or a block that ends it twice, goes on for ever."""
    shown, places = rational(node), decimals(node)
    assert shown is not None
    digits = str(abs(int(shown * 10**places))).zfill(places)[-places:]
    for length in range(1, places // 2 + 1):
        times = 3 if length == 1 else 2
        block = digits[-length:]
        if digits.endswith(block * times):
            period = Fraction(int(block), (10**length - 1) * 10**places)
            return num(shown + (period if shown >= 0 else -period))
    raise MathError("a decimal that goes on unknown")


_OF_LETTERS = re.compile(r"([nmN])([+-]\d{1,3})?")


def selections(name: Node, exponent: Node) -> Node | None:
    """``C_{10}^{3}`` and ``A_{5}^{2}``: combinations and arrangements; None for a power of a symbol."""
    letter, _, below = name_of(name).partition("_")
    above = rational(exponent)
    symbolic = _OF_LETTERS.fullmatch(below) if letter in ("C", "A") else None
    if symbolic:
        total = Node("sym", (), symbolic[1])
        chosen = call("binom", add(total, num(int(symbolic[2]))) if symbolic[2] else total, exponent)
        return chosen if letter == "C" else mul(chosen, call("factorial", exponent))
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


def differential(body: Node) -> tuple[Node, str]:
    """The integrand and its variable: ``x^2`` and ``x`` of ``x^2 dx``; "" where no ``dx`` is found."""
    if body.kind == "add":
        parts = [differential(a) for a in body.args]
        names = {name for _, name in parts if name}
        if len(names) != 1 or not parts[-1][1]:
            return body, ""
        return add(*(part for part, _ in parts)), names.pop()
    if body.kind == "call" and body.value == "int":  # of several integrals the inner one takes the first
        inside, inner = differential(body.args[0])
        inside, name = differential(inside) if inner else (inside, "")
        first = mul(inside, Node("sym", (), "d"), Node("sym", (), inner))
        return (call("int", first, *body.args[1:]), name) if name else (body, "")
    factors = _factors(body)
    for i in range(len(factors) - 1):
        if factors[i] == Node("sym", (), "d") and factors[i + 1].kind == "sym":
            rest = (*factors[:i], *factors[i + 2 :])
            return (rest[0] if len(rest) == 1 else Node("mul", rest) if rest else ONE), name_of(factors[i + 1])
    return body, ""


def _factors(node: Node) -> tuple[Node, ...]:
    return tuple(f for a in node.args for f in _factors(a)) if node.kind == "mul" else (node,)

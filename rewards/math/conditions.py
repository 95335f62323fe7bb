"""Conditions that stand beside a formula on one side only: do they say more than the formula does?"""

from __future__ import annotations

from fractions import Fraction

from rlreason.rewards.math.relations import assignment
from rlreason.rewards.math.sets import holds_at
from rlreason.rewards.math.tree import Node, symbols
from rlreason.rewards.math.values import evaluator, value_or_none

_NUMBERS = tuple(Fraction(n, 8) for n in range(-83, 84, 5))
#: Letters that count: "n >= 1" says no more than that.
_COUNTING = frozenset("nkmijN")


def implied(condition: Node, formula: Node) -> bool:
    """Does the formula have no real value where ``condition`` fails? ``x > 0`` beside ``\\ln x``, not beside ``2x``.

    ``x \\ne 1`` excludes single points and is not held against an answer that leaves it out."""
    if condition.value == ("!=",):
        return True
    names = symbols(condition)
    if len(names) != 1:
        return False
    name = next(iter(names))
    if name in _COUNTING:
        return bool(holds_at(condition, 1, name) and holds_at(condition, 2, name))
    ev = evaluator()
    for number in _NUMBERS:
        x = ev.mp.mpf(number.numerator) / number.denominator
        if not holds_at(condition, x, name) and _real(_value(formula), name, x):
            return False
    return True


def _value(formula: Node) -> Node:
    named = assignment(formula) if formula.kind == "relation" else None
    return named[1] if named else formula


def _real(formula: Node, name: str, x: object) -> bool:
    ev = evaluator()
    value = value_or_none(ev, formula, {name: x} | {other: ev.mp.mpf("0.77") for other in symbols(formula) - {name}})
    return value is not None and not ev.unreal

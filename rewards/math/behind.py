"""Words behind a value in a formula: units, labels, and what they declare of a letter."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rlreason.rewards.math.labels import labelled
from rlreason.rewards.math.tree import MathError, Node, add, mul, name_of, num, walk
from rlreason.rewards.math.units import unit_size

if TYPE_CHECKING:
    from rlreason.rewards.math.parse import _Parser

_NUMBER_SETS = {
    "integer": "Z", "positive integer": "Z^+", "natural number": "N", "real number": "R", "real": "R", "整数": "Z",
    "正整数": "Z^+",
}  # fmt: skip
_DECLARED = re.compile(rf"(?:is |are |being |为|是)?\s*(?:an? |any |some )?({'|'.join(_NUMBER_SETS)})s?")
_TEMPERATURES = frozenset({"C", "F", "Celsius", "Fahrenheit", "celsius", "fahrenheit"})


def with_words(left: Node, words: str) -> Node:
    """``25^\\circ C`` as a temperature, ``\\$5 per hour`` as one unit, other words as ``labels`` reads them."""
    if left.kind == "degree" and words.strip().rstrip(".") in _TEMPERATURES:
        return Node("unit", left.args, "°" + words.strip()[0])
    if left.kind == "unit":
        left, words = left.args[0], f"{left.value} {words}"
    declared = _DECLARED.fullmatch(words.strip(" .,").lower()) if left.kind == "sym" else None
    if declared:
        return Node("relation", (left, Node("numbers", (), _NUMBER_SETS[declared[1]])), ("in",))
    counted = any(n.kind in ("num", "decimal", "literal") for n in walk(left))
    if not counted and unit_size(words) is None and words not in ("squared", "cubed"):
        raise MathError("words after a formula")
    return labelled(left, words)


def more_units(parser: _Parser, first: Node) -> Node:
    """``5 feet 6 inches`` and ``3 hours and 30 minutes``, in the last unit."""
    ahead = parser.next.kind == "num" or (parser.next.text == "and" and parser.tokens[parser.at + 1].kind == "num")
    size = unit_size(name_of(first))
    start = parser.at
    if not ahead or size is None or first.kind != "unit":
        return first
    if parser.next.text == "and":
        parser.take()
    second = parser.operand()
    finer = unit_size(name_of(second)) if second.kind == "unit" else None
    if finer is None or finer[0] != size[0] or finer[1] >= size[1]:
        parser.at = start
        return first
    return Node("unit", (add(mul(first.args[0], num(size[1] / finer[1])), second.args[0]),), second.value)

"""Which results of a program may be looked at in the trusted process: a short text can stand for a value of any size.

A range of a billion numbers, a fraction with a hundred million digits, keys that fall into one hash bucket: what would
cost more than a moment or a few megabytes counts as no result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlreason.rewards.jail.data import Tree

_DECIMAL = re.compile(r"[-+]?(?:\d{1,1000}(?:\.\d{0,1000})?(?:E[-+]?\d{1,3})?|Infinity|NaN)")


@dataclass(slots=True)
class _Budget:
    """What is left for all values of one result."""

    nodes: int = 1_000_000
    #: Numbers that a range stands for.
    range_items: int = 100_000
    #: Keys of sets and dicts, which can be chosen to fall into one hash bucket: n of them cost n * n in one table.
    table_items: int = 20_000
    largest_table: int = 2_000
    #: Of integers that cross as hexadecimal text.
    digits: int = 100_000
    #: Of fractions, whose sum has as many digits as all of them.
    fraction_digits: int = 10_000


def affordable(tree: Tree) -> bool:
    """Whether the value of ``tree`` (see ``jail.data``), and what an assert makes of it, stays small."""
    budget = _Budget()
    waiting: list[Tree] = [tree]
    while waiting:
        one = waiting.pop()
        if type(one) is not list:
            continue
        budget.nodes -= len(one)
        if not one or budget.nodes < 0 or not _fits(one, budget):
            return False
        waiting += one
    return True


def _fits(one: list[Tree], budget: _Budget) -> bool:
    tag = one[0]
    if tag in ("v", "a"):  # a dict's view, an array of numpy
        return False
    if tag in ("s", "f", "d", "O", "C"):
        budget.table_items -= len(one)
        return len(one) <= budget.largest_table and budget.table_items >= 0
    if tag == "r":
        parts = [_integer(part) for part in one[1:]]
        if len(parts) != 3 or None in parts or not parts[2]:
            return False
        start, stop, step = (part for part in parts if part is not None)
        budget.range_items -= max(0, (stop - start) // step)
        return budget.range_items >= 0
    if tag == "i":
        budget.digits -= len(str(one[1:]))
        return budget.digits >= 0
    if tag == "F":
        if len(one) != 3 or not all(_is_integer(part) for part in one[1:]):
            return False
        budget.fraction_digits -= len(repr(one[1:]))
        return budget.fraction_digits >= 0
    return tag != "D" or (len(one) == 2 and type(one[1]) is str and _DECIMAL.fullmatch(one[1]) is not None)


def _is_integer(tree: Tree) -> bool:
    """An integer, plain or as hexadecimal text."""
    return type(tree) is int or (type(tree) is list and len(tree) == 2 and tree[0] == "i" and type(tree[1]) is str)


def _integer(tree: Tree) -> int | None:
    """A plain integer: what a range that anybody counts through is made of."""
    return tree if isinstance(tree, int) and type(tree) is int else None

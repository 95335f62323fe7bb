"""Are two answers equal? Dispatch over kinds of answer; expressions go to ``values``, sets to ``sets``.

``equal`` is symmetric. It returns None where it can't tell (the caller may ask sympy).
"""

from __future__ import annotations

import re
from fractions import Fraction

from rlreason.rewards.math import sets as math_sets
from rlreason.rewards.math.evaluate import Undecided
from rlreason.rewards.math.lists import distinct, in_order, match
from rlreason.rewards.math.read import alternatives, with_alternatives
from rlreason.rewards.math.relations import assignment, relation_value, relations_equal, same_name
from rlreason.rewards.math.tree import MathError, Node, canonical, group, mul, name_of, num, rational, symbols
from rlreason.rewards.math.values import Options, values_equal
from rlreason.rewards.math.words import number_from_words, unit_size, word_set

_UNORDERED = frozenset({"", "and", "or", "{}"})
_BARE = frozenset({"", "and", "or"})
_NOT_A_UNIT = word_set("not no never wrong incorrect false isn't except unknown or less more least most")
_MAX_ITEMS = 400


def equal(a: Node, b: Node, options: Options) -> bool | None:
    """Do the two trees state the same answer?"""
    if canonical(a) == canonical(b):
        return not _undefined(a)
    if a.kind == b.kind == "call" and a.value == b.value == "pmod":
        return in_order(a.args, b.args, options, equal)
    if a.kind == b.kind == "call" and a.value == b.value == "cases":
        return match(list(a.args), list(b.args), options, equal)
    for side, other in ((a, b), (b, a)):
        if side.kind == "call" and side.value == "pmod" and other.kind in ("num", "decimal"):
            return equal(side.args[0], other, options)
    try:
        a, b = with_alternatives(a), with_alternatives(b)
    except MathError:
        return False
    for kinds, compare in _DISPATCH:
        if a.kind in kinds or b.kind in kinds:
            return compare(a, b, options)
    if math_sets.is_set(a) or math_sets.is_set(b):
        return _sets(a, b, options)
    return values_equal(a, b, options)


def _undefined(node: Node) -> bool:
    """``0/0`` equals nothing, itself included."""
    from rlreason.rewards.math.evaluate import Undefined, exact

    try:
        exact(node)
    except Undefined:
        return True
    return False


def _texts(a: Node, b: Node, options: Options) -> bool | None:
    if a.kind == b.kind == "text":
        return name_of(a) == name_of(b)
    text, other = (a, b) if a.kind == "text" else (b, a)
    number = number_from_words(name_of(text))
    return number is not None and equal(num(number), other, options)


def _units(a: Node, b: Node, options: Options) -> bool | None:
    """A unit on one side only is a label (unless ``options.units``); on both sides they must convert."""
    unit_a = name_of(a) if a.kind == "unit" else None
    unit_b = name_of(b) if b.kind == "unit" else None
    left, right = (a.args[0] if unit_a is not None else a), (b.args[0] if unit_b is not None else b)
    if any(u and set(u.lower().split()) & _NOT_A_UNIT for u in (unit_a, unit_b)):
        return unit_a == unit_b and equal(left, right, options)
    if unit_a is None or unit_b is None:
        bare = right if unit_b is None else left
        if bare.kind in ("percent", "degree"):
            return False
        known = unit_size(unit_a or unit_b or "")
        if options.units and known is not None:
            return False
        if left.kind == right.kind == "ratio" and equal(left, right, options):
            return True
        if left.kind == "ratio" or right.kind == "ratio":
            left, right = _with_clock(left, unit_a), _with_clock(right, unit_b)
            if left.kind != right.kind:
                return False
        return equal(left, right, options)
    if left.kind == right.kind == "ratio":
        return equal(_with_clock(left, unit_a), _with_clock(right, unit_b), options)
    size_a, size_b = unit_size(unit_a), unit_size(unit_b)
    if size_a is None or size_b is None:
        return equal(left, right, options)
    if size_a[0] != size_b[0]:
        return False
    if size_a[1] == size_b[1]:
        return equal(left, right, options)
    return equal(mul(left, num(size_a[1])), mul(right, num(size_b[1])), options)


def _with_clock(node: Node, unit: str | None) -> Node:
    """``8:34 P.M.`` on the 24-hour clock."""
    mark = re.sub(r"[^apm]", "", (unit or "").lower())
    hour = rational(node.args[0]) if node.kind == "ratio" else None
    if hour is None or mark not in ("am", "pm") or not 1 <= hour <= 12:
        return node
    return Node("ratio", (num(hour % 12 + (12 if mark == "pm" else 0)), *node.args[1:]))


def _percents(a: Node, b: Node, options: Options) -> bool | None:
    if a.kind == b.kind:
        return equal(a.args[0], b.args[0], options)
    percent, other = (a, b) if a.kind == "percent" else (b, a)
    shown, value = rational(percent.args[0]), rational(other)
    if options.percent_as_unit and value is not None and shown == value and abs(value) >= 1:
        return True
    if other.kind in ("group", "relation", "ratio", "matrix", "text"):
        return _DISPATCH_BY_KIND[other.kind](a, b, options)
    return values_equal(a, b, options)


def _ratios(a: Node, b: Node, options: Options) -> bool | None:
    """Times of day as times; other ratios in proportion; ``3:4`` is also the number 3/4."""
    if a.kind != b.kind:
        ratio, other = (a, b) if a.kind == "ratio" else (b, a)
        if other.kind in ("group", "relation", "matrix", "text", "percent") or len(ratio.args) != 2 or _clock(ratio):
            return False
        value = rational(other)
        if value is not None and value.denominator == 1:
            return False  # 18:9 is not how to write 2
        return values_equal(mul(ratio.args[0], Node("pow", (ratio.args[1], num(-1)))), other, options)
    if _clock(a) and _clock(b):
        return _clock(a) == _clock(b)
    if len(a.args) != len(b.args):
        return False
    first = a.args[0], b.args[0]
    checks = [
        values_equal(mul(x, first[1]), mul(y, first[0]), options) for x, y in zip(a.args[1:], b.args[1:], strict=True)
    ]
    return None if None in checks else all(checks)


def _clock(ratio: Node) -> tuple[Fraction, ...]:
    """(hours, minutes, seconds) where the ratio may be a time of day: ``20:34``, ``9:05``; else ()."""
    parts = [rational(x) for x in ratio.args]
    if len(parts) not in (2, 3) or any(p is None or p.denominator != 1 or p < 0 for p in parts):
        return ()
    hours, minutes, *rest = [p for p in parts if p is not None]
    seconds = rest[0] if rest else Fraction(0)
    if hours > 24 or minutes > 59 or seconds > 59 or 0 < minutes < 10 or 0 < seconds < 10:
        return ()
    return hours, minutes, seconds


def _relations(a: Node, b: Node, options: Options) -> bool | None:
    if a.kind == b.kind == "relation":
        return relations_equal(a, b, options, equal)
    relation, other = (a, b) if a.kind == "relation" else (b, a)
    if other.kind == "group" and other.value in _BARE and any(i.kind == "relation" for i in other.args):
        if math_sets.is_set(other) and math_sets.is_set(relation):
            return math_sets.sets_equal(relation, other)
        return _groups(group("", (relation,)), other, options) if other.args else False
    value = relation_value(relation, options, equal)
    if value is not None:
        if relation.value == ("in",) and other.kind == "group" and other.value in _BARE and value.value != "{}":
            return False
        return equal(value, other, options)
    if math_sets.is_set(relation) and (math_sets.is_set(other) or math_sets.is_interval(other)):
        return math_sets.sets_equal(relation, other)
    return False


def _groups(a: Node, b: Node, options: Options) -> bool | None:
    if math_sets.is_set(a) or math_sets.is_set(b):
        return _sets(a, b, options)
    (a, limits_a), (b, limits_b) = _without_conditions(a), _without_conditions(b)
    if limits_a or limits_b:
        if limits_a and limits_b and not equal(group("and", limits_a), group("and", limits_b), options):
            return False
        return equal(a, b, options)
    a, b = _named_list(a), _named_list(b)
    named_a, named_b = _mapping(a), _mapping(b)
    if named_a and named_b:
        return _same_mappings(named_a, named_b, options)
    if (named_a or named_b) and not all(x.kind == "relation" for side in (a, b) for x in side.args):
        named, other = (named_a, b) if named_a else (named_b, a)
        return _named_and_plain(named, other, options)
    if a.kind != "group" or b.kind != "group":
        return _group_and_other(a, b, options)
    if len(a.args) > _MAX_ITEMS or len(b.args) > _MAX_ITEMS:
        return False
    both = {a.value, b.value}
    if both <= _UNORDERED:
        if options.ordered and both <= _BARE:
            return in_order(a.args, b.args, options, equal)
        return _as_multisets(a, b, options)
    if both & {"{}"}:
        return False
    if a.value != b.value and not _interchangeable(a, b):
        return False
    return in_order(a.args, b.args, options, equal)


def _without_conditions(node: Node) -> tuple[Node, tuple[Node, ...]]:
    """``y = 1/x, x \\ne 0``: what is stated, and the conditions on its symbols."""
    if node.kind != "group" or node.value not in ("", "and"):
        return node, ()
    conditions = tuple(a for a in node.args if a.kind == "relation" and math_sets.is_set(a))
    rest = tuple(a for a in node.args if a not in conditions)
    if not rest or not conditions:
        return node, ()
    values = [named[1] if (named := assignment(a)) else a for a in rest]
    known = frozenset[str]().union(*(symbols(v) for v in values))
    if not all(symbols(c) and symbols(c) <= known for c in conditions):
        return node, ()
    return (rest[0] if len(rest) == 1 else group(name_of(node), rest)), conditions


def _interchangeable(a: Node, b: Node) -> bool:
    """A bare list against a tuple, in order; ``[..]`` is a list only with three items or more (two: an interval)."""
    brackets = {name_of(a), name_of(b)}
    if brackets <= _BARE | {"()"}:
        return True
    return brackets <= _BARE | {"()", "[]"} and len(a.args) > 2


def _group_and_other(a: Node, b: Node, options: Options) -> bool | None:
    grouped, other = (a, b) if a.kind == "group" else (b, a)
    if grouped.kind != "group":
        return equal(a, b, options)
    if other.kind == "matrix" and isinstance(other.value, tuple) and 1 in other.value:
        return grouped.value in ("()", "[]", "") and in_order(grouped.args, other.args, options, equal)
    if other.kind in ("matrix", "ratio"):
        return False
    return grouped.value == "{}" and len(grouped.args) == 1 and equal(grouped.args[0], other, options)


def _named_list(node: Node) -> Node:
    """``n = 1, 2, 3`` and ``(x,y) = (5,8), (8,5)``: the name in front belongs to all."""
    if node.kind != "group" or node.value not in _BARE | {"{}"} or len(node.args) < 2:
        return node
    first, *rest = node.args
    named = assignment(first)
    if named is not None and all(r.kind != "relation" for r in rest):
        return group(str(node.value), (named[1], *rest))
    return node


def _mapping(node: Node) -> list[tuple[Node, Node]]:
    """Names and values of a list of assignments (nested lists flattened); [] if it is anything else."""
    if node.kind == "relation":
        named = assignment(node)
        if named is not None and named[0].kind == named[1].kind == "group" and len(named[0].args) == len(named[1].args):
            return list(zip(named[0].args, named[1].args, strict=True))  # (a, b) = (1, 2)
        return [named] if named else []
    if node.kind != "group" or node.value not in _BARE | {"()", "{}"}:
        return []
    pairs: list[tuple[Node, Node]] = []
    for arg in node.args:
        inner = _mapping(arg) if arg.kind in ("group", "relation") else []
        if not inner:
            return []
        pairs.extend(inner)
    return pairs


def _same_mappings(a: list[tuple[Node, Node]], b: list[tuple[Node, Node]], options: Options) -> bool | None:
    if len(a) != len(b):
        return False
    rows_a, rows_b = _rows(a), _rows(b)
    if rows_a and rows_b and [canonical(n) for n, _ in rows_a[0]] == [canonical(n) for n, _ in rows_b[0]]:
        left, right = ([group("()", tuple(v for _, v in row)) for row in rows] for rows in (rows_a, rows_b))
        return _as_multisets(group("", tuple(left)), group("", tuple(right)), options)
    if len({name_of(name).partition("_")[0] for name, _ in (*a, *b)}) == 1 and name_of(a[0][0]):
        return match([v for _, v in a], [v for _, v in b], options, equal)  # x_1 = 1, x_2 = 2 and x = 1, x = 2
    left = [group("()", (name, value)) for name, value in a]
    right = [group("()", (name, value)) for name, value in b]
    if all(same_name(x[0], y[0]) for x, y in zip(a, b, strict=True)):
        return in_order([v for _, v in a], [v for _, v in b], options, equal) or match(left, right, options, equal)
    return match(left, right, options, equal)


def _rows(pairs: list[tuple[Node, Node]]) -> list[list[tuple[Node, Node]]]:
    """``p=5, q=2, p=7, q=2`` -> two rows of p and q, each in the order of the names; [] if names do not repeat."""
    names = [canonical(n) for n, _ in pairs]
    width = next((i for i in range(1, len(names)) if names[i] == names[0]), 0)
    if not width or len(names) % width or any(names[i] != names[i % width] for i in range(len(names))):
        return []
    return [sorted(pairs[i : i + width], key=lambda p: str(p[0].value)) for i in range(0, len(pairs), width)]


def _named_and_plain(named: list[tuple[Node, Node]], other: Node, options: Options) -> bool | None:
    """Names on one side only: values in the order given, or in the order of the names."""
    values = [v for _, v in named]
    if len(named) == 1:
        return equal(values[0], other, options)
    if other.kind != "group":
        return False
    width = len(_rows(named)[0]) if _rows(named) else 0
    if width == 1 or len({name_of(n).partition("_")[0] for n, _ in named}) == 1:
        return equal(group("", tuple(values)), other, options)  # roots x_1, x_2 or x = 1, x = 2
    if width:
        chunks = [group("()", tuple(values[i : i + width])) for i in range(0, len(values), width)]
        return equal(group("", tuple(chunks)), other, options)
    if other.value not in _BARE | {"()", "[]"} or len(other.args) != len(values):
        return False
    by_name = [v for _, v in sorted(named, key=lambda p: str(p[0].value))]
    return in_order(values, other.args, options, equal) or in_order(by_name, other.args, options, equal)


def _as_multisets(a: Node, b: Node, options: Options) -> bool | None:
    left, right = list(a.args), list(b.args)
    tuples = all(x.kind == "group" for x in (*left, *right))
    if a.value == "{}" or b.value == "{}" or tuples:
        left, right = distinct(left), distinct(right)
    return match(left, right, options, equal)


def _matrices(a: Node, b: Node, options: Options) -> bool | None:
    if a.kind == b.kind:
        return a.value == b.value and in_order(a.args, b.args, options, equal)
    matrix, other = (a, b) if a.kind == "matrix" else (b, a)
    if other.kind == "group":
        return _group_and_other(a, b, options)
    return matrix.value == (1, 1) and equal(matrix.args[0], other, options)


def _sets(a: Node, b: Node, options: Options) -> bool | None:
    for x, y in ((a, b), (b, a)):
        if x.kind in ("union", "inter", "minus", "builder", "numbers") and y.kind in ("unit", "text", "ratio"):
            return False
    if a.kind == b.kind == "builder" and in_order(a.args, b.args, options, equal):
        return True
    try:
        return math_sets.sets_equal(a, b)
    except Undecided:
        return False


def _degrees(a: Node, b: Node, options: Options) -> bool | None:
    if a.kind == b.kind:
        return equal(a.args[0], b.args[0], options)
    return values_equal(a, b, options)


def _lists_of_values(node: Node) -> list[Node]:
    return list(node.args) if node.kind == "group" else alternatives(node)


_DISPATCH = (
    (frozenset({"unit"}), _units),
    (frozenset({"text"}), _texts),
    (frozenset({"relation"}), _relations),
    (frozenset({"group"}), _groups),
    (frozenset({"matrix"}), _matrices),
    (frozenset({"ratio"}), _ratios),
    (frozenset({"percent"}), _percents),
    (frozenset({"degree"}), _degrees),
)
_DISPATCH_BY_KIND = {kind: compare for kinds, compare in _DISPATCH for kind in kinds}

"""Are two answers equal? Dispatch over kinds of answer; expressions go to ``values``, sets to ``sets``.

``equal`` is symmetric. It returns None where it can't tell (the caller may ask sympy).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from rlreason.rewards.math import sets as math_sets
from rlreason.rewards.math.conditions import implied
from rlreason.rewards.math.evaluate import Undecided
from rlreason.rewards.math.lists import distinct, in_order, match
from rlreason.rewards.math.quantities import degrees_equal, names_equal, percents_equal, ratios_equal, units_equal
from rlreason.rewards.math.read import plain_words, with_alternatives
from rlreason.rewards.math.relations import assignment, relation_value, relations_equal, same_name
from rlreason.rewards.math.tree import MathError, Node, canonical, group, name_of, num, symbols
from rlreason.rewards.math.values import Options, values_equal
from rlreason.rewards.math.words import number_from_words

_UNORDERED = frozenset({"", "and", "or", "{}"})
_BARE = frozenset({"", "and", "or"})
_MAX_ITEMS = 400
_Compare = Callable[[Node, Node, Options], bool | None]


def equal(a: Node, b: Node, options: Options) -> bool | None:
    """Do the two trees state the same answer?"""
    if a == b or canonical(a) == canonical(b):
        return not _undefined(a)
    if a.kind == b.kind == "call" and a.value == b.value and a.value in ("pmod", "remainder"):
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
        return name_of(a) == name_of(b) or (" and " in name_of(a) and _listed(a) == _listed(b))
    text, other = (a, b) if a.kind == "text" else (b, a)
    if other.kind == "group" and other.value in _BARE and all(x.kind == "text" for x in other.args):
        return _listed(text) == sorted(plain_words(name_of(x)) for x in other.args)
    number = number_from_words(name_of(text))
    return number is not None and equal(num(number), other, options)


def _percents(a: Node, b: Node, options: Options) -> bool | None:
    other = b if a.kind == "percent" else a
    if other.kind in ("group", "relation", "ratio", "matrix", "text"):
        return _DISPATCH_BY_KIND[other.kind](a, b, options)
    return percents_equal(a, b, options, equal)


def _listed(text: Node) -> list[str]:
    """The parts of ``red, green and blue``."""
    return sorted(plain_words(part) for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", name_of(text)) if part)


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
    if _holds_sets(a) or _holds_sets(b):
        same_kind = _holds_sets(a) and _holds_sets(b)
        return same_kind and match(distinct(list(a.args)), distinct(list(b.args)), options, equal)
    if math_sets.is_set(a) or math_sets.is_set(b):
        return _sets(a, b, options)
    (a, limits_a), (b, limits_b) = _without_conditions(a), _without_conditions(b)
    if limits_a or limits_b:
        return _same_limits(a, b, limits_a, limits_b, options) and equal(a, b, options)
    a, b = _named_list(a), _named_list(b)
    named_a, named_b = _mapping(a), _mapping(b)
    if named_a and named_b:
        return _same_mappings(named_a, named_b, options)
    if (named_a or named_b) and not all(x.kind == "relation" for side in (a, b) for x in side.args):
        named, other = (named_a, b) if named_a else (named_b, a)
        return _named_and_plain(named, other, options)
    if a.kind != "group" or b.kind != "group":
        return _group_and_other(a, b, options)
    return _lists(a, b, options)


def _lists(a: Node, b: Node, options: Options) -> bool | None:
    """Two groups: bare lists and sets as multisets, tuples and intervals in order."""
    if len(a.args) > _MAX_ITEMS or len(b.args) > _MAX_ITEMS:
        return False
    both = {a.value, b.value}
    if both <= _UNORDERED:
        if options.ordered and both <= _BARE:
            return in_order(a.args, b.args, options, equal)
        return _as_multisets(a, b, options)
    if both & {"{}"}:
        one, other = (a, b) if a.value == "{}" else (b, a)
        return len(one.args) == 1 and one.args[0].kind == "group" and equal(one.args[0], other, options)
    if a.value != b.value and not _interchangeable(a, b):
        return False
    return in_order(a.args, b.args, options, equal)


def _same_limits(a: Node, b: Node, limits_a: tuple[Node, ...], limits_b: tuple[Node, ...], options: Options) -> bool:
    """Do the conditions beside two formulas agree, or may the side that has none leave them out?"""
    if limits_a and limits_b:
        return bool(equal(group("and", limits_a), group("and", limits_b), options))
    return _may_leave_out(b, limits_a, a) if limits_a else _may_leave_out(a, limits_b, b)


def _may_leave_out(node: Node, limits: tuple[Node, ...], stated: Node) -> bool:
    """Need ``node`` not repeat the conditions beside ``stated``? A bare expression need not; an equation must, unless
    they say no more than the equation does."""
    inner = node.args[0] if node.kind == "group" and node.value == "" and len(node.args) == 1 else node
    return inner.kind != "relation" or all(implied(limit, stated) for limit in limits)


def _holds_sets(node: Node) -> bool:
    """A set of sets, ``\\{\\varnothing\\}`` or ``\\{\\{1\\}\\}``: not the set that is in it."""
    return node.kind == "group" and node.value == "{}" and any(x.kind == "empty" or x.value == "{}" for x in node.args)


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
    if other.value in _BARE and all(x.kind == "group" for x in (*values, *other.args)):
        return match(values, list(other.args), options, equal)  # points: A(1,2), B(3,4)
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


_DISPATCH: tuple[tuple[frozenset[str], _Compare], ...] = (
    (frozenset({"named"}), lambda a, b, options: names_equal(a, b, options, equal)),
    (frozenset({"unit"}), lambda a, b, options: units_equal(a, b, options, equal)),
    (frozenset({"text"}), _texts),
    (frozenset({"relation"}), _relations),
    (frozenset({"group"}), _groups),
    (frozenset({"matrix"}), _matrices),
    (frozenset({"ratio"}), ratios_equal),
    (frozenset({"percent"}), _percents),
    (frozenset({"degree"}), lambda a, b, options: degrees_equal(a, b, options, equal)),
)
_DISPATCH_BY_KIND = {kind: compare for kinds, compare in _DISPATCH for kind in kinds}

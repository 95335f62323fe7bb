"""Sets of real numbers: intervals, unions, inequalities in one variable, finite sets. Compared by membership.

Both sides are asked about every number where either can change (bounds and constants in it), and about numbers
between and beyond them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rlreason.rewards.math.evaluate import Evaluator, Undecided
from rlreason.rewards.math.tree import INFINITY, MINUS_INFINITY, Node, canonical, name_of, symbols, walk
from rlreason.rewards.math.values import evaluator, same, value_or_none

_INEQUALITIES = frozenset({"<", ">", "<=", ">=", "!="})
_SET_KINDS = frozenset({"union", "inter", "minus", "builder", "numbers", "empty"})
_MAX_BREAKS = 60
_PROBES = ("-1000.37", "-7.31", "-1.13", "-0.0041", "0", "0.0059", "0.37", "1.73", "2.91", "11.7", "1000.41")


def is_interval(node: Node) -> bool:
    """Two bounds in brackets: ``(1,2)`` may also be a point, the other side tells."""
    return node.kind == "group" and len(node.args) == 2 and node.value in ("()", "[]", "(]", "[)")


def is_set(node: Node) -> bool:
    """Can this only be read as a set of numbers or a condition on one number?"""
    if node.kind in _SET_KINDS:
        return True
    if node.kind == "relation":
        found = node.value
        assert isinstance(found, tuple)
        return found == ("in",) or (set(found) <= _INEQUALITIES and bool(symbols(node)))
    if node.kind != "group":
        return False
    if node.value in ("(]", "[)") and len(node.args) == 2:
        return True
    return node.value in ("", "and", "or") and bool(node.args) and all(is_set(a) for a in node.args)


def sets_equal(a: Node, b: Node) -> bool | None:
    """Do they hold the same real numbers?"""
    if canonical(a) == canonical(b):
        return True
    for listed, other in ((a, b), (b, a)):
        if listed.kind == "group" and listed.value == "" and is_set(listed):
            # "x >= 2, x != 3" narrows, "x < 1, x > 3" lists: the comma does not say.
            both = (Node("group", listed.args, word) for word in ("and", "or"))
            return any(sets_equal(reading, other) for reading in both)
    if is_interval(a) and is_interval(b):
        return _bounds_equal(a, b)
    if a.kind == b.kind == "numbers":
        return False
    try:
        variable = _variable(a, b)
        ev = evaluator()
        probes = _probes(ev, [*_breaks(ev, a), *_breaks(ev, b)])
        seen = set()
        for x in probes:
            inside = _holds(ev, a, x, variable)
            if inside != _holds(ev, b, x, variable):
                return False
            seen.add(inside)
        if len(seen) == 2:
            return True
        # Agreement on nothing or on everything is no evidence, unless one side says just that.
        return any(_is_whole(side) if True in seen else side.kind == "empty" for side in (a, b))
    except Undecided:
        return False


def _is_whole(node: Node) -> bool:
    """All real numbers, said outright."""
    if node.kind == "relation" and node.value == ("in",):
        return _is_whole(node.args[1])
    return node.kind == "numbers" or (is_interval(node) and node.args == (MINUS_INFINITY, INFINITY))


def _bounds_equal(a: Node, b: Node) -> bool | None:
    from rlreason.rewards.math.compare import equal
    from rlreason.rewards.math.values import Options

    if a.value != b.value:
        return False
    results = [equal(x, y, Options()) for x, y in zip(a.args, b.args, strict=True)]
    return False if False in results else None if None in results else True


def _variable(a: Node, b: Node) -> str:
    """Name of the one variable; "" where there is none. Undecided where the sides speak of different ones."""
    found = [_subject(side) for side in (a, b)]
    names = [name for name in found if name]
    if len(names) == 2 and names[0] != names[1]:
        raise Undecided("different variables")
    free = set(names)
    for side in (a, b):
        if symbols(side) - free and not _is_function_bound(side):
            raise Undecided("a free symbol")
    return names[0] if names else ""


def _subject(node: Node) -> str:
    """The variable that a condition is about; "" for plain sets, and for the bound variable of ``{x | …}``."""
    if node.kind == "builder":
        return ""
    if node.kind == "relation" and node.value == ("in",):
        return name_of(node.args[0])
    free = symbols(node)
    if len(free) == 1:
        return next(iter(free))
    return ""


def _is_function_bound(node: Node) -> bool:
    """``0 < f(x) < 1``, or a builder, whose variable is its own."""
    return (node.kind == "builder" and len(symbols(node)) == 1) or (node.kind == "relation" and len(node.args) == 3)


def _breaks(ev: Evaluator, node: Node) -> list[Any]:
    """Values of the constants in it: the bounds, where membership may change."""
    out: list[Any] = []
    stack = [node]
    while stack:
        top = stack.pop()
        if top.kind in ("group", "relation", "builder", "call", "add", *_SET_KINDS):
            stack.extend(top.args)
        if top.kind not in ("group", "relation", *_SET_KINDS) and not symbols(top):
            value = value_or_none(ev, top, {})
            if value is not None and not ev.mp.im(value):
                out.extend((ev.mp.re(value), -ev.mp.re(value)))
        if len(out) > _MAX_BREAKS:
            raise Undecided("too many bounds")
    return out


def _probes(ev: Evaluator, breaks: list[Any]) -> list[Any]:
    ordered: list[Any] = []
    for value in sorted(breaks):
        if not ordered or not same(ev, value, ordered[-1]):
            ordered.append(value)
    out = [ev.mp.mpf(p) for p in _PROBES] + ordered
    for left, right in pairwise(ordered):
        out.extend(
            left + (right - left) * share for share in (ev.mp.mpf("0.5"), ev.mp.mpf("0.013"), ev.mp.mpf("0.987"))
        )
    if ordered:
        out.extend((ordered[0] - 1, ordered[-1] + 1, ordered[0] * 17 - 5, ordered[-1] * 17 + 5))
    return out


def _holds(ev: Evaluator, node: Node, x: Any, variable: str) -> bool:
    """Is the number ``x`` in the set?"""
    kind = node.kind
    if kind == "empty":
        return False
    if kind == "numbers":
        return _in_numbers(ev, name_of(node), x)
    if kind in ("union", "inter", "minus"):
        left, right = (_holds(ev, a, x, variable) for a in node.args)
        return left or right if kind == "union" else left and right if kind == "inter" else left and not right
    if kind == "builder":
        name = name_of(node.args[0]) or _subject(node.args[0])
        inside = node.args[0].kind != "relation" or _holds(ev, node.args[0], x, _subject(node.args[0]))
        return inside and _holds(ev, node.args[1], x, name)
    if kind == "relation":
        return _relation_holds(ev, node, x, variable)
    if kind == "group":
        return _group_holds(ev, node, x, variable)
    value = value_or_none(ev, node, {})
    if value is None:
        raise Undecided("not a set")
    return same(ev, value, x)


def holds_at(condition: Node, x: Any, variable: str) -> bool:
    """Does a condition on ``variable`` hold where it is ``x``? False where that can't be told."""
    ev = evaluator()
    try:
        return _holds(ev, condition, ev.mp.mpf(x), variable)
    except Undecided:
        return False


def _in_numbers(ev: Evaluator, name: str, x: Any) -> bool:
    whole = x == ev.mp.nint(x)
    checks = {"R": True, "Z": whole, "N": whole and x > 0, "C": True, "R^+": x > 0, "Z^+": whole and x > 0}
    if name not in checks:
        raise Undecided("an unknown set")
    return bool(checks[name])


def _group_holds(ev: Evaluator, node: Node, x: Any, variable: str) -> bool:
    if is_interval(node):
        low, high = node.args
        if _upside_down(ev, low, high):
            raise Undecided("a point, not an interval")
        return _above(ev, x, low, closed=name_of(node)[0] == "[") and _below(
            ev, x, high, closed=name_of(node)[1] == "]"
        )
    if node.value == "{}" or node.value in ("", "or"):
        return any(_holds(ev, a, x, variable) for a in node.args)
    if node.value == "and":
        # "x > 1 and x < 3" narrows; "x = 1 and x = 3", "(1,2) and (3,4)" list solutions.
        inside = [_holds(ev, a, x, variable) for a in node.args]
        return all(inside) if all(a.kind == "relation" for a in node.args) else any(inside)
    raise Undecided("not a set")


def _upside_down(ev: Evaluator, low: Node, high: Node) -> bool:
    if symbols(low) or symbols(high):
        raise Undecided("a bound with a symbol")
    left, right = value_or_none(ev, low, {}), value_or_none(ev, high, {})
    return left is not None and right is not None and (_complex(left, ev) or _complex(right, ev) or left > right)


def _complex(x: Any, ev: Evaluator) -> bool:
    return bool(ev.mp.im(x))


def _above(ev: Evaluator, x: Any, bound: Node, *, closed: bool) -> bool:
    if canonical(bound) == canonical(MINUS_INFINITY):
        return True
    low = _bound(ev, bound)
    return closed if same(ev, x, low) else bool(x > low)


def _below(ev: Evaluator, x: Any, bound: Node, *, closed: bool) -> bool:
    if bound.kind == "const" and bound.value == "inf":
        return True
    high = _bound(ev, bound)
    return closed if same(ev, x, high) else bool(x < high)


def _bound(ev: Evaluator, node: Node) -> Any:
    value = ev.value(node, {})
    if ev.mp.im(value):
        raise Undecided("a bound that is not real")
    return ev.mp.re(value)


def _relation_holds(ev: Evaluator, node: Node, x: Any, variable: str) -> bool:
    found = node.value
    assert isinstance(found, tuple)
    if found == ("in",):
        return _holds(ev, node.args[1], x, "")
    if found == ("=",) or set(found) <= _INEQUALITIES:
        values = [_operand(ev, a, x, variable) for a in node.args]
        return all(_compare(ev, values[i], op, values[i + 1]) for i, op in enumerate(found))
    raise Undecided("not an inequality")


def _operand(ev: Evaluator, node: Node, x: Any, variable: str) -> Any:
    """Value of one side; an infinite bound as itself; ``f(x)`` in ``0 < f(x) < 1`` as the number asked about."""
    if node.kind == "const" and node.value == "inf":
        return ev.mp.inf
    if canonical(node) == canonical(MINUS_INFINITY):
        return -ev.mp.inf
    if node.kind == "call" and name_of(node).endswith("()"):
        return x
    if any(n.kind == "call" and name_of(n).endswith("()") for n in walk(node)):
        raise Undecided("an unknown function")
    value = value_or_none(ev, node, {variable: x} if variable else {})
    if value is None or ev.mp.im(value):
        return ev.mp.nan  # no comparison holds where a side has no real value
    return ev.mp.re(value)


def _compare(ev: Evaluator, left: Any, op: str, right: Any) -> bool:
    if ev.mp.isnan(left) or ev.mp.isnan(right):
        return False
    if ev.mp.isinf(left) or ev.mp.isinf(right):
        return op == "!=" or bool(left < right if op in ("<", "<=") else left > right)
    # Two sides meet at a bound only up to rounding: there the difference is tiny next to 1.
    meets = same(ev, left, right) if abs(left) > 1 else abs(left - right) < ev.mp.mpf(10) ** -25
    if op in ("=", "!="):
        return meets == (op == "=")
    if meets:
        return op in ("<=", ">=")
    return bool(left < right) if op in ("<", "<=") else bool(left > right)

"""Equations and inequalities: what is named, and when two of them say the same."""

from __future__ import annotations

from collections.abc import Callable

from rlreason.rewards.math import sets as math_sets
from rlreason.rewards.math.evaluate import PRIMES, NotRational, Undefined, modular
from rlreason.rewards.math.tree import Node, add, canonical, name_of, neg, rational, symbols, walk
from rlreason.rewards.math.values import Options, _draws, evaluator, points, same, value_or_none

Equal = Callable[[Node, Node, Options], bool | None]
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_NEEDED = 4


def operators(relation: Node) -> tuple[str, ...]:
    assert isinstance(relation.value, tuple)
    return relation.value


def is_name(node: Node) -> bool:
    """Can an equation ``node = value`` be said to give the value of ``node``? A symbol, ``f(x)``, ``|AB|``, ``A:B``,
    a segment ``AB``, a quotient of segments, a tuple of symbols, the cosine of an angle, ``m+n`` and ``ab`` of letters
    that are no coordinates; not an equation of a curve such as ``x+y``, and no power."""
    if node.kind == "sym":
        return True
    if node.kind == "call":
        name = name_of(node)
        if name.endswith("()"):
            return True
        if name in _NAMING:
            return all(is_name(a) or a.kind in ("empty", "relation") for a in node.args)
        return _is_angle_function(node)
    if node.kind == "mul":
        return _is_segment(node) or _is_quotient(node) or _is_change(node) or _of_parameters(node)
    if node.kind == "add":
        return _of_parameters(node)
    if node.kind in ("ratio", "degree"):
        return all(is_name(a) for a in node.args)
    if node.kind != "group":
        return False
    if node.value == "[]" and len(node.args) == 1:
        return _is_segment(node.args[0])  # the area [ABC]
    return node.value == "()" and len(node.args) > 1 and all(a.kind == "sym" for a in node.args)


_NAMING = frozenset({"abs", "bar", "det", "max", "min", "lim", "gcd", "lcm", "Re", "Im", "arg"})
_COORDINATES = frozenset({"x", "y", "z", "r", "t", "theta", "rho", "X", "Y", "Z"})


def _of_parameters(node: Node) -> bool:
    """``m + n``, ``a_1 + a_2``, ``ab``: each letter once, none of them a coordinate."""
    letters = [name_of(a) for a in node.args if a.kind == "sym"]
    if len(letters) != len(node.args) or len(set(letters)) != len(letters):
        return False
    return not any(letter in _COORDINATES for letter in letters)


def _is_change(node: Node) -> bool:
    """``\\Delta y``."""
    return len(node.args) == 2 and name_of(node.args[0]) in ("Delta", "delta") and node.args[1].kind == "sym"


def _is_segment(node: Node) -> bool:
    return node.kind == "sym" or (
        node.kind == "mul" and all(_is_segment(a) for a in node.args) and name_of_last(node)[:1].isupper()
    )


def name_of_last(node: Node) -> str:
    return name_of(node) if node.kind == "sym" else name_of_last(node.args[-1]) if node.args else ""


def _is_quotient(node: Node) -> bool:
    if len(node.args) != 2 or node.args[1].kind != "pow" or rational(node.args[1].args[1]) != -1:
        return False
    top, bottom = node.args[0], node.args[1].args[0]
    if _is_segment(top) and _is_segment(bottom):
        return name_of_last(top)[:1].isupper() or top.kind == "mul"
    letters = [n.value for n in (*walk(top), *walk(bottom)) if n.kind == "sym"]
    # dy/dx
    return len(letters) == 4 and letters.count("d") >= 2 and {top.kind, bottom.kind} == {"mul"}


def _is_angle_function(node: Node) -> bool:
    if node.value not in ("sin", "cos", "tan", "cot") or len(node.args) != 1:
        return False
    inner = node.args[0]
    return (inner.kind == "sym" and (name_of(inner)[:1].isupper() or len(name_of(inner)) > 1)) or (
        inner.kind == "mul" and _is_segment(inner)
    )


def same_name(a: Node, b: Node) -> bool:
    """One name, or a function of another variable: ``W(n)`` and ``W(x)``, but not ``P(A)`` and ``P(B)``."""
    if canonical(a) == canonical(b):
        return True
    if a.kind == b.kind == "call" and a.value == b.value:
        return len(a.args) == len(b.args) and all(x.kind == "sym" and name_of(x).islower() for x in (*a.args, *b.args))
    return False


def assignment(node: Node) -> tuple[Node, Node] | None:
    """(name, value) of ``x = 5`` or ``5 = x``; None for other relations and for chains."""
    if node.kind != "relation" or operators(node) != ("=",):
        return None
    left, right = node.args
    if left.kind == "add" and rational(right) == 0:
        return None  # a + b = 0 is an equation, and no sum that someone asked for
    if is_name(left) and not _refers(left, right):
        return left, right
    if is_name(right) and not is_name(left) and not _refers(right, left):
        return right, left
    return None


def _refers(name: Node, value: Node) -> bool:
    """``x = x^2`` gives no value of x."""
    return name.kind == "sym" and name_of(name) in symbols(value)


def relation_value(relation: Node, options: Options, equal: Equal) -> Node | None:
    """What the relation says its name is: 5 of ``x = 5``, of ``x = 2 + 3 = 5`` and of ``2 + 3 = 5``; the set of
    ``x \\in S``. None for equations, inequalities and false chains."""
    found = operators(relation)
    if found == ("in",):
        return relation.args[1]
    if set(found) != {"="}:
        return None
    named = assignment(relation)
    if named is not None:
        return named[1]
    operands = relation.args
    named_chain = len(operands) > 2 and len(symbols(operands[0])) > 1 and not any(symbols(o) for o in operands[1:])
    if (len(operands) > 2 and is_name(operands[0])) or named_chain or not symbols(relation):
        values = operands[1:] if is_name(operands[0]) or named_chain else operands
        if all(equal(values[0], v, options) for v in values[1:]):
            return values[-1]
    return None


def relations_equal(a: Node, b: Node, options: Options, equal: Equal) -> bool | None:
    """Do two relations say the same?"""
    named_a, named_b = assignment(a), assignment(b)
    if named_a and named_b:
        if same_name(named_a[0], named_b[0]) or _both_functions(named_a, named_b):
            if named_a[0].kind == named_b[0].kind:
                named_a, named_b = (named_a[0], _unnamed(named_a)), (named_b[0], _unnamed(named_b))
            return equal(named_a[1], named_b[1], options)
        if symbols(a) != symbols(b):
            return False
    elif _is_chain(a) or _is_chain(b):
        return _chains_equal(a, b, options, equal)
    if operators(a) == operators(b) == ("in",):
        return canonical(a.args[0]) == canonical(b.args[0]) and equal(a.args[1], b.args[1], options)
    if math_sets.is_set(a) and math_sets.is_set(b) and symbols(a) == symbols(b) and len(symbols(a)) == 1:
        return math_sets.sets_equal(a, b)
    if len(a.args) == len(b.args) == 2:
        return _proportional(a, b)
    for other in (b, _reversed(b)):
        if operators(a) == operators(other) and len(a.args) == len(other.args):
            return all(equal(x, y, options) for x, y in zip(a.args, other.args, strict=True))
    return False


def _both_functions(a: tuple[Node, Node], b: tuple[Node, Node]) -> bool:
    """``f(x) = 2x`` and ``y = 2x``: a function of the same variable, once by its name."""
    if not symbols(a[1]) or symbols(a[1]) != symbols(b[1]):
        return False
    return {a[0].kind, b[0].kind} == {"call", "sym"} and "y" in {name_of(a[0]), name_of(b[0])}


def _unnamed(named: tuple[Node, Node]) -> Node:
    """The value, with the argument of the function written as one fixed symbol: ``f(t) = t^2`` is ``f(x) = x^2``."""
    name, value = named
    if name.kind != "call" or not all(a.kind == "sym" for a in name.args):
        return value
    renamed = {name_of(a): Node("sym", (), f"argument {i}") for i, a in enumerate(name.args)}

    def rename(node: Node) -> Node:
        if node.kind == "sym":
            return renamed.get(name_of(node), node)
        return Node(node.kind, tuple(rename(a) for a in node.args), node.value) if node.args else node

    return rename(value)


def _is_chain(node: Node) -> bool:
    return len(node.args) > 2 and set(operators(node)) == {"="}


def _chains_equal(a: Node, b: Node, options: Options, equal: Equal) -> bool | None:
    value_a, value_b = relation_value(a, options, equal), relation_value(b, options, equal)
    if value_a is None or value_b is None:
        return False
    names = [node.args[0] for node in (a, b) if is_name(node.args[0])]
    if len(names) == 2 and not same_name(*names):
        return False
    return equal(value_a, value_b, options)


def _reversed(node: Node) -> Node:
    flipped = tuple(_FLIPPED.get(o, o) for o in reversed(operators(node)))
    return Node("relation", tuple(reversed(node.args)), flipped)


def _proportional(a: Node, b: Node) -> bool | None:
    """Is left minus right of one a constant multiple of the other's? The sign must agree for inequalities."""
    op_a, op_b = operators(a)[0], operators(b)[0]
    if op_a not in _FLIPPED or op_b not in _FLIPPED:
        return False
    free = symbols(a) | symbols(b)
    if symbols(a) != symbols(b):
        return False
    left, right = add(a.args[0], neg(a.args[1])), add(b.args[0], neg(b.args[1]))
    if op_a != op_b:
        if _FLIPPED[op_a] != op_b:
            return False
        right = neg(right)
    directed = op_a not in ("=", "!=")
    if not directed:
        try:
            return _proportional_modulo(left, right, free)
        except NotRational:
            pass
    return _proportional_at_points(left, right, free, directed)


def _proportional_modulo(left: Node, right: Node, free: frozenset[str]) -> bool:
    for i, prime in enumerate(PRIMES):
        ratios = set()
        for trial in range(3):
            point = {name: int(_draws(name, trial)[i]) for name in free}
            try:
                x, y = modular(left, point, prime), modular(right, point, prime)
            except Undefined:
                return False
            if x == 0 or y == 0:
                return False  # an identity says nothing that another could say too
            ratios.add(x * pow(y, -1, prime) % prime)
        if len(ratios) != 1:
            return False
    return True


def _proportional_at_points(left: Node, right: Node, free: frozenset[str], directed: bool) -> bool | None:
    ev = evaluator()
    ratio = None
    counted = 0
    for point in points(free):
        at = {name: ev.mp.mpf(v.numerator) / v.denominator for name, v in point.items()}
        x, y = value_or_none(ev, left, at), value_or_none(ev, right, at)
        if x is None or y is None or x == 0 or y == 0:
            continue
        if ratio is not None and not same(ev, x, ratio * y):
            return False
        ratio = x / y
        if directed and not (ev.mp.im(ratio) == 0 and ev.mp.re(ratio) > 0):
            return False
        counted += 1
    return True if counted >= _NEEDED else None

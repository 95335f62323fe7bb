"""Integrals, limits, infinite sums: as numbers where that decides, else by sympy, in a worker that can be killed.

Trees are built into sympy objects node by node; no text is ever parsed by sympy.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any, Literal

from rlreason.rewards.math.notation import differential
from rlreason.rewards.math.quadrature import decided
from rlreason.rewards.math.tree import EMPTY, Node, name_of, rational, walk
from rlreason.rewards.pool import Outcome, Pool

_SECONDS = 3.0
_MEMORY_MB = 1536
_MAX_NODES = 150
_MAX_EXPONENT = 2000
#: Operations that the evaluator of ``evaluate`` does not have (or not with these bounds).
UNEVALUATED = frozenset({"int", "lim", "sum", "prod"})
_EXPRESSION_KINDS = frozenset({"num", "decimal", "sym", "const", "add", "mul", "pow", "call", "relation", "empty"})

Decision = Literal["equal", "different", "undecided", "timed_out", "broken"]


def applies(gold: Node, answer: Node) -> bool:
    """Is this for sympy? Only where the gold itself holds such an operation: an answer that leaves an integral
    undone does not answer a question whose gold is a number."""
    if gold.kind == "relation" or not any(n.kind == "call" and n.value in UNEVALUATED for n in walk(gold)):
        return False
    nodes = [*walk(gold), *walk(answer)]
    return len(nodes) <= _MAX_NODES and all(n.kind in _EXPRESSION_KINDS for n in nodes)


def decide(gold: Node, answer: Node) -> Decision:
    """Equal as numbers, or by sympy within the limits of time and memory?"""
    as_numbers = decided(gold, answer)
    if as_numbers is not None:
        return "equal" if as_numbers else "different"
    outcome = _ask((gold, answer))
    if outcome.failure == "timed_out":
        return "timed_out"
    if outcome.failure == "crashed":
        return "broken"
    if outcome.failure == "raised":
        return "undecided"
    if outcome.value is None:
        return "undecided"
    return "equal" if outcome.value else "different"


_LOCK = threading.Lock()
_POOLS: list[Pool] = []


def _ask(pair: tuple[Node, Node]) -> Outcome:
    with _LOCK:
        if not _POOLS:
            _POOLS.append(Pool(symbolic_equal, workers=1, timeout=_SECONDS, memory_mb=_MEMORY_MB))
            atexit.register(_POOLS[0].close)
        # The import of sympy is not the answer's time.
        if not _POOLS[0].pids:
            _POOLS[0].map([(EMPTY, EMPTY)])
        return _POOLS[0].map([pair])[0]


def symbolic_equal(pair: tuple[Node, Node]) -> bool | None:
    """Runs in the worker. None: undecided."""
    import sympy

    if pair[0] == EMPTY:
        return None
    left, right = (to_sympy(side).doit() for side in pair)
    difference = sympy.simplify(left - right)
    if difference == 0:
        return True
    answer = difference.equals(0)
    return None if answer is None else bool(answer)


class _Untranslatable(Exception):
    """The tree holds something that has no sympy form here."""


def to_sympy(node: Node) -> Any:
    """A sympy expression of a tree."""
    import sympy

    value = rational(node)
    if value is not None:
        return sympy.Rational(value.numerator, value.denominator)
    if node.kind == "sym":
        return sympy.Symbol(name_of(node), real=True)
    if node.kind == "const":
        return {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "inf": sympy.oo}[name_of(node)]
    if node.kind == "add":
        return sympy.Add(*(to_sympy(a) for a in node.args))
    if node.kind == "mul":
        return sympy.Mul(*(to_sympy(a) for a in node.args))
    if node.kind == "pow":
        base, exponent = (to_sympy(a) for a in node.args)
        if exponent.is_number and abs(exponent.evalf()) > _MAX_EXPONENT:
            raise _Untranslatable("the exponent is too large")
        return sympy.Pow(base, exponent)
    if node.kind == "call":
        return _call(sympy, node)
    raise _Untranslatable(node.kind)


def _call(sympy: Any, node: Node) -> Any:
    name = name_of(node)
    if name in ("sum", "prod"):
        return _series(sympy, node)
    if name == "int":
        return _integral(sympy, node)
    if name == "lim":
        return _limit(sympy, node)
    functions: dict[str, Callable[..., Any]] = {
        "ln": sympy.log, "log": sympy.log, "log?": sympy.log, "abs": sympy.Abs, "factorial": sympy.factorial,
        "binom": sympy.binomial, "gamma": sympy.gamma, "floor": sympy.floor, "ceil": sympy.ceiling,
        "root": sympy.real_root, "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan,
    }  # fmt: skip
    functions |= {
        f: getattr(sympy, f) for f in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "erf")
    }
    if name not in functions:
        raise _Untranslatable(name)
    return functions[name](*(to_sympy(a) for a in node.args))


def _bound_relation(node: Node, operator: str) -> tuple[Any, Node]:
    if node.kind != "relation" or node.value != (operator,) or node.args[0].kind != "sym":
        raise _Untranslatable("strange bounds")
    return to_sympy(node.args[0]), node.args[1]


def _series(sympy: Any, node: Node) -> Any:
    body, lower, upper = node.args
    index, first = _bound_relation(lower, "=")
    kind = sympy.Sum if node.value == "sum" else sympy.Product
    return kind(to_sympy(body), (index, to_sympy(first), to_sympy(upper)))


def _limit(sympy: Any, node: Node) -> Any:
    body, lower, _ = node.args
    variable, target = _bound_relation(lower, "to")
    return sympy.Limit(to_sympy(body), variable, to_sympy(target))


def _integral(sympy: Any, node: Node) -> Any:
    """``\\int_a^b f(x) dx``."""
    body, lower, upper = node.args
    integrand, name = differential(body)
    if not name or EMPTY in (lower, upper):
        raise _Untranslatable("an integral without dx or without bounds")
    variable = sympy.Symbol(name, real=True)
    return sympy.Integral(to_sympy(integrand), (variable, to_sympy(lower), to_sympy(upper)))

"""Definite integrals, infinite sums and limits as numbers: high precision, within a time budget.

Tanh-sinh quadrature (Takahasi and Mori 1974) and Levin-type acceleration, both of mpmath. Each value of the integrand
is bounded work and looks at the clock, so nothing here can hang.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rlreason.rewards.math.evaluate import Evaluator, Exhausted, Undecided, Undefined
from rlreason.rewards.math.notation import differential
from rlreason.rewards.math.tree import EMPTY, INFINITY, MINUS_INFINITY, Node, canonical, name_of, rational, walk
from rlreason.rewards.math.values import shown_enough

_DIGITS = 30
_SECONDS = 1.0
#: Relative error below which an integral counts as known, and differences that make two values one or two.
_KNOWN, _EQUAL, _DIFFERENT = "1e-18", "1e-15", "1e-9"


def decided(gold: Node, answer: Node) -> bool | None:
    """Are the values of two constant expressions equal? None where this could not be told in time."""
    ev = _Numeric()
    try:
        x, y = ev.value(gold, {}), ev.value(answer, {})
    except (Undecided, ArithmeticError, ValueError, TypeError, RecursionError):
        return None
    size = max(abs(x), abs(y), ev.mp.mpf(_EQUAL))
    if ev.error > size * ev.mp.mpf(_KNOWN):
        return None
    if abs(x - y) <= size * ev.mp.mpf(_EQUAL) or shown_enough(ev, answer, rational(answer), x):
        return True
    bare_log = any(n.value == "log?" for side in (gold, answer) for n in walk(side))
    return False if ev.certain and not bare_log and abs(x - y) > size * ev.mp.mpf(_DIFFERENT) else None


class _Numeric(Evaluator):
    """An evaluator that also integrates. ``error``: largest estimated error; ``certain``: only quadrature was used."""

    def __init__(self) -> None:
        super().__init__(_DIGITS)
        self.error: Any = self.mp.mpf(0)
        self.certain = True
        self.until = time.monotonic() + _SECONDS

    def _value(self, node: Node, point: Mapping[str, Any]) -> Any:
        if node.kind == "call" and node.value == "int":
            return self.integral(node, point)
        if node.kind == "call" and node.value == "sum" and node.args[2] == INFINITY:
            return self.infinite_sum(node, point)
        if node.kind == "call" and node.value == "lim":
            return self.limit(node, point)
        return super()._value(node, point)

    def at(self, body: Node, point: Mapping[str, Any], name: str, x: Any) -> Any:
        """The body at one value of its variable; 0 where it has none, as at the end of an interval."""
        if time.monotonic() > self.until:
            raise Exhausted("the time for integrals is over")
        self.steps = 0
        try:
            return self._value(body, {**point, name: x})
        except (ZeroDivisionError, Undefined):
            return self.mp.mpf(0)

    def integral(self, node: Node, point: Mapping[str, Any]) -> Any:
        body, lower, upper = node.args
        integrand, name = differential(body)
        if not name or EMPTY in (lower, upper):
            raise Undecided("an integral without dx or without bounds")
        ends = [self.end(lower, point), self.end(upper, point)]
        value, error = self.mp.quad(lambda x: self.at(integrand, point, name, x), ends, error=True)
        self.error = max(self.error, abs(error))
        return value

    def end(self, node: Node, point: Mapping[str, Any]) -> Any:
        if canonical(node) == canonical(MINUS_INFINITY):
            return -self.mp.inf
        return self.mp.inf if node == INFINITY else self._value(node, point)

    def infinite_sum(self, node: Node, point: Mapping[str, Any]) -> Any:
        body, lower, _ = node.args
        if lower.kind != "relation" or lower.value != ("=",) or lower.args[0].kind != "sym":
            raise Undecided("a sum without bounds")
        self.certain = False
        first, name = self._value(lower.args[1], point), name_of(lower.args[0])
        return self.mp.nsum(lambda k: self.at(body, point, name, k), [first, self.mp.inf])

    def limit(self, node: Node, point: Mapping[str, Any]) -> Any:
        body, lower, _ = node.args
        if lower.kind != "relation" or lower.value != ("to",) or lower.args[0].kind != "sym":
            raise Undecided("a limit without a target")
        self.certain = False
        name = name_of(lower.args[0])
        return self.mp.limit(lambda x: self.at(body, point, name, x), self.end(lower.args[1], point))

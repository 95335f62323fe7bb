"""Functions of the evaluator by name: each takes the evaluator and its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

_OWN: dict[str, Callable[..., Any]] = {
    "abs": lambda ev, x: abs(x),
    "root": lambda ev, x, degree: ev.root(x, degree),
    "ln": lambda ev, x: ev.logarithm(x),
    "log": lambda ev, x, base=None: ev.logarithm(x, base),
    "log?": lambda ev, x: ev.logarithm(x, ev.log_base),
    "cis": lambda ev, x: ev.mp.expj(x),
    "floor": lambda ev, x: ev.step(ev.real(x), ev.mp.floor(x)),
    "ceil": lambda ev, x: ev.step(ev.real(x), ev.mp.ceil(x)),
    "sgn": lambda ev, x: ev.mp.sign(x),
    "Re": lambda ev, x: ev.mp.re(x),
    "Im": lambda ev, x: ev.mp.im(x),
    "arg": lambda ev, x: ev.mp.arg(x),
    "max": lambda ev, *x: max(ev.real(v) for v in x),
    "min": lambda ev, *x: min(ev.real(v) for v in x),
    "gcd": lambda ev, *x: ev.mp.mpf(math.gcd(*map(ev.integer, x))),
    "lcm": lambda ev, *x: ev.mp.mpf(math.lcm(*map(ev.integer, x))),
    "mod": lambda ev, a, b: ev.mp.mpf(ev.integer(a) % ev.integer(b)),
    "factorial": lambda ev, x: ev.mp.factorial(x),
    "factorial2": lambda ev, x: ev.mp.fac2(x),
    "gamma": lambda ev, x: ev.mp.gamma(x),
    "binom": lambda ev, n, k: ev.mp.binomial(n, k),
    "erf": lambda ev, x: ev.mp.erf(x),
}
_MPMATH = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "arcsin": "asin",
    "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec", "arccsc": "acsc", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "coth": "coth", "sech": "sech", "csch": "csch", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh",
}  # fmt: skip


def _from_mpmath(name: str) -> Callable[..., Any]:
    return lambda ev, x: getattr(ev.mp, name)(x)


CALLS = _OWN | {ours: _from_mpmath(theirs) for ours, theirs in _MPMATH.items()}

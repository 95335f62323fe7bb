"""Are two expressions equal? Exact numbers, then prime fields, then high precision at fixed points."""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rlreason.rewards.math.evaluate import (
    PRIMES,
    Evaluator,
    Exhausted,
    NotRational,
    Undecided,
    Undefined,
    exact,
    modular,
)
from rlreason.rewards.math.tree import Node, decimals, name_of, rational, symbols, walk

#: A decimal stands for an irrational or periodic number if it has this many significant digits.
SIGNIFICANT_DIGITS = 6
_DIGITS = 40
_CHECK_DIGITS = 80
#: Relative difference below which two values computed with 40 digits are one value.
_SAME = Fraction(1, 10**25)
_TRIALS = 14
#: Places of a decimal that are compared with an irrational number.
_CHECKED_PLACES = 25
_ENOUGH = 3
#: Bits of difference in size that 40 digits take in, and that are looked into at all.
_PLAIN_SPREAD = 40
_MAX_SPREAD = 4000
#: Values of larger trees are not kept.
_REMEMBERED = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How strictly answers are compared. Example: ``Options(ordered=True)`` makes ``1, 2`` differ from ``2, 1``."""

    #: Lists compare in order. False: as multisets (tuples and intervals are always in order).
    ordered: bool = False
    #: Relative tolerance for numbers; 0 compares exactly.
    tolerance: float = 0.0
    #: A gold with a unit refuses an answer without one.
    units: bool = False
    #: ``20%`` equals the bare number 20 as well as 0.2 (never 20 and 0.2 each other).
    percent_as_unit: bool = True


_LOCAL = threading.local()


def evaluator(digits: int = _DIGITS, log_base: int | None = None) -> Evaluator:
    """This thread's evaluator of that precision."""
    cache: dict[tuple[int, int | None], Evaluator] = _LOCAL.__dict__.setdefault("evaluators", {})
    key = (digits, log_base)
    if key not in cache:
        cache[key] = Evaluator(digits, log_base)
    return cache[key]


def values_equal(a: Node, b: Node, options: Options) -> bool | None:
    """True, False, or None where this could not be decided."""
    if a == b:
        return True
    try:
        left, right = exact(a), exact(b)
    except Undefined:
        return False
    if left is not None and right is not None:
        return left == right or _near(left, right, options) or rounds_to(a, b, left, right)
    free = symbols(a) | symbols(b)
    if any(n.kind == "literal" for n in (*walk(a), *walk(b))):
        return False
    if not free:
        return _constants_equal(a, b, left, right, options)
    try:
        return _rational_functions_equal(a, b, free)
    except NotRational:
        pass
    try:
        return _functions_equal(a, b, free)
    except Exhausted:
        return None


def _near(left: Fraction, right: Fraction, options: Options) -> bool:
    return bool(options.tolerance) and abs(left - right) <= Fraction(options.tolerance) * max(abs(left), abs(right))


def rounds_to(a: Node, b: Node, left: Fraction, right: Fraction) -> bool:
    """Is one a decimal with enough digits that rounds (or cuts) the other, which no such decimal states exactly?"""
    return _is_rounding(a, left, b, right) or _is_rounding(b, right, a, left)


def _is_rounding(decimal: Node, shown: Fraction, other: Node, value: Fraction) -> bool:
    places = _places(decimal)
    if places is None or _places(other) is not None:
        return False
    places = max(places, 0)
    if (value * Fraction(10) ** places).denominator == 1 or _significant(shown, places) < SIGNIFICANT_DIGITS:
        return False
    unit = Fraction(10) ** places
    scaled, whole = abs(value) * unit, abs(shown) * unit
    cut_or_rounded = whole in (math.floor(scaled), math.floor(scaled + Fraction(1, 2)))
    return value * shown > 0 and (cut_or_rounded or _is_double(shown, places, value))


def _is_double(shown: Fraction, places: int, value: Any) -> bool:
    """Are these the 16 or 17 digits that a computer prints for the double nearest to ``value``?"""
    if _significant(shown, places) not in (16, 17) or not (abs(value) < 10**300 and abs(shown) < 10**300):
        return False
    return abs(float(shown)) == abs(float(value))


def _places(node: Node) -> int | None:
    """Digits after the point of a decimal, also of ``2.31 \\times 10^{-3}`` and its negative (below 0 where the last
    digit shown is one of tens or more); None otherwise."""
    if node.kind == "decimal":
        return decimals(node)
    if node.kind == "mul" and len(node.args) == 2:
        first, second = node.args
        if rational(first) == -1:
            return _places(second)
        if first.kind == "decimal" and second.kind == "pow" and rational(second.args[0]) == 10:
            exponent = exact(second.args[1])
            if exponent is not None and exponent.denominator == 1 and abs(exponent) < 400:
                return decimals(first) - int(exponent)
    return None


def _significant(shown: Fraction, places: int) -> int:
    return len(str(abs(int(shown * Fraction(10) ** places))))


def _constants_equal(a: Node, b: Node, left: Fraction | None, right: Fraction | None, options: Options) -> bool | None:
    results = [_constants_at(a, b, left, right, options, base) for base in _log_bases(a, b)]
    return True if True in results else results[0]


def _log_bases(a: Node, b: Node) -> tuple[int | None, ...]:
    """A bare log is natural or decimal: either reading may make the two equal."""
    return (None, 10) if any(n.value == "log?" for n in (*walk(a), *walk(b))) else (None,)


def _constants_at(
    a: Node, b: Node, left: Fraction | None, right: Fraction | None, options: Options, base: int | None
) -> bool | None:
    ev = evaluator(_DIGITS, base)
    try:
        x, y = constant(a, base), constant(b, base)
    except Undefined:
        return False
    except Undecided:
        return None
    if same(ev, x, y):
        return True if x == y == 0 else _same_in_detail(a, b, base)
    if _angle_equal(ev, a, b, x, y):
        return True
    gap = abs(x - y)
    if options.tolerance and gap <= options.tolerance * max(abs(x), abs(y)):
        return True
    if shown_enough(ev, a, left, y) or shown_enough(ev, b, right, x):
        return True
    if gap < max(abs(x), abs(y), 1) * ev.mp.mpf(10) ** -15:
        # Close, or cancelled to nothing: with twice the digits a true equality closes the gap.
        fine = evaluator(_CHECK_DIGITS, base)
        closer = abs(fine.value(a, {}) - fine.value(b, {}))
        return bool(closer == 0 or closer < gap * ev.mp.mpf(10) ** -20)
    return False


def _value(node: Node, base: int | None) -> Any:
    try:
        return evaluator(_DIGITS, base).value(node, {})
    except Undecided as error:
        return error


_constant = lru_cache(maxsize=8192)(_value)


def constant(node: Node, base: int | None = None) -> Any:
    """Value of a constant expression, remembered: a gold meets many answers."""
    value = _constant(node, base) if sum(1 for _ in walk(node)) <= _REMEMBERED else _value(node, base)
    if isinstance(value, Undecided):
        raise value
    return value


def _same_in_detail(a: Node, b: Node, base: int | None) -> bool | None:
    """Equal to 40 digits; equal also where ``1 + 2^{-1000}`` differs from 1?"""
    ev = evaluator(_DIGITS, base)
    spread = 0
    for side in (a, b):
        ev.value(side, {})
        spread = max(spread, ev.spread)
    if spread <= _PLAIN_SPREAD:
        return True
    if spread > _MAX_SPREAD:
        return None
    fine = Evaluator(_DIGITS + spread, base)
    x, y = fine.value(a, {}), fine.value(b, {})
    return bool(abs(x - y) <= max(abs(x), abs(y)) * fine.mp.mpf(2) ** -(spread + 80))


def _angle_equal(ev: Evaluator, a: Node, b: Node, x: Any, y: Any) -> bool:
    """``60^\\circ`` equals ``\\pi/3`` as well as 60: the side with the degree sign read as an angle."""
    in_degrees = [any(n.kind == "degree" for n in walk(side)) for side in (a, b)]
    if in_degrees[0] == in_degrees[1]:
        return False
    ev.angle += 1
    try:
        return same(ev, ev.value(a, {}), y) if in_degrees[0] else same(ev, x, ev.value(b, {}))
    finally:
        ev.angle -= 1


def same(ev: Evaluator, x: Any, y: Any) -> bool:
    """Equal to 25 digits, relative to their size."""
    return bool(x == y or abs(x - y) <= max(abs(x), abs(y)) * ev.mp.mpf(_SAME.numerator) / _SAME.denominator)


def shown_enough(ev: Evaluator, decimal: Node, shown: Fraction | None, value: Any) -> bool:
    """Does the decimal literal show the irrational ``value`` to all of its digits, at least six?"""
    places = _places(decimal)
    if shown is None or places is None or _significant(shown, places) < SIGNIFICANT_DIGITS:
        return False
    if ev.mp.im(value) or ev.mp.re(value) * shown.numerator <= 0:
        return False
    shown = abs(shown)
    if places > _CHECKED_PLACES:  # the rest of the digits is beyond what is worked out: cut on both sides
        shown, places = Fraction(math.floor(shown * 10**_CHECKED_PLACES), 10**_CHECKED_PLACES), _CHECKED_PLACES
    scaled = abs(ev.mp.re(value)) * ev.mp.mpf(10) ** places
    if same(ev, scaled, ev.mp.nint(scaled)):
        return False  # it could have been written exactly
    whole = int(shown * Fraction(10) ** places)
    if whole in (int(ev.mp.floor(scaled)), int(ev.mp.floor(scaled + ev.mp.mpf("0.5")))):
        return True
    return _is_double(shown, places, ev.mp.re(value))


@lru_cache(maxsize=4096)
def _draws(name: str, trial: int) -> tuple[int, int, Fraction]:
    """Fixed random values of a symbol: two field elements and a rational of moderate size (half of them negative)."""
    rng = random.Random(f"{name}:{trial}")
    size = (Fraction(3), Fraction(1), Fraction(12), Fraction(1, 3))[trial % 4]
    real = Fraction(rng.randrange(10**8, 10**9), 10**9) * size + Fraction(rng.randrange(1, 9), 10) * (trial % 2)
    return rng.randrange(1, PRIMES[0]), rng.randrange(1, PRIMES[1]), real


def _rational_functions_equal(a: Node, b: Node, free: frozenset[str]) -> bool:
    for trial in (0, 1):
        for i, prime in enumerate(PRIMES):
            point = {name: int(_draws(name, trial)[i]) for name in free}
            try:
                if modular(a, point, prime) != modular(b, point, prime):
                    return False
            except Undefined:
                return False
    return True


def points(free: frozenset[str], *, whole: bool = False) -> list[dict[str, Fraction]]:
    """Fixed points: first all positive, then of mixed sign. ``whole``: positive whole numbers."""
    names = sorted(free)
    out = []
    for trial in range(_TRIALS):
        point = {}
        for i, name in enumerate(names):
            value = _draws(name, trial)[2]
            if whole:
                value = Fraction(2 + (trial + 3 * i) % 9)
            elif trial >= _TRIALS // 2 and (trial >> (i % 3)) % 2:
                value = -value
            point[name] = value
        out.append(point)
    return out


def _functions_equal(a: Node, b: Node, free: frozenset[str]) -> bool | None:
    if "()" in "".join(name_of(n) for n in (*walk(a), *walk(b)) if n.kind == "call"):
        a, b = _with_opaque_calls(a), _with_opaque_calls(b)
        free = symbols(a) | symbols(b)
    results = []
    for base in _log_bases(a, b):
        counting = any(n.value in _COUNTING and symbols(n) for n in (*walk(a), *walk(b)) if n.kind == "call")
        result = None if counting else _agree(a, b, points(free), evaluator(_DIGITS, base), real=True)
        if result is None:
            result = _agree(a, b, points(free, whole=True), evaluator(_DIGITS, base), real=False)
        if result is None:
            result = _agree(a, b, points(free), evaluator(_DIGITS, base), real=False)
        results.append(result)
    return True if True in results else results[0]


#: Their letters stand for whole numbers.
_COUNTING = frozenset({"factorial", "factorial2", "binom"})


def _sorted(node: Node) -> Node:
    """Arguments of sums and products in an order that does not depend on the process."""
    args = [_sorted(a) for a in node.args]
    if node.kind in ("add", "mul"):
        args.sort(key=repr)
    return Node(node.kind, tuple(args), node.value)


def _with_opaque_calls(node: Node) -> Node:
    """``f(x)`` of an unknown function is a symbol of its own, one for each argument."""
    if node.kind == "call" and name_of(node).endswith("()"):
        digest = hashlib.blake2b(repr(_sorted(node)).encode(), digest_size=12).hexdigest()
        return Node("sym", (), f"{node.value}{digest}")
    return Node(node.kind, tuple(_with_opaque_calls(a) for a in node.args), node.value) if node.args else node


def _agree(a: Node, b: Node, where: list[dict[str, Fraction]], ev: Evaluator, *, real: bool) -> bool | None:
    """Equal at enough points. With ``real`` only points count where both sides and all of their parts are real:
    principal values of roots and logarithms of negative numbers say nothing about what was meant."""
    counted = one_sided = 0
    for point in where:
        at = {name: ev.mp.mpf(v.numerator) / v.denominator for name, v in point.items()}
        x = value_or_none(ev, a, at)
        unreal = ev.unreal
        y = value_or_none(ev, b, at)
        if (x is None and y is None) or (real and (unreal or ev.unreal)):
            continue
        if x is None or y is None:
            one_sided += 1
            continue
        if not _agree_here(ev, a, b, at, (x, y)):
            return False
        counted += 1
    return True if counted >= _ENOUGH and one_sided <= counted else None


def _agree_here(ev: Evaluator, a: Node, b: Node, at: Mapping[str, Any], values: tuple[Any, Any]) -> bool:
    x, y = values
    if same(ev, x, y):
        return True
    gap = abs(x - y)
    if gap > max(abs(x), abs(y)) * ev.mp.mpf(10) ** -12 and gap > ev.mp.mpf(10) ** -25:
        return False
    fine = evaluator(_CHECK_DIGITS, ev.log_base)
    x, y = value_or_none(fine, a, at), value_or_none(fine, b, at)
    return x is not None and y is not None and bool(abs(x - y) <= gap * ev.mp.mpf(10) ** -20)


def value_or_none(ev: Evaluator, node: Node, at: Mapping[str, Any]) -> Any:
    """The value at a point; None where it has none. Exhausted where it would cost too much anywhere."""
    try:
        return ev.value(node, at)
    except Exhausted:
        raise
    except Undecided:
        return None

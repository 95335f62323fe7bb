"""The value of a tree: as an exact rational, modulo primes, or in high precision at given points.

Every operation checks sizes before it runs. mpmath does the floating point; no sympy, no ``eval``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from rlreason.rewards.math.functions import CALLS
from rlreason.rewards.math.tree import MAX_BITS, MINUS_ONE, Node, name_of, rational
from rlreason.rewards.math.words import word_set

#: Two Mersenne primes of more than 60 bits: a polynomial identity that fails holds by chance with odds of 1e-18.
PRIMES = ((1 << 61) - 1, (1 << 89) - 1)
_MAX_FACTORIAL_EXACT = 400
_MAX_TERMS = 400
_MAX_STEPS = 4000
#: Bits of a number that an exponent, an angle or a factorial may have; beyond that it is a tower.
_MAX_MAGNITUDE = 200


class Undecided(Exception):
    """The value can't be worked out: undefined, beyond the limits, or an operation that only sympy has."""


class Undefined(Undecided):
    """The expression has no value there: division by zero, infinity minus infinity."""


class Exhausted(Undecided):
    """It takes too much work, at this point and at any other."""


class NotRational(Exception):
    """The tree is no rational function."""


def exact(node: Node) -> Fraction | None:
    """Exact value of a rational constant; None if it is not one or is too large. Raises Undefined for 1/0."""
    try:
        return _exact(node)
    except NotRational:
        return None


def _exact(node: Node) -> Fraction:
    value = rational(node)
    if value is not None:
        return value
    kind = node.kind
    if kind == "add":
        return _small(sum((_exact(a) for a in node.args), Fraction(0)))
    if kind == "mul":
        product = Fraction(1)
        for arg in node.args:
            product = _small(product * _exact(arg))
        return product
    if kind == "pow":
        return _exact_power(_exact(node.args[0]), _exact(node.args[1]))
    if kind == "percent":
        return _exact(node.args[0]) / 100
    if kind == "call":
        return _exact_call(node)
    raise NotRational


def _small(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise NotRational
    return value


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        if exponent.denominator > 12 or base <= 0:
            raise NotRational
        root = _exact_root(base, exponent.denominator)
        return _exact_power(root, Fraction(exponent.numerator))
    power = exponent.numerator
    if base == 0 and power < 0:
        raise Undefined("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base in (0, 1):
        return base if power else Fraction(1)
    if base != -1 and (power.bit_length() > 20 or bits * abs(power) > MAX_BITS):
        raise NotRational
    return base ** (power % 2 if base == -1 else power)


def _exact_root(base: Fraction, degree: int) -> Fraction:
    def whole(value: int) -> int:
        if value.bit_length() > 2048:
            raise NotRational
        guess = math.isqrt(value) if degree == 2 else round(value ** (1.0 / degree)) if value.bit_length() < 900 else 0
        if guess**degree != value:
            raise NotRational
        return guess

    return Fraction(whole(base.numerator), whole(base.denominator))


def _exact_call(node: Node) -> Fraction:
    function = _EXACT.get(name_of(node))
    if function is None:
        raise NotRational
    return function(*(_exact(a) for a in node.args))


def _whole(value: Fraction) -> int:
    if value.denominator != 1:
        raise NotRational
    return value.numerator


def _factorial(n: Fraction) -> Fraction:
    if not 0 <= n <= _MAX_FACTORIAL_EXACT:
        raise NotRational
    return Fraction(math.factorial(_whole(n)))


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    if not 0 <= n <= 2 * _MAX_FACTORIAL_EXACT or k < 0:
        raise NotRational
    return Fraction(math.comb(_whole(n), _whole(k)))


def _modulo(a: Fraction, b: Fraction) -> Fraction:
    if b == 0:
        raise Undefined("modulo zero")
    return a % b


_EXACT: dict[str, Callable[..., Fraction]] = {
    "abs": abs,
    "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)),
    "factorial": _factorial,
    "binom": _binomial,
    "gcd": lambda *x: Fraction(math.gcd(*map(_whole, x))),
    "lcm": lambda *x: _small(Fraction(math.lcm(*map(_whole, x)))),
    "max": lambda *x: max(x),
    "min": lambda *x: min(x),
    "mod": _modulo,
}


def modular(node: Node, point: Mapping[str, int], prime: int) -> int:
    """Value of a rational function with whole exponents modulo ``prime``. NotRational for anything else."""
    value = rational(node)
    kind = node.kind
    if value is not None:
        return _divide(value.numerator, value.denominator, prime)
    if kind == "sym":
        return point[name_of(node)]
    if kind == "add":
        return sum(modular(a, point, prime) for a in node.args) % prime
    if kind == "mul":
        product = 1
        for arg in node.args:
            product = product * modular(arg, point, prime) % prime
        return product
    if kind == "pow":
        power = exact(node.args[1])
        if power is None or power.denominator != 1 or abs(power) > 10**6:
            raise NotRational
        base = modular(node.args[0], point, prime)
        if power < 0:
            return pow(_divide(1, base, prime), -power.numerator, prime)
        return pow(base, power.numerator, prime)
    raise NotRational


def _divide(top: int, bottom: int, prime: int) -> int:
    if bottom % prime == 0:
        raise Undefined("division by zero")
    return top * pow(bottom, -1, prime) % prime


class Evaluator:
    """High-precision complex evaluation. ``base`` of a bare ``\\log``: e or 10."""

    def __init__(self, digits: int, log_base: int | None = None) -> None:
        import mpmath  # light next to sympy, but most answers are plain rationals and need neither

        self.mp: Any = mpmath.MPContext()
        self.mp.dps = digits
        self.tiny = self.mp.mpf(10) ** -25
        self.log_base = log_base
        self.steps = 0
        self.angle = 0
        #: Bits by which the smallest contribution so far lies below what it is added to: 1 + 2^-1000 has 1000.
        self.spread = 0
        #: Was any part of the last value not real?
        self.unreal = False

    def value(self, node: Node, point: Mapping[str, Any]) -> Any:
        """The value at a point; raises Undecided where there is none."""
        self.steps = self.spread = 0
        self.unreal = False
        try:
            result = self._value(node, point)
        except (ZeroDivisionError, OverflowError, ValueError, TypeError, self.mp.NoConvergence) as error:
            raise Undefined(str(error)) from None
        if not self.mp.isfinite(result):
            raise Undefined("not finite")
        return result

    def _value(self, node: Node, point: Mapping[str, Any]) -> Any:
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise Exhausted("too much work")
        value = rational(node)
        if value is not None:
            if value.denominator == 1:
                return self.mp.mpf(value.numerator)
            return self.mp.mpf(value.numerator) / value.denominator
        handler = _NUMERIC.get(node.kind)
        if handler is None:
            raise Undecided(f"no value of {node.kind}")
        result = handler(self, node, point)
        if isinstance(result, self.mp.mpc) and abs(result.imag) > abs(result) * self.tiny:
            self.unreal = True
        return result

    def symbol(self, node: Node, point: Mapping[str, Any]) -> Any:
        try:
            return point[name_of(node)]
        except KeyError:
            raise Undecided("a free symbol") from None

    def constant(self, node: Node, point: Mapping[str, Any]) -> Any:
        if node.value == "inf":
            raise Undefined("infinity")
        return {"pi": self.mp.pi, "e": self.mp.e, "i": self.mp.j}[name_of(node)] * 1

    def add(self, node: Node, point: Mapping[str, Any]) -> Any:
        terms = [self._value(a, point) for a in node.args]
        sizes = [self.mp.mag(t) for t in terms if t]
        if sizes:
            self.spread = max(self.spread, int(max(sizes) - min(sizes)))
        return sum(terms[1:], terms[0])

    def mul(self, node: Node, point: Mapping[str, Any]) -> Any:
        return math.prod((self._value(a, point) for a in node.args[1:]), start=self._value(node.args[0], point))

    def bounded(self, x: Any) -> Any:
        """Refuse the operand of an operation whose cost grows with the size of its operand."""
        if self.mp.mag(x) > _MAX_MAGNITUDE if x else False:
            raise Undecided("too large")
        return x

    def power(self, node: Node, point: Mapping[str, Any]) -> Any:
        base = self._value(node.args[0], point)
        if node.args[1] == MINUS_ONE:
            return 1 / base
        exponent = self.bounded(self._value(node.args[1], point))
        if exponent:
            self.spread = max(self.spread, -int(self.mp.mag(exponent)))
        if base == 0:
            if self.mp.im(exponent) or self.mp.re(exponent) <= 0:
                raise Undefined("power of zero")
            return self.mp.mpf(0)
        # The base may be huge (2^1000000 is one mantissa and an exponent), its logarithm may not.
        if abs(self.mp.mag(base)) > 1 << 40:
            raise Undecided("too large")
        ratio = exact(node.args[1]) if not self.mp.im(base) and base < 0 else None
        if ratio is not None and ratio.denominator % 2 == 1 and ratio.denominator > 1:
            # x^(2/3) of a negative number: the real root, as school mathematics means it.
            sign = -1 if ratio.numerator % 2 else 1
            return sign * self.mp.power(-base, exponent)
        return self.mp.power(base, exponent)

    def percent(self, node: Node, point: Mapping[str, Any]) -> Any:
        return self._value(node.args[0], point) / 100

    def degree(self, node: Node, point: Mapping[str, Any]) -> Any:
        """In a function an angle is in radians; alone, ``60^\\circ`` is read as the number 60."""
        value = self._value(node.args[0], point)
        return value * self.mp.pi / 180 if self.angle else value

    def call(self, node: Node, point: Mapping[str, Any]) -> Any:
        name = name_of(node)
        if name == "det":
            return self.determinant(node.args[0], point)
        if name in ("sum", "prod"):
            return self.series(node, point)
        function = CALLS.get(name)
        if function is None:
            raise Undecided(f"no value of {name}")
        self.angle += name in _TRIGONOMETRIC
        try:
            arguments = [self.bounded(self._value(a, point)) for a in node.args]
            self.spread = max([self.spread, *(-int(self.mp.mag(x)) for x in arguments if x)])
        finally:
            self.angle -= name in _TRIGONOMETRIC
        return function(self, *arguments)

    def determinant(self, matrix: Node, point: Mapping[str, Any]) -> Any:
        if matrix.kind != "matrix" or not isinstance(matrix.value, tuple) or matrix.value[0] != matrix.value[1]:
            raise Undefined("determinant of a matrix that is not square")
        n = int(matrix.value[0])
        if n > 8:
            raise Undecided("too large")
        cells = [self._value(a, point) for a in matrix.args]
        return self.mp.det(self.mp.matrix([cells[i * n : i * n + n] for i in range(n)]))

    def series(self, node: Node, point: Mapping[str, Any]) -> Any:
        """A finite sum or product with few terms."""
        body, lower, upper = node.args
        if lower.kind != "relation" or lower.value != ("=",) or lower.args[0].kind not in ("sym", "const"):
            raise Undecided("a sum without bounds")
        first, last = self._value(lower.args[1], point), self._value(upper, point)
        if first != self.mp.floor(first) or last != self.mp.floor(last) or last - first > _MAX_TERMS:
            raise Undecided("too many terms")
        name = name_of(lower.args[0])
        if lower.args[0].kind == "const":
            raise Undecided("a constant as an index")
        total = self.mp.mpf(0 if node.value == "sum" else 1)
        for k in range(int(first), int(last) + 1):
            term = self._value(body, {**point, name: self.mp.mpf(k)})
            total = total + term if node.value == "sum" else total * term
        return total

    def integer(self, x: Any) -> int:
        nearest = self.mp.nint(self.mp.re(x))
        if self.mp.im(x) or abs(x - nearest) > self.mp.mpf(10) ** (-self.mp.dps // 2):
            raise Undecided("not whole")
        return int(nearest)

    def real(self, x: Any) -> Any:
        if self.mp.im(x):
            raise Undefined("not real")
        return self.mp.re(x)

    def root(self, x: Any, degree: Any) -> Any:
        n = self.integer(degree)
        if not 1 <= n <= 10_000:
            raise Undefined("strange root")
        if not self.mp.im(x) and x < 0 and n % 2:
            return -self.mp.root(-x, n)
        return self.mp.power(x, self.mp.mpf(1) / n)

    def logarithm(self, x: Any, base: Any = None) -> Any:
        if x == 0:
            raise Undefined("logarithm of zero")
        if base is not None and base == 1:
            raise Undefined("logarithm in base 1")
        return self.mp.log(x) if base is None else self.mp.log(x) / self.mp.log(base)

    def step(self, x: Any, rounded: Any) -> Any:
        """floor and ceil jump at whole numbers, where a rounding error would decide."""
        nearest = self.mp.nint(x)
        return nearest if abs(x - nearest) < self.mp.mpf(10) ** (-self.mp.dps // 2) else rounded


_TRIGONOMETRIC = word_set("sin cos tan cot sec csc cis")
_NUMERIC: dict[str, Callable[[Evaluator, Node, Mapping[str, Any]], Any]] = {
    "sym": Evaluator.symbol,
    "const": Evaluator.constant,
    "add": Evaluator.add,
    "mul": Evaluator.mul,
    "pow": Evaluator.power,
    "percent": Evaluator.percent,
    "degree": Evaluator.degree,
    "call": Evaluator.call,
}

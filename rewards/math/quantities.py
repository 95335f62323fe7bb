"""Values with labels: units that convert, times of day, ratios, degrees, percentages."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from rlreason.rewards.math.labels import agree, label
from rlreason.rewards.math.relations import relation_value
from rlreason.rewards.math.tree import Node, add, const, divide, mul, name_of, num, rational, walk
from rlreason.rewards.math.units import RADIAN, TEMPERATURES
from rlreason.rewards.math.values import Options, values_equal

Equal = Callable[[Node, Node, Options], bool | None]


def names_equal(a: Node, b: Node, options: Options, equal: Equal) -> bool | None:
    """``Area = 5``: words in front are free on one side, on both they must agree."""
    if a.kind == b.kind and not agree(label(name_of(a)), label(name_of(b))):
        return False
    return equal(a.args[0] if a.kind == "named" else a, b.args[0] if b.kind == "named" else b, options)


def units_equal(a: Node, b: Node, options: Options, equal: Equal) -> bool | None:
    """A label on one side is free (unless ``options.units``); on both sides they must agree or convert."""
    if a.kind != "unit":
        return _one_sided(b, a, options, equal)
    if b.kind != "unit":
        return _one_sided(a, b, options, equal)
    left, right = a.args[0], b.args[0]
    first, second = label(name_of(a)), label(name_of(b))
    clock = _clocks(left, right, name_of(a), name_of(b), options, equal)
    if clock is not None:
        return clock
    if first.size is not None and second.size is not None:
        warm, warmer = TEMPERATURES.get(first.size[0]), TEMPERATURES.get(second.size[0])
        if warm and warmer:
            if warm == warmer:
                return equal(left, right, options)
            return equal(_kelvin(left, warm), _kelvin(right, warmer), options)
        if {first.text, second.text} in _CELSIUS:
            return equal(left, right, options)
    if not agree(first, second):
        return False
    if first.size is None or second.size is None or first.size[1] == second.size[1]:
        return equal(left, right, options)
    return equal(mul(left, num(first.size[1])), mul(right, num(second.size[1])), options)


_IN_DEGREES = ((("celsius", 1),), (("fahrenheit", 1),))
_CELSIUS = ({"C", "°C"}, {"F", "°F"})


def _kelvin(node: Node, scale: tuple[Fraction, Fraction]) -> Node:
    return mul(add(node, num(scale[0])), num(scale[1]))


def _one_sided(labelled: Node, bare: Node, options: Options, equal: Equal) -> bool | None:
    if bare.kind == "relation":
        stated = relation_value(bare, options, equal)
        return stated is not None and equal(labelled, stated, options)
    value, found = labelled.args[0], label(name_of(labelled))
    dimensions = found.size[0] if found.size is not None else ()
    if dimensions == RADIAN and bare.kind == "degree":
        return equal(value, in_radians(bare), options)
    if bare.kind == "degree" and value.kind != "degree":
        return dimensions in _IN_DEGREES and equal(value, bare.args[0], options)
    if bare.kind == "percent" and value.kind != "percent":
        return False
    if options.units and found.size is not None:
        return False
    clock = _clocks(value, bare, name_of(labelled), None, options, equal)
    return equal(value, bare, options) if clock is None else clock


def _clocks(
    left: Node, right: Node, label_a: str | None, label_b: str | None, options: Options, equal: Equal
) -> bool | None:
    """The two as times of day; None where neither is one."""
    half_a, half_b = _half(label_a), _half(label_b)
    if left.kind != "ratio" and right.kind != "ratio" and not (half_a and half_b):
        return None
    if left.kind == right.kind == "ratio" and not (half_a and half_b) and equal(left, right, options):
        return True
    left, right = _with_clock(left, half_a), _with_clock(right, half_b)
    return left.kind == right.kind and bool(equal(left, right, options))


def _half(words: str | None) -> str:
    mark = re.sub(r"[\s.]", "", (words or "").lower())
    return mark if mark in ("am", "pm") else ""


def _with_clock(node: Node, half: str) -> Node:
    """``8:34 P.M.`` on the 24-hour clock."""
    hour = rational(node.args[0] if node.kind == "ratio" else node)
    if hour is None or not half or hour.denominator != 1 or not 1 <= hour <= 12:
        return node
    rest = node.args[1:] if node.kind == "ratio" else (num(0),)
    return Node("ratio", (num(hour % 12 + (12 if half == "pm" else 0)), *rest))


def percents_equal(a: Node, b: Node, options: Options, equal: Equal) -> bool | None:
    """``25%`` is 0.25, and the bare number 25."""
    if a.kind == b.kind:
        return equal(a.args[0], b.args[0], options)
    percent, other = (a, b) if a.kind == "percent" else (b, a)
    shown, value = rational(percent.args[0]), rational(other)
    if options.percent_as_unit and value is not None and shown == value and abs(value) >= 1:
        return True
    return values_equal(a, b, options)


def ratios_equal(a: Node, b: Node, options: Options) -> bool | None:
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


def in_radians(degree: Node) -> Node:
    """``30^\\circ`` as ``30 \\pi / 180``."""
    return divide(mul(degree.args[0], const("pi")), num(180))


def degrees_equal(a: Node, b: Node, options: Options, equal: Equal) -> bool | None:
    """``60^\\circ`` is 60, and ``\\pi/3``; degrees that already hold a ``\\pi`` are only the angle."""
    if a.kind == b.kind:
        return equal(a.args[0], b.args[0], options)
    degree, other = (a, b) if a.kind == "degree" else (b, a)
    if any(n.kind == "const" and n.value == "pi" for n in walk(degree)):
        return equal(in_radians(degree), other, options)
    return values_equal(a, b, options)

"""Plain data as text, by exact type: what crosses between a jailed program and the others.

``type(x) is int`` and the like decide, so an object that only claims to be an int does not cross. Carriers:
``None bool int float complex str bytes bytearray list tuple set frozenset dict range deque Fraction Decimal``, dict
views, dates and times, paths and UUIDs, numpy's scalars and arrays, and the standard library's dict subclasses. Scalars
are themselves; containers are ``[tag, ...]``. No pickle, no eval.
Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import collections
import datetime
import fractions
import importlib
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

MAX_DEPTH = 200
#: Integers beyond this go as hexadecimal text: decimal conversion is quadratic.
_PLAIN_INT = 1 << 256
_SIMPLE = frozenset({str, bool, type(None), float})
_SEQUENCES: dict[type, str] = {list: "l", tuple: "t", set: "s", frozenset: "f", collections.deque: "q"}
_DICTS: dict[type, str] = {
    dict: "d",
    collections.defaultdict: "d",
    collections.OrderedDict: "O",
    collections.Counter: "C",
}
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values", type({}.items()): "items"}
#: With what they are built from.
_TIMES: dict[type, tuple[str, ...]] = {
    datetime.datetime: ("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo"),
    datetime.date: ("year", "month", "day"),
    datetime.time: ("hour", "minute", "second", "microsecond", "tzinfo"),
    datetime.timedelta: ("days", "seconds", "microseconds"),
}
_BASES: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (int, int.__pos__),
    (float, float.__pos__),
    (complex, complex.__pos__),
    (str, lambda value: str.__getitem__(value, slice(None))),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
    (bytearray, lambda value: bytearray.__getitem__(value, slice(None))),
    (tuple, lambda value: tuple.__getitem__(value, slice(None))),
    (list, lambda value: list.__getitem__(value, slice(None))),
    (set, lambda value: set(set.__iter__(value))),
    (frozenset, lambda value: frozenset(frozenset.__iter__(value))),
    (dict, dict.copy),
)
Tree = object


class NotPlain(Exception):
    """The value does not cross: its type is not plain data, or the text stands for no value."""


class TooDeep(NotPlain):
    """It is nested beyond ``MAX_DEPTH``, or holds itself."""


def base_of(value: object) -> object:
    """What an instance of a subclass of a plain type is as that type: a named tuple's tuple. None for anything else.

    Read by the plain type's own methods: nothing that the subclass defines has a say.
    """
    for base, read in _BASES:
        if issubclass(type(value), base) and type(value) is not base:
            return read(value)
    return None


def to_tree(value: object, other: Callable[[object], Tree] | None = None, depth: int = 0) -> Tree:
    """``value`` as a JSON tree. ``other`` turns what is not plain data into a tree, or raises NotPlain."""
    kind = type(value)
    if kind in _SIMPLE:
        return value
    if kind is int:
        assert isinstance(value, int)
        return value if -_PLAIN_INT < value < _PLAIN_INT else ["i", hex(value)]
    if depth >= MAX_DEPTH:
        raise TooDeep("nested too deep, or holds itself")
    if kind in _SEQUENCES:
        assert isinstance(value, (list, tuple, set, frozenset, collections.deque))
        return _sequence(_SEQUENCES[kind], value, other, depth)
    if kind in _DICTS:
        assert isinstance(value, dict)
        flat = [item for pair in dict.items(value) for item in pair]
        return _sequence(_DICTS[kind], flat, other, depth)
    return _rare(value, other)


def _sequence(tag: str, items: Iterable[object], other: Callable[[object], Tree] | None, depth: int) -> Tree:
    # Copied first: another thread of the program may change it meanwhile.
    items = list(items)
    kinds = set(map(type, items))
    if kinds <= _SIMPLE or (kinds == {int} and _all_short(items)):
        return [tag, *items]
    return [tag, *(to_tree(item, other, depth + 1) for item in items)]


def _all_short(integers: list[Any]) -> bool:
    smallest, largest = min(integers), max(integers)
    return bool(smallest > -_PLAIN_INT and largest < _PLAIN_INT)


def _rare(value: object, other: Callable[[object], Tree] | None) -> Tree:
    kind = type(value)
    if isinstance(value, bytes) and kind is bytes:
        return ["b", value.hex()]
    if isinstance(value, complex) and kind is complex:
        return ["c", value.real, value.imag]
    if isinstance(value, range) and kind is range:
        return ["r", *(to_tree(part) for part in (value.start, value.stop, value.step))]
    if isinstance(value, fractions.Fraction) and kind is fractions.Fraction:
        return ["F", to_tree(value.numerator), to_tree(value.denominator)]
    if kind in _VIEWS:
        return ["v", _VIEWS[kind], to_tree(list(value), other)]  # type: ignore[call-overload]
    if kind in _TIMES:
        return ["T", kind.__name__, *(to_tree(getattr(value, part)) for part in _TIMES[kind])]
    import decimal  # from C; a subclass of it is not it

    if isinstance(value, decimal.Decimal) and kind is decimal.Decimal:
        return ["D", str(value)]
    if isinstance(value, bytearray) and kind is bytearray:
        return ["y", value.hex()]
    if isinstance(value, datetime.timezone) and kind is datetime.timezone:
        return ["T", "timezone", to_tree(value.utcoffset(None))]
    return _of_others(value, other)


def _of_others(value: object, other: Callable[[object], Tree] | None) -> Tree:
    """Types of modules that may not be loaded, and what is no plain data."""
    kind = type(value)
    if kind.__name__ in _TEXTS and _TEXTS[kind.__name__]() is kind:
        return ["P", kind.__name__, str(value)]
    if kind.__module__ == "numpy" and "numpy" in sys.modules:
        return _of_numpy(value, other)
    if other is not None:
        return other(value)
    base = base_of(value)
    if base is None:
        raise NotPlain(f"a {kind.__name__} is not plain data"[:200])
    return to_tree(base)


def _of_numpy(value: Any, other: Callable[[object], Tree] | None) -> Tree:
    numpy: Any = sys.modules["numpy"]
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biufcUS":
        return ["a", str(value.dtype), to_tree(value.tolist())]
    plain = value.item() if isinstance(value, numpy.generic) else value
    if type(plain) is not type(value) and type(plain) in {bool, int, float, complex, str, bytes}:
        return to_tree(plain)
    if other is not None:
        return other(value)
    raise NotPlain(f"a {type(value).__name__} of numpy is not plain data"[:200])


def from_tree(tree: Tree, other: Callable[[list[object]], object] | None = None) -> object:
    """The value of a tree; ``other`` reads lists with an unknown tag. Raises NotPlain for what no ``to_tree`` made.

    Only for a jailed process: keys chosen to collide make building a set or dict slow.
    """
    if type(tree) is not list:
        if type(tree) in _SIMPLE or type(tree) is int:
            return tree
        raise NotPlain("malformed")
    if not tree or type(tree[0]) is not str:
        raise NotPlain("malformed")
    tag, *rest = tree
    try:
        if tag in _BUILD:
            items = [from_tree(item, other) if type(item) is list else item for item in rest]
            return _BUILD[tag](items)
        if other is not None:
            return other(tree)
    except (TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise NotPlain("malformed") from error
    raise NotPlain(f"unknown tag {tag!r}"[:80])


def _decimal(items: list[object]) -> object:
    import decimal

    return decimal.Decimal(str(items[0]))


def _of_pathlib(name: str) -> Callable[[], object]:
    return lambda: getattr(sys.modules.get("pathlib"), name, None)


#: Types that are built from their text: by name, where their module is loaded.
_TEXTS: dict[str, Callable[[], object]] = {
    "UUID": lambda: getattr(sys.modules.get("uuid"), "UUID", None),
    **{name: _of_pathlib(name) for name in ("PurePosixPath", "PosixPath", "PureWindowsPath")},
}


def _from_text(items: list[Any]) -> object:
    name, text = items
    if name not in _TEXTS:
        raise ValueError(name)
    module = "uuid" if name == "UUID" else "pathlib"
    return getattr(importlib.import_module(module), str(name))(str(text))


def _time(items: list[Any]) -> object:
    kind, *parts = items
    if kind not in ("datetime", "date", "time", "timedelta", "timezone"):
        raise ValueError(kind)
    return getattr(datetime, kind)(*parts)


def _view(items: list[Any]) -> object:
    kind, held = items
    if kind == "values":
        return dict(enumerate(held)).values()
    return dict.fromkeys(held).keys() if kind == "keys" else dict(held).items()


def _array(items: list[Any]) -> object:
    """An array where numpy is at hand, else its list."""
    numpy: Any = sys.modules.get("numpy")
    kind, values = items
    return values if numpy is None else numpy.array(values, dtype=str(kind))


_BUILD: dict[str, Callable[[list[Any]], object]] = {
    "l": lambda items: items,
    "t": tuple,
    "s": set,
    "f": frozenset,
    "q": collections.deque,
    "d": lambda items: dict(zip(items[::2], items[1::2], strict=True)),
    "i": lambda items: int(str(items[0]), 16),
    "b": lambda items: bytes.fromhex(str(items[0])),
    "c": lambda items: complex(*items),
    "r": lambda items: range(*items),
    "F": lambda items: fractions.Fraction(*items),
    "D": _decimal,
    "y": lambda items: bytearray.fromhex(str(items[0])),
    "T": _time,
    "v": _view,
    "P": _from_text,
    "O": lambda items: collections.OrderedDict(zip(items[::2], items[1::2], strict=True)),
    "C": lambda items: collections.Counter(dict(zip(items[::2], items[1::2], strict=True))),
    "a": _array,
}


def dumps(tree: Tree) -> bytes:
    """The bytes of a tree."""
    return json.dumps(tree, separators=(",", ":"), check_circular=False).encode("ascii")


def loads(data: bytes) -> Tree:
    """The tree of some bytes. Raises NotPlain for bytes that are none, or nested beyond all measure."""
    try:
        tree: Tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotPlain("malformed") from error
    level = [tree]
    for _ in range(MAX_DEPTH + 8):  # a job or an answer wraps its value a little
        level = [item for one in level if type(one) in {list, dict} for item in _children(one)]
        if not level:
            return tree
    raise TooDeep("nested too deep")


def _children(one: Any) -> Iterable[Tree]:
    children: Iterable[Tree] = one.values() if type(one) is dict else one
    return children

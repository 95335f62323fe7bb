"""Is a program's output the expected one? Trusted code over untrusted text and trees: linear, no hashing of theirs."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rlreason.rewards.jail.data import NotPlain, Tree, to_tree

#: An integer as it is written; a word with leading zeros is digits, and no number.
_INTEGER = re.compile(rb"-?(?:0|[1-9]\d*)")
_WHOLE = re.compile(rb"(-?(?:0|[1-9]\d*))\.0*")
_NUMBER = re.compile(rb"-?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,4})?")
_LONGEST_NUMBER = 1000
#: Absolute, or relative to the expected value where that is larger than 1: what most contests allow.
TOLERANCE = 1e-6


def same_output(expected: str, output: bytes, *, lines: bool = True) -> bool:
    """Equal word by word, line by line unless ``lines`` is False; empty lines and other white space do not count.

    A word that is a decimal fraction in the expected output may differ by ``TOLERANCE``; an integer may be written as
    ``5.0``. Words with leading zeros are text.
    """
    wanted_text = expected.encode("utf-8", "replace")
    wanted = wanted_text.split()
    found = output.split(None, len(wanted))  # no more words than it takes to see that there are too many
    if len(wanted) != len(found):
        return False
    if wanted != found and not all(a == b or _same_number(a, b) for a, b in zip(wanted, found, strict=True)):
        return False
    return not lines or _words_per_line(wanted_text) == _words_per_line(output)


def _words_per_line(text: bytes) -> list[int]:
    return [count for line in text.splitlines() if (count := len(line.split()))]


def _same_number(wanted: bytes, found: bytes) -> bool:
    if len(wanted) > _LONGEST_NUMBER or len(found) > _LONGEST_NUMBER:
        return False
    if _INTEGER.fullmatch(wanted):
        whole = _WHOLE.fullmatch(found)
        return whole is not None and whole[1] == wanted
    if not (_NUMBER.fullmatch(wanted) and _NUMBER.fullmatch(found)):
        return False
    a, b = float(wanted), float(found)
    return math.isfinite(b) and abs(a - b) <= TOLERANCE * max(1.0, abs(a))


def same_value(expected: object, tree: Tree, tolerance: float = 0.0) -> bool:
    """Whether the value that ``tree`` stands for (see ``jail.data``) equals ``expected`` as Python's ``==`` has it.

    Differences: ``True`` is not ``1``, nor the other way round; nan equals an expected nan; with a ``tolerance``,
    floats and ints may differ by it, absolutely or relative to the expected value. And three that come from JSON, which
    has one spelling for each pair: ``1`` and ``1.0`` are equal; where a list is expected, a tuple or an array will do;
    where a dict's keys are text, integers will do (``{"1": 2}`` for ``{1: 2}``). An expected tuple is no list.
    """
    if isinstance(expected, float) and math.isnan(expected):
        return type(tree) is float and math.isnan(tree)
    if expected is None or isinstance(expected, (str, bool)):
        return type(tree) is type(expected) and tree == expected
    if isinstance(expected, (int, float)):
        return _same_scalar(expected, tree, tolerance)
    if type(tree) is not list or not tree:
        return False
    if isinstance(expected, list) and tree[0] == "a" and len(tree) == 3:
        return same_value(expected, tree[2], tolerance)
    if isinstance(expected, (list, tuple)):
        items = tree[1:]
        if tree[0] not in (("l", "t") if isinstance(expected, list) else ("t",)) or len(items) != len(expected):
            return False
        return all(same_value(a, b, tolerance) for a, b in zip(expected, items, strict=True))
    if isinstance(expected, dict):
        return tree[0] in ("d", "O", "C") and _same_dict(expected, tree[1:], tolerance)
    if isinstance(expected, (set, frozenset)):
        return tree[0] in {"s", "f"} and _same_set(expected, tree[1:])
    return _same_rare(expected, tree)


def _scalar(tree: Tree) -> bool:
    return tree is None or type(tree) in {str, bool, int, float}


def _same_scalar(expected: float, tree: Tree, tolerance: float) -> bool:
    if type(tree) is list:
        if len(tree) == 2 and tree[0] == "i" and type(tree[1]) is str and isinstance(expected, int):
            return tree[1] == hex(expected)
        return False
    if type(tree) not in {int, float}:
        return False
    assert isinstance(tree, (int, float))
    if tree == expected:
        return True
    try:
        return tolerance > 0 and abs(tree - expected) <= tolerance * max(1.0, abs(expected))
    except OverflowError:
        return False


def _same_dict(expected: dict[object, object], flat: Sequence[Tree], tolerance: float) -> bool:
    if len(flat) != 2 * len(expected):
        return False
    values = {_hashable(key): value for key, value in expected.items()}
    seen = set()  # of expected keys
    # Looked up in the expected dict: a table of theirs could be built of colliding keys.
    for key_tree, value_tree in zip(flat[::2], flat[1::2], strict=True):
        key = _key(key_tree)
        if key is not None and type(key[0]) is int and key[0] not in values:  # as JSON writes integer keys
            key = (_as_text(key[0]),)
        if key is None or key[0] not in values or not same_value(values[key[0]], value_tree, tolerance):
            return False
        seen.add(key[0])
    return len(seen) == len(expected)


def _as_text(key: int) -> str:
    return str(key) if abs(key) < 1 << 256 else hex(key)


def _same_set(expected: frozenset[object] | set[object], items: Sequence[Tree]) -> bool:
    if len(items) != len(expected):
        return False
    wanted = {_hashable(item) for item in expected}
    seen = set()
    for item in items:
        key = _key(item)
        if key is None or key[0] not in wanted:
            return False
        seen.add(key[0])
    return len(seen) == len(expected)


def _hashable(value: object) -> object:
    """``value`` as a key that tells ``True`` from ``1``."""
    if isinstance(value, bool):
        return (bool, value)
    return tuple(map(_hashable, value)) if isinstance(value, tuple) else value


def _key(tree: Tree) -> tuple[object] | None:
    """``_hashable`` of the value, in a one-tuple; None for what is no scalar or tuple of such."""
    if _scalar(tree):
        return (_hashable(tree),)
    if type(tree) is list and tree and tree[0] == "t":
        parts = [_key(item) for item in tree[1:]]
        if all(part is not None for part in parts):
            return (tuple(part[0] for part in parts if part is not None),)
    if type(tree) is list and len(tree) == 2 and tree[0] == "i" and type(tree[1]) is str:
        try:
            return (int(tree[1], 16),)
        except ValueError:
            return None
    return None


def _same_rare(expected: object, tree: list[Tree]) -> bool:
    """bytes, complex, ranges, fractions: one spelling each."""
    try:
        return to_tree(expected) == tree
    except NotPlain:
        return False

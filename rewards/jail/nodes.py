"""Linked objects that cross by what they hold: nodes of lists, trees and graphs, shared and circular as they are.

Both sides know their class by name: from the problem's header, or LeetCode's ``ListNode`` and ``TreeNode``. A message
carries a table ``[[class, name, tree, name, tree, ...], ...]``; in its trees ``["p", index]`` stands for an entry.
Entries of an answer go by the numbers of its question, so that the asker's own objects are brought up to date.
Standard library only: loaded in the zygote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain, Tree

_MOST = 200_000


class Table:
    """The objects of one question and its answer. ``classes``: what crosses, by name."""

    def __init__(self, classes: Mapping[str, type], other: Callable[[object], Tree]) -> None:
        self._classes = classes
        self._other = other
        self._numbers: dict[int, int] = {}
        self.objects: list[object] = []

    def to_tree(self, value: object) -> Tree:
        """As ``data.to_tree``, with known objects by number. ``entries`` follows when all is packed."""
        return jail_data.to_tree(value, self._number)

    def _number(self, value: object) -> Tree:
        if id(value) in self._numbers:
            return ["p", self._numbers[id(value)]]
        kind = type(value)
        if kind.__name__ not in self._classes or self._classes[kind.__name__] is not kind:
            return self._other(value)
        self._add(value)
        return ["p", len(self.objects) - 1]

    def _add(self, value: object) -> None:
        if len(self.objects) >= _MOST:
            raise NotPlain(f"more than {_MOST} linked objects")
        self._numbers[id(value)] = len(self.objects)
        self.objects.append(value)

    def entries(self) -> list[Tree]:
        """The table: grows while it is packed, as objects lead to others."""
        packed: list[Tree] = []
        for value in self.objects:
            entry: list[Tree] = [type(value).__name__]
            for name, held in _state(value).items():
                entry += [name, self.to_tree(held)]
            packed.append(entry)
        return packed

    def unpack(self, entries: list[Tree], other: Callable[[list[object]], object]) -> Callable[[Tree], object]:
        """Bring the objects up to date with ``entries``, new ones made. Gives the reader of the message's trees."""
        if len(entries) > _MOST:
            raise NotPlain(f"more than {_MOST} linked objects")
        for entry in entries[len(self.objects) :]:
            if type(entry) is not list or not entry or entry[0] not in self._classes:
                raise NotPlain("unknown class")
            kind: Any = self._classes[str(entry[0])]
            self._add(kind.__new__(kind))

        def resolve(tree: list[object]) -> object:
            if tree[0] == "p" and type(tree[1]) is int and 0 <= tree[1] < len(self.objects):
                return self.objects[tree[1]]
            return other(tree)

        def read(tree: Tree) -> object:
            return jail_data.from_tree(tree, resolve)

        for value, entry in zip(self.objects, entries, strict=False):
            assert isinstance(entry, list)
            for name, held in zip(entry[1::2], entry[2::2], strict=True):
                setattr(value, str(name), read(held))
        return read


def _state(value: object) -> dict[str, object]:
    state: dict[str, object] = {}
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            try:
                state[name] = getattr(value, name)
            except AttributeError:
                continue
    state.update(vars(value) if "__dict__" in dir(value) else {})
    return {name: held for name, held in state.items() if name not in ("__dict__", "__weakref__")}


def crossing(names: Mapping[str, object], module: str) -> dict[str, type]:
    """The classes among ``names`` that were defined in ``module`` and whose instances can cross by what they hold."""
    return {
        name: value
        for name, value in names.items()
        if isinstance(value, type)
        and value.__module__ == module
        and value.__name__ == name
        and type(value) is type
        and all(base is object or base.__module__ == module for base in value.__mro__)
    }

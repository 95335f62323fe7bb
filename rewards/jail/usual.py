"""The header that public graders put before every function: names that a program or its tests may use unasked.

LiveCodeBench, APPS and LeetCodeDataset run answers under star imports of the modules below, so models leave the imports
out. Only names that are really used are bound. The linked lists and trees of LeetCode's tests are here too: a
comparison that the tests call must never be the program's own.
Standard library only: loaded in the zygote.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import types
import typing
from collections import deque
from collections.abc import Iterable

#: Later ones win, as they do after star imports; a module's own name wins over all.
_MODULES = str.split(
    "typing operator string re datetime heapq bisect copy math random statistics itertools functools io json "
    "collections"
)
_BUILT_IN = frozenset(vars(builtins))
RECURSION_LIMIT = 50_000


class ListNode:
    """A node of a linked list, as LeetCode has it."""

    def __init__(self, val: object = 0, next: ListNode | None = None) -> None:  # noqa: A002
        self.val = val
        self.next = next


class TreeNode:
    """A node of a binary tree, as LeetCode has it."""

    def __init__(self, val: object = 0, left: TreeNode | None = None, right: TreeNode | None = None) -> None:
        self.val = val
        self.left = left
        self.right = right


def list_node(values: Iterable[object] | None) -> ListNode | None:
    """``[1, 2]`` as a linked list; None for an empty one."""
    head = None
    for value in reversed(list(values or ())):
        head = ListNode(value, head)
    return head


def tree_node(values: Iterable[object] | None) -> TreeNode | None:
    """``[1, None, 2]``, level by level with None for a missing child, as a tree."""
    rest = deque(values or ())
    if not rest or rest[0] is None:
        return None
    root = TreeNode(rest.popleft())
    level = deque([root])
    while rest:
        node = level.popleft()
        for side in ("left", "right"):
            value = rest.popleft() if rest else None
            if value is not None:
                child = TreeNode(value)
                setattr(node, side, child)
                level.append(child)
    return root


def is_same_list(one: ListNode | None, other: ListNode | None) -> bool:
    """Whether two linked lists hold the same values."""
    while one is not None and other is not None:
        if one.val != other.val:
            return False
        one, other = one.next, other.next
    return one is None and other is None


def is_same_tree(one: TreeNode | None, other: TreeNode | None) -> bool:
    """Whether two trees hold the same values at the same places."""
    waiting = [(one, other)]
    while waiting:
        a, b = waiting.pop()
        if a is None or b is None:
            if a is not b:
                return False
        elif a.val != b.val:
            return False
        else:
            waiting += [(a.left, b.left), (a.right, b.right)]
    return True


#: Classes whose instances cross by what they hold.
NODES = {"ListNode": ListNode, "TreeNode": TreeNode}
HELPERS: dict[str, object] = {
    **NODES,
    "list_node": list_node,
    "tree_node": tree_node,
    "is_same_list": is_same_list,
    "is_same_tree": is_same_tree,
}


def _table() -> dict[str, object]:
    names: dict[str, object] = {}
    for name in _MODULES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [one for one in vars(module) if not one.startswith("_")]
        names.update((one, getattr(module, one)) for one in public if one not in _BUILT_IN)
    names.update((name, importlib.import_module(name)) for name in _MODULES)
    names.update(sys=sys, maxsize=sys.maxsize, setrecursionlimit=sys.setrecursionlimit)
    return {**names, **HELPERS}


NAMES = _table()


def code_names(code: types.CodeType) -> set[str]:
    """Every name that ``code`` or code in it uses as a global or an attribute."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= code_names(constant)
    return found


def used_by(code: types.CodeType) -> dict[str, object]:
    """The names of the header that ``code`` may mean."""
    return {name: NAMES[name] for name in code_names(code) & NAMES.keys()}


def for_tests(names: set[str], called: set[str]) -> dict[str, object]:
    """Those of ``names`` that tests mean by themselves: modules, classes, constants and helpers. ``called``: by name.

    Not the functions: ``gcd`` or ``product`` in a test is most likely what the program was asked for.
    """
    return {name: NAMES[name] for name in names & NAMES.keys() if _is_of_tests(name, called)}


def _is_of_tests(name: str, called: set[str]) -> bool:
    if name in HELPERS or name in _FOR_TESTS:
        return True
    if isinstance(NAMES[name], types.ModuleType):
        return name not in called
    if name[0].isupper():
        return isinstance(NAMES[name], type) or name in typing.__all__
    return isinstance(NAMES[name], (str, float)) and name != "e"


_FOR_TESTS = {"isclose", "deque", "defaultdict"}

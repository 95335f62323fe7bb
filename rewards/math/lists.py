"""Lists of answers: in order, and as multisets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlreason.rewards.math.evaluate import Undecided
from rlreason.rewards.math.tree import Node, canonical, walk
from rlreason.rewards.math.values import Options, constant

Equal = Callable[[Node, Node, Options], bool | None]


def in_order(a: Sequence[Node], b: Sequence[Node], options: Options, equal: Equal) -> bool | None:
    if len(a) != len(b):
        return False
    undecided = False
    for x, y in zip(a, b, strict=True):
        same = equal(x, y, options)
        if same is False:
            return False
        undecided |= same is None
    return None if undecided else True


def distinct(items: list[Node]) -> list[Node]:
    seen: dict[Node, Node] = {}
    for item in items:
        seen.setdefault(canonical(item), item)
    return list(seen.values())


def match(left: list[Node], right: list[Node], options: Options, equal: Equal) -> bool | None:
    """One-to-one matching. Equal canonical forms first; a rough value keeps the rest from being compared all to all."""
    if len(left) != len(right):
        return False
    rest = {i: canonical(r) for i, r in enumerate(right)}
    open_left = []
    for item in left:
        form = canonical(item)
        hit = next((i for i, r in rest.items() if r == form), None)
        if hit is None:
            open_left.append(item)
        else:
            del rest[hit]
    sizes = {i: _rough(right[i]) for i in rest}
    undecided = False
    for item in open_left:
        size, hit = _rough(item), None
        for i in rest:
            if size is not None and sizes[i] is not None and abs(size - sizes[i]) > 1e-6 * (1 + abs(size)):  # type: ignore[operator]
                continue
            same = equal(item, right[i], options)
            undecided |= same is None
            if same:
                hit = i
                break
        if hit is None:
            return None if undecided else False
        del rest[hit]
    return True


def _rough(node: Node) -> complex | None:
    """Double-precision value of a constant item, None for anything else."""
    if node.kind in ("named", "unit", "percent", "degree", "text", "relation", "group", "matrix", "ratio"):
        return None
    if any(n.kind in ("percent", "degree", "sym") or n.value == "log?" for n in walk(node)):
        return None
    try:
        return complex(constant(node))
    except (Undecided, OverflowError):
        return None

"""Matrices written as products, sums and transposes, worked out."""

from __future__ import annotations

from rlreason.rewards.math.tree import MathError, Node, add, mul

TRANSPOSE = (Node("sym", (), "T"), Node("sym", (), "\\top"))


def transposed(power: Node) -> Node:
    """``A^T`` of a matrix, and the column of ``(1, 2)^T``; anything else stays a power."""
    base = power.args[0]
    if base.kind == "group" and base.value in ("()", "[]") and len(base.args) > 1:
        return Node("matrix", base.args, (len(base.args), 1))
    if base.kind != "matrix":
        return power
    rows, columns = _shape(base)
    cells = tuple(base.args[r * columns + c] for c in range(columns) for r in range(rows))
    return Node("matrix", cells, (columns, rows))


def matrix_arithmetic(node: Node) -> Node:
    total = node.args[0]
    for arg in node.args[1:]:
        total = _add_matrices(total, arg) if node.kind == "add" else _multiply(total, arg)
    return total


def _shape(node: Node) -> tuple[int, int]:
    assert isinstance(node.value, tuple)
    return int(node.value[0]), int(node.value[1])


def _add_matrices(a: Node, b: Node) -> Node:
    if a.kind != "matrix" or b.kind != "matrix" or a.value != b.value:
        raise MathError("a sum of matrices of different shapes")
    return Node("matrix", tuple(add(x, y) for x, y in zip(a.args, b.args, strict=True)), a.value)


def _multiply(a: Node, b: Node) -> Node:
    if a.kind != "matrix" and b.kind != "matrix":
        return mul(a, b)
    if a.kind != "matrix":
        return Node("matrix", tuple(mul(a, c) for c in b.args), b.value)
    if b.kind != "matrix":
        return Node("matrix", tuple(mul(b, c) for c in a.args), a.value)
    (rows, inner), (other, columns) = _shape(a), _shape(b)
    if inner != other or rows * columns * inner > 500:
        raise MathError("a product of matrices of unfit shapes")
    cells = tuple(
        add(*(mul(a.args[r * inner + k], b.args[k * columns + c]) for k in range(inner)))
        for r in range(rows)
        for c in range(columns)
    )
    return Node("matrix", cells, (rows, columns))

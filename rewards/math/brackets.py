"""What stands in brackets and environments: tuples, intervals, sets, matrices, cases, aligned lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlreason.rewards.math.tokens import END, Token
from rlreason.rewards.math.tree import EMPTY, MathError, Node, call, group
from rlreason.rewards.math.words import word_set

if TYPE_CHECKING:
    from rlreason.rewards.math.parse import _Parser

_MATRICES = word_set("matrix pmatrix bmatrix Bmatrix smallmatrix array psmallmatrix bsmallmatrix")
_DETERMINANTS = frozenset({"vmatrix", "Vmatrix"})
#: Lines, not cells: ``&`` only says what stands below what.
_ALIGNED = word_set("aligned align split gathered gather eqnarray alignat alignedat multline equation")
_MAX_CELLS = 100


def closed(parser: _Parser, opening: str) -> Node:
    """Everything in brackets: parentheses, tuples, intervals, lists."""
    if parser.next.text in (")", "]"):
        return group(opening + parser.take().text, ())
    parser.outward += opening == "]"
    items, separators = parser.items()
    parser.outward -= opening == "]"
    closing = parser.expect(")", "]", "[") if opening == "]" else parser.expect(")", "]")
    brackets = ("(" if opening == "]" else opening) + (")" if closing == "[" else closing)
    if len(items) == 1 and not separators and (brackets == "()" or items[0].kind == "matrix"):
        return parser.applied(items[0]) if "∘" in str(items[0].value) else items[0]
    return group(brackets, items)


def braced(parser: _Parser) -> Node:
    """``\\{…\\}``: a set, or a set given by a condition. A brace before lines is a system or cases."""
    if parser.next.kind == "begin" and parser.next.text in _ALIGNED | {"array", "matrix", "cases"}:
        node = _cases(parser, parser.take())
        if parser.next.text == "\\}":
            parser.take()
        return node
    parser.braces += 1
    if parser.next.text == "\\}":
        parser.take()
        parser.braces -= 1
        return EMPTY
    items, _ = parser.items()
    if len(items) == 1 and items[0].kind == "ratio" and items[0].args[0].kind == "sym":
        head, tail = items[0].args[0], items[0].args[1]  # {x : x} reads as a ratio
        node = Node("builder", (head, tail))
    elif parser.next.text in ("|", ":"):
        parser.take()
        node = Node("builder", (items[0], parser.sequence("\\}")))
    else:
        node = group("{}", items)
    parser.expect("\\}", "}")
    parser.braces -= 1
    return _builder_of_ratio(node)


def _builder_of_ratio(node: Node) -> Node:
    """``{x : x > 2}`` arrives as the relation ``x:x > 2``, ``{x \\in R : x > 2}`` as ``x \\in R:x > 2``."""
    if node.kind != "group" or not node.args or node.args[0].kind != "relation":
        return node
    first, operators = node.args[0], node.args[0].value
    assert isinstance(operators, tuple)
    at = next((i for i, a in enumerate(first.args) if a.kind == "ratio" and len(a.args) == 2), None)
    if at is None or at > 1 or (at == 1 and operators[0] != "in") or at >= len(operators):
        return node
    left, right = first.args[at].args
    head = left if at == 0 else Node("relation", (*first.args[:at], left), operators[:at])
    condition = Node("relation", (right, *first.args[at + 1 :]), operators[at:])
    rest = node.args[1:]
    return Node("builder", (head, group("and", (condition, *rest)) if rest else condition))


def plain_braces(parser: _Parser) -> Node:
    """``{x}`` groups, ``{1,2}`` lists, ``{x | …}`` is a set without its backslashes."""
    if parser.next.text == "}":
        parser.take()
        return EMPTY
    parser.braces += 1
    inner = parser.sequence("}")
    if parser.next.text == "|":
        parser.take()
        inner = Node("builder", (inner, parser.sequence("}")))
    parser.expect("}")
    return inner


def environment(parser: _Parser, token: Token) -> Node:
    """``\\begin{…}`` up to its end."""
    if token.text == "cases":
        return _cases(parser, token)
    if token.text not in _MATRICES | _DETERMINANTS:
        return _lines(parser, token)
    rows = _cells(parser, token)
    if not rows or len({len(row) for row in rows}) != 1:
        raise MathError("the rows of the matrix differ in length")
    matrix = Node("matrix", tuple(cell for row in rows for cell in row), (len(rows), len(rows[0])))
    return call("det", matrix) if token.text in _DETERMINANTS else matrix


def _cells(parser: _Parser, token: Token, *, commas: bool = False) -> list[list[Node]]:
    rows: list[list[Node]] = [[]]
    empty = True
    while parser.next.kind != "end":
        text = parser.next.text
        if text == "&" or (commas and text in (",", ";", ".")):
            parser.take()
            empty = True
        elif text == "\\\\":
            parser.take()
            rows.append([])
            empty = True
        elif commas and (parser.next.kind == "cond" or text.lower() in _WHEN):
            parser.take()
            empty = True
        elif not empty or parser.next is END:
            raise MathError("a matrix cell holds two values")
        else:
            rows[-1].append(_condition(parser) if commas else parser.item())
            empty = False
        if sum(map(len, rows)) > _MAX_CELLS:
            raise MathError("the matrix is too large")
    parser.expect(token.text)
    return [row for row in rows if row]


_WHEN = word_set("if when for where as 当 若")
_ELSE = word_set("otherwise else elsewhere")


def _condition(parser: _Parser) -> Node:
    """One cell of cases: a formula, or a condition in words such as ``n is even``."""
    if parser.next.kind == "text" and parser.next.text.lower().strip(" .,") in _ELSE:
        parser.take()
        return Node("text", (), "otherwise")
    start = parser.at
    if parser.next.kind == "id" and parser.tokens[start + 1].kind == "text":
        name = parser.prefix(parser.take())
        words = parser.take().text.lower().strip(" .,")
        return Node("relation", (name, Node("text", (), words.removeprefix("is ").removeprefix("an "))), ("is",))
    return parser.item()


def _cases(parser: _Parser, token: Token) -> Node:
    """Values with their conditions, or a system: the lines of a system hold together."""
    _flatten(parser, token.text)
    rows = _cells(parser, token, commas=True)
    system = all(_is_equation(cell) for row in rows for cell in row)
    if system or all(len(row) == 1 for row in rows):
        return group("and", tuple(cell for row in rows for cell in row))
    return call("cases", *(group("()", tuple(row)) for row in rows))


def _is_equation(node: Node) -> bool:
    return node.kind == "relation" and isinstance(node.value, tuple) and set(node.value) == {"="}


def _flatten(parser: _Parser, name: str) -> None:
    """Alignment marks beside a sign or at the start of a line go; a line that begins with a sign continues."""
    end = next((i for i in range(parser.at, len(parser.tokens)) if _ends(parser.tokens[i], name)), None)
    if end is None:
        raise MathError("an environment is not closed")
    out: list[Token] = []
    inside = parser.tokens[parser.at : end]
    for i, token in enumerate(inside):
        before = out[-1] if out else Token("op", "\\\\")
        after = inside[i + 1] if i + 1 < len(inside) else END
        if token.text == "&" and (before.kind == "rel" or after.kind == "rel" or before.text == "\\\\"):
            continue
        if token.kind == "rel" and before.text == "\\\\" and out:
            out.pop()  # "\\\\ &= 42" goes on
        out.append(token)
    while out and out[-1].text in ("\\\\", ".", ","):
        out.pop()
    parser.tokens[parser.at : end] = out


def _ends(token: Token, name: str) -> bool:
    return token.kind == "end" and token.text == name


def _lines(parser: _Parser, token: Token) -> Node:
    """Aligned lines: a chain that goes on from line to line, or several statements."""
    _flatten(parser, token.text)
    rows = _cells(parser, token, commas=True)
    if any(len(row) != 1 for row in rows):
        return call("cases", *(group("()", tuple(row)) for row in rows))
    items = tuple(row[0] for row in rows)
    return items[0] if len(items) == 1 else group("and", items)

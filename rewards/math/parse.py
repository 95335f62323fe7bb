"""Tokens -> typed tree: a Pratt parser for LaTeX and plain notation. Nothing is evaluated here."""

from __future__ import annotations

import re
from collections.abc import Callable

from rlreason.rewards.math.behind import more_units, with_words
from rlreason.rewards.math.cursor import Cursor
from rlreason.rewards.math.notation import going_on, in_base, named_point, plain_bracket, proper_fraction, selections
from rlreason.rewards.math.tokens import END, Token, tokenize
from rlreason.rewards.math.tree import (
    MAX_DEPTH,
    MathError,
    Node,
    add,
    call,
    divide,
    group,
    mul,
    name_of,
    neg,
    num,
    power,
    rational,
    sym,
    too_large,
)
from rlreason.rewards.math.words import number_from_words

# Binding powers, weakest first.
_RATIO, _SET, _SUM, _MINUS, _PRODUCT, _POWER, _POSTFIX = 20, 30, 40, 49, 50, 70, 80
_INFIX = {
    ":": _RATIO, "\\cup": _SET, "\\cap": _SET, "\\setminus": _SET, "+": _SUM, "-": _SUM, "\\pm": _SUM, "\\mp": _SUM,
    "*": _PRODUCT, "/": _PRODUCT, "\\bmod": _PRODUCT, "\\mod": _PRODUCT, "\\choose": 11, "^": _POWER, "_": 90,
    "\\circ": 60, "!": _POSTFIX, "%": _POSTFIX, "deg": _POSTFIX, "'": _POSTFIX,
}  # fmt: skip
_SETS = frozenset({"numbers", "union", "minus", "group"})
_SET_KINDS = {"\\cup": "union", "\\cap": "inter", "\\setminus": "minus"}
_CLOSERS = frozenset({")", "]", "}", "\\}"})
_ORDINALS = frozenset({"st", "nd", "rd", "th"})
_MONEY = frozenset("$€£¥₹¢")
_FUNCTIONS = frozenset({"f", "g", "h"})
_STARTS = frozenset({"num", "literal", "id", "fn", "set", "begin", "scale"})
_NOT_STARTS = frozenset(_INFIX) | {"\\pmod", "\\rfloor", "\\rceil", "\\pm", "\\mp", "\\not"}


def parse(text: str, *, group_commas: bool = True) -> Node:
    """The tree of one answer. MathError if it is no mathematics that we read, or beyond the limits."""
    tokens = tokenize(text, group_commas=group_commas)
    while tokens and tokens[-1].text in (".", ",", ";", ":", "\\\\") and tokens[-1].kind == "op":
        tokens.pop()
    if not tokens:
        raise MathError("nothing to read")
    parser = _Parser(tokens)
    node = parser.sequence("")
    if parser.next.kind == "cond" and not any(t.kind in ("cond", "sep") for t in tokens[parser.at + 1 :]):
        parser.at = len(tokens)  # "…, where k is whole" says nothing that could be compared
    if parser.next is not END:
        raise MathError(f"unexpected {parser.next.text!r}")
    if parser.conditions:
        stated = node.args if node.kind == "group" and node.value == "" else (node,)
        node = group("", (*stated, *parser.conditions))
    if too_large(node):
        raise MathError("the answer has too many parts")
    return node


class _Parser(Cursor):
    """Position in the token list; ``bars`` counts open absolute values, ``braces`` open ``\\{``."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.depth = 0
        self.bars = 0
        self.braces = 0
        #: Open intervals that are written ``]1, 3[``.
        self.outward = 0
        self.integrals = 0
        #: Conditions in brackets behind a formula, as in ``1/x (x != 0)``.
        self.conditions: list[Node] = []

    def sequence(self, closers: str) -> Node:
        """Items up to a closing bracket: one item as itself, more as a bare group."""
        items, separators = self.items()
        if len(items) == 1 and (not separators or self.next.kind == "cond"):
            return items[0]
        if not items:
            raise MathError("nothing between brackets" if closers else "nothing to read")
        words = {s for s in separators if s in ("and", "or")}
        return group(words.pop() if len(words) == 1 and len(set(separators)) == 1 else "", items)

    def items(self) -> tuple[tuple[Node, ...], list[str]]:
        items: list[Node] = []
        separators: list[str] = []
        chunk = 0
        while (
            self.next is not END
            and self.next.kind != "cond"
            and (self.next.text not in _CLOSERS or (self.next.text == "]" and self.at == 0))
        ):
            items.append(self.item())
            found = self.separators()
            if ";" in found and "," in separators:
                # p=5,q=2;p=7,q=2: commas bind tighter than semicolons
                items[chunk:] = [group("", tuple(items[chunk:]))]
                chunk = len(items)
            separators.extend(found)
            if not found:
                break
        if 0 < chunk < len(items) - 1:
            items[chunk:] = [group("", tuple(items[chunk:]))]
        return tuple(items), separators

    def item(self) -> Node:
        """A relation chain, or a single operand."""
        if self.next.kind == "rel" and self.next.text in ("=", "~"):
            self.take()  # "= 5" and "≈ 5" in a box
        operands, operators = [self.operand()], []
        while self.next.kind == "rel" or self.next.text == "\\not":
            token = self.take()
            if token.text == "\\not":
                token = self.take()
                operators.append("notin" if token.text == "in" else "!=")
            else:
                operators.append(token.text)
            operands.append(self.operand())
        if not operators:
            return operands[0]
        return Node("relation", tuple(operands), tuple(operators))

    def operand(self) -> Node:
        """An expression with what may stand behind it: a unit, a currency sign, ``\\pmod{n}``."""
        left = self.expression(10)
        token = self.next
        if token.kind == "text" and left.kind != "text":
            unit = self.unit()
            if any(c.isdigit() for c in re.sub(r"\^\{?-?\d\}?", "", unit)):
                raise MathError("a number in a label")
            return more_units(self, with_words(left, unit))
        if token.text in _MONEY and token.kind == "op":
            return Node("unit", (left,), self.take().text)
        if token.text == "\\pmod":
            self.take()
            return call("pmod", left, self.argument())
        return left

    def expression(self, power: int) -> Node:
        """Pratt's loop: a prefix, then operators that bind tighter than ``power``."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise MathError("nested too deep")
        left = self.prefix(self.take())
        while True:
            token = self.next
            strength = _INFIX.get(token.text, 0) if token.kind in ("op", "cmd") else 0
            if strength > power:
                self.take()
                left = self.infix(left, token)
            elif power < _PRODUCT and self.multiplies(left, token):
                left = self.implicit(left, token)
            else:
                break
        self.depth -= 1
        return left

    def multiplies(self, left: Node, token: Token) -> bool:
        """Does ``token`` begin a factor written without a sign?"""
        if token.kind in _STARTS:
            return True
        if token.kind == "cmd":
            return token.text not in _NOT_STARTS
        if token.kind != "op":
            return False
        if token.text == "|":
            return self.bars == 0 and self.braces == 0
        return token.text in ("(", "{", "...") or (token.text == "[" and not self.outward)

    def implicit(self, left: Node, token: Token) -> Node:
        if left.kind in ("text", "relation") or (token.kind in ("num", "literal") and left.kind in ("num", "decimal")):
            raise MathError("two values stand side by side")
        if left.kind in ("percent", "group") or (left.kind == "degree" and token.kind == "num"):
            return self.after_closed(left, token)
        if token.text == "..." and left.kind == "decimal":
            self.take()
            return going_on(left)
        if left.kind == "degree" and token.text in ("C", "F"):
            return Node("unit", left.args, "°" + self.take().text)
        if token.kind == "scale":
            return mul(left, num(int(self.take().text)))
        left, right = plain_bracket(left), plain_bracket(self.expression(_PRODUCT))
        if right.kind == "relation":
            self.conditions.append(right)
            return left
        whole = rational(left)
        if token.text == "\\frac" and whole is not None and whole.denominator == 1 and left.kind == "num":
            percent = right.kind == "percent"
            part = proper_fraction(right.args[0] if percent else right)
            if part is not None:
                mixed = num(whole + part)
                return Node("percent", (mixed,)) if percent else mixed
        return mul(left, right)

    def after_closed(self, left: Node, token: Token) -> Node:
        """``30^\\circ 15'`` and products of groups; ``5% 6`` is nothing."""
        if left.kind == "degree" and self.tokens[self.at + 1].text == "'":
            minutes = rational(self.prefix(self.take()))
            self.take()
            if minutes is None:
                raise MathError("strange minutes")
            return add(left, Node("degree", (num(minutes / 60),)))
        if left.kind == "percent" and token.kind in ("num", "literal"):
            raise MathError("a number follows a percentage")
        if token.text == "U" and token.kind == "id":
            self.take()
            return Node("union", (left, self.expression(_SET)))
        right = plain_bracket(self.expression(_PRODUCT))
        if right.kind == "relation":
            self.conditions.append(right)
            return left
        return mul(plain_bracket(left), right)

    def infix(self, left: Node, token: Token) -> Node:
        text = token.text
        if left.kind == "text":
            raise MathError("text is not a number")
        if text == "^":
            return self.raised(left)
        if text in ("!", "%", "deg", "'", "_"):
            return self.postfix(left, text)
        right = self.expression(_INFIX[text])
        if text == "\\circ":
            if {left.value, right.value} - _FUNCTIONS:
                raise MathError("a circle between what are no functions")
            return sym(f"{left.value}∘{right.value}")
        if text != ":" and text not in _SET_KINDS:
            left, right = plain_bracket(left), plain_bracket(right)
        if text == "-" and right.kind == "group" and right.value == "{}" and left.kind in _SETS:
            return Node("minus", (left, right))
        if text == ":":
            items = left.args if left.kind == "ratio" else (left,)
            return Node("ratio", (*items, right))
        if text in _SET_KINDS:
            return Node(_SET_KINDS[text], (left, right))
        builders: dict[str, Callable[[Node, Node], Node]] = {
            "+": add, "*": mul, "/": divide, "-": lambda a, b: add(a, neg(b)),
            "\\pm": lambda a, b: Node("pm", (a, b)), "\\mp": lambda a, b: Node("mp", (a, b)),
            "\\bmod": lambda a, b: call("mod", a, b), "\\mod": lambda a, b: call("mod", a, b),
            "\\choose": lambda a, b: call("binom", a, b),
        }  # fmt: skip
        return builders[text](left, right)

    def postfix(self, left: Node, text: str) -> Node:
        if text == "_":
            return self.subscript(left)
        if text == "!":
            if self.next.text == "!":
                self.take()
                return call("factorial2", left)
            return call("factorial", left)
        if text == "'":
            if left.kind != "sym":
                raise MathError("a prime without a name")
            return self.applied(sym(name_of(left) + "'"))
        return Node("percent" if text == "%" else "degree", (left,))

    def raised(self, left: Node) -> Node:
        left = plain_bracket(left)
        if self.next.text == "\\circ" or (self.next.text == "{" and self.tokens[self.at + 1].text in ("\\circ", "deg")):
            self.at += 3 if self.next.text == "{" else 1
            return Node("degree", (left,))
        if self.next.text == "deg":
            self.take()
            return Node("degree", (left,))
        if self.next.text in ("'", "\\prime"):
            self.take()
            return self.postfix(left, "'")
        if self.next.text in ("*", "+") and left.kind in ("sym", "numbers"):
            return Node(left.kind, (), f"{left.value}^{self.take().text}")
        if self.next.text in _ORDINALS:
            self.take()
            return left
        if self.next.text == "{" and self.tokens[self.at + 1].text in _ORDINALS | {"*", "+"}:
            mark = self.tokens[self.at + 1].text
            self.at += 2
            self.expect("}")
            return left if mark.isalpha() else Node(left.kind, left.args, f"{left.value}^{mark}")
        exponent = self.exponent()
        if left.kind == "sym" and left.value in _FUNCTIONS and rational(exponent) == -1 and self.next.text == "(":
            return self.applied(sym(f"{left.value}^-1"))
        return selections(left, exponent) or power(left, exponent)

    def exponent(self) -> Node:
        """``^{…}``, ``^2``, ``^-1``, ``^(1/2)``; right-associative: ``2^3^4`` is ``2^(3^4)``."""
        if self.next.text == "-":
            self.take()
            return neg(self.exponent())
        if self.next.text == "{":
            base = self.argument()
        elif self.next.text == "(":
            base = self.prefix(self.take())
        else:
            return self.expression(_POWER - 1) if self.next.kind != "cmd" else self.prefix(self.take())
        if self.next.text == "^":
            self.take()
            return power(base, self.exponent())
        return base

    def subscript(self, left: Node) -> Node:
        """``x_1`` is a name; ``1011_2`` a number in base 2."""
        index = self.index()
        value = rational(left)
        if left.kind == "num" and value is not None:
            base = index.lower().removeprefix("base").strip()
            base = base if base.isdigit() else str(number_from_words(base))
            return num(in_base(str(value), int(base) if base.isdigit() else 0))
        if left.kind == "sym":
            return self.applied(sym(f"{left.value}_{index}"))
        if left.kind == "const":
            return sym(f"{left.value}_{index}")
        raise MathError("a subscript without a name")

    def argument(self) -> Node:
        """A TeX argument: a braced group, or one token; of an unbraced number only the first digit."""
        token = self.next
        if token.text == "{" and token.kind == "op":
            self.take()
            node = self.sequence("}")
            self.expect("}")
            return plain_bracket(node)
        if token.kind == "num" and len(token.text) > 1 and token.text.isdigit():
            self.tokens[self.at] = token._replace(text=token.text[1:], spaced=False)
            return num(int(token.text[0]))
        if token is END or token.text in _CLOSERS:
            raise MathError("an argument is missing")
        return self.prefix(self.take())

    def prefix(self, token: Token) -> Node:
        # Imported late: the two modules are one parser in two files.
        from rlreason.rewards.math.prefix import prefix

        return prefix(self, token)

    def applied(self, symbol: Node) -> Node:
        """``f(x)`` as an application where the name is one of a function, or where it is being defined (``W(n) = 1``);
        elsewhere a letter before a parenthesis multiplies."""
        if self.next.text != "(" or self.next.spaced:
            return symbol
        before = self.tokens[self.at - 2] if self.at >= 2 else END
        stem = name_of(symbol).partition("_")[0]
        known = stem in _FUNCTIONS or stem.endswith(("'", "^-1")) or "∘" in stem
        if not known and before is not END and before.kind not in ("rel", "sep") and before.text not in (",", ";"):
            return symbol
        start = self.at
        self.take()
        try:
            inner = self.sequence(")")
            self.expect(")")
        except MathError:
            if known:
                raise
            self.at = start
            return symbol
        if not known and self.next.text != "=":
            point = named_point(symbol, inner)
            if point is None:
                self.at = start
            return point or symbol
        arguments = inner.args if inner.kind == "group" else (inner,)
        *outer, last = name_of(symbol).split("∘")  # (f∘g)(x) is f(g(x))
        node = call(f"{last}()", *arguments)
        for name in reversed(outer):
            node = call(f"{name}()", node)
        return node

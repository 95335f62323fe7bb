"""What an expression can begin with: the prefix half of the parser in ``parse``."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from rlreason.rewards.math.brackets import braced, closed, environment, plain_braces
from rlreason.rewards.math.labels import retracts
from rlreason.rewards.math.notation import differential, plain_bracket
from rlreason.rewards.math.tokens import END, Token
from rlreason.rewards.math.tree import (
    EMPTY,
    HALF,
    INFINITY,
    MathError,
    Node,
    call,
    const,
    divide,
    group,
    mul,
    name_of,
    neg,
    num,
    power,
    rational,
    sym,
)
from rlreason.rewards.math.words import word_set

if TYPE_CHECKING:
    from rlreason.rewards.math.parse import _Parser

_BIG = frozenset({"\\sum", "\\prod", "\\int", "\\lim", "\\oint", "\\iint"})
#: Nested integrals whose integrand is looked for behind a sum: each looks twice.
_MAX_INTEGRALS = 3
_TERM, _SIGN, _FACTOR, _POWER = 39, 49, 50, 69
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec", "csc": "arccsc"}


def prefix(parser: _Parser, token: Token) -> Node:
    """The node that ``token`` begins."""
    handler = _BY_KIND.get(token.kind)
    if handler is None:
        raise MathError(f"unexpected {token.text!r}" if token.text else "the answer breaks off")
    return handler(parser, token)


def _number(parser: _Parser, token: Token) -> Node:
    value = _value(token.text)
    if value.kind == "num" and parser.next.kind == "num" and parser.next.spaced:
        ahead = [t.text for t in parser.tokens[parser.at : parser.at + 3]]
        if len(ahead) == 3 and ahead[1] == "/" and ahead[0].isdigit() and ahead[2].isdigit():
            top, bottom = int(ahead[0]), int(ahead[2])
            if 0 < top < bottom:
                parser.at += 3
                whole = rational(value)
                assert whole is not None
                return num(whole + Fraction(top, bottom))
    if value.kind == "decimal" and parser.next.text == "\\overline":
        return _repeating(parser, token.text)
    if token.text.isdigit() and parser.next.text == "." and parser.tokens[parser.at + 1].text == "\\overline":
        parser.take()
        return _repeating(parser, token.text + ".")
    return value


def _value(text: str) -> Node:
    mantissa, _, exponent = text.lower().partition("e")
    if exponent:
        if abs(int(exponent)) > 4000:
            raise MathError("the exponent is too large")
        return num(Fraction(mantissa) * Fraction(10) ** int(exponent))
    if "." in mantissa:
        return Node("decimal", (), (Fraction(mantissa), len(mantissa.partition(".")[2])))
    return num(int(mantissa))


def _repeating(parser: _Parser, start: str) -> Node:
    """``0.1\\overline{6}``."""
    parser.take()
    period = parser.index()
    if not period.isdigit() or len(period) > 60:
        raise MathError("strange period")
    places = len(start.partition(".")[2])
    tail = Fraction(int(period), 10 ** len(period) - 1) / 10**places
    return num(Fraction(start if places else start[:-1]) + tail)


def _literal(parser: _Parser, token: Token) -> Node:
    return Node("literal", (), token.text)


def _identifier(parser: _Parser, token: Token) -> Node:
    name = token.text
    if name in ("e", "i") and parser.next.text not in ("_", "'"):
        return const(name)
    return parser.applied(sym(name))


def _text(parser: _Parser, token: Token) -> Node:
    """Words; ``Alice: 5`` and ``about 5`` are the value behind them."""
    words = [token.text]
    while parser.next.kind in ("text", "id") and parser.next.spaced:
        words.append(parser.take().text)
    text = " ".join(words)
    if text.lower() in _ROUGHLY and parser.next.kind in ("num", "cmd"):
        return parser.operand()
    if text.lower() in ("minus", "negative") and parser.next.kind in ("num", "cmd"):
        return neg(parser.expression(_SIGN))
    if text.endswith(":") or (parser.next.text == ":" and parser.next.kind == "op"):
        if not text.endswith(":"):
            parser.take()
        value = parser.operand()
        if value.kind == "text" or retracts(text):
            raise MathError("words and no value")
        return Node("named", (value,), text.rstrip(": "))
    return Node("text", (), text)


_ROUGHLY = frozenset({"about", "approximately", "around", "roughly", "exactly", "approx"})


def _numbers(parser: _Parser, token: Token) -> Node:
    return Node("numbers", (), token.text)


def _function(parser: _Parser, token: Token) -> Node:
    name = token.text
    base = exponent = None
    while parser.next.text in ("_", "^"):
        if parser.take().text == "_":
            base = parser.argument() if parser.next.text == "{" else parser.prefix(parser.take())
        else:
            exponent = parser.exponent()
    if (parser.next.kind == "rel" or parser.next is END) and exponent is None and name in _NAMES:
        return sym(name)  # "max = 7"
    if name in ("max", "min"):
        base = None  # over which values, as in \max_x
    if exponent is not None and rational(exponent) == -1 and name in _INVERSES:
        name, exponent = _INVERSES[name], None
    node = _apply(name, _function_arguments(parser), base)
    return node if exponent is None else power(node, exponent)


_NAMES = frozenset({"max", "min", "gcd", "lcm", "det", "arg", "Re", "Im"})


def _function_arguments(parser: _Parser) -> tuple[Node, ...]:
    """``(x, y)``, ``{x}``, or the factors up to the next function or sign: ``\\sin 2x\\cos y``."""
    if parser.next.text == "\\{":
        inner = parser.prefix(parser.take())
        return inner.args if inner.kind == "group" else (inner,)
    if parser.next.text in ("(", "{", "["):
        opening = parser.take().text
        closing = {"(": ")", "{": "}", "[": "]"}[opening]
        inner = parser.sequence(closing)
        parser.expect(closing)
        return inner.args if inner.kind == "group" and inner.value == "" else (inner,)
    if parser.next.text == "-":
        parser.take()
        return (neg(_function_arguments(parser)[0]),)
    node = parser.expression(_POWER)
    while (parser.next.kind in ("id", "num") and parser.next.text not in ("d", "e")) or parser.next.text in (
        "\\frac",
        "\\pi",
        "\\sqrt",
    ):
        node = mul(node, parser.expression(_POWER))
    if parser.next.text == "deg":
        parser.take()
        node = Node("degree", (node,))
    return (node,)


def _apply(name: str, arguments: tuple[Node, ...], base: Node | None) -> Node:
    if name in _BUILT:
        wanted, build = _BUILT[name]
        if base is None and len(arguments) == wanted:
            return build(*arguments)
    if name == "FiniteSet":
        return group("{}", arguments)
    if name == "Union" and arguments:
        node = arguments[0]
        for argument in arguments[1:]:
            node = Node("union", (node, argument))
        return node
    if name == "log" and base is not None:
        return call("log", arguments[0], base)
    if name == "log":
        return call("log?" if len(arguments) == 1 else "log", *arguments)
    if base is not None:
        raise MathError(f"{name} takes no subscript")
    return call(name, *arguments)


_BUILT: dict[str, tuple[int, Callable[..., Node]]] = {
    "sqrt": (1, lambda x: power(x, HALF)),
    "exp": (1, lambda x: power(const("e"), x)),
    "lg": (1, lambda x: call("log", x, num(10))),
    "cbrt": (1, lambda x: call("root", x, num(3))),
    "Eq": (2, lambda a, b: Node("relation", (a, b), ("=",))),
    "Rational": (2, divide),
    "Matrix": (1, lambda x: x),
    "Interval": (2, lambda a, b: group("[]", (a, b))),
}


def _command(parser: _Parser, token: Token) -> Node:
    name = token.text
    if name in _COMMANDS:
        return _COMMANDS[name](parser)
    if name in _BIG:
        return _big(parser, name[1:])
    if name in ("\\pm", "\\mp"):
        return Node(name[1:], (num(0), parser.expression(_SIGN)))
    if name in ("\\cup", "\\cap", "\\setminus", "\\bmod", "\\mod", "\\choose", "\\not", "\\circ"):
        raise MathError(f"unexpected {name}")
    if name not in _SYMBOLS:
        raise MathError(f"unknown command {name}")
    return sym(name)


_SYMBOLS = word_set(
    r"\hbar \ell \nabla \partial \star \bullet \Box \square \aleph \wp \imath \jmath \complement \forall \exists \top "
    r"\bot \dagger \diamond \oplus \otimes \clubsuit \heartsuit \spadesuit \diamondsuit \blacksquare \checkmark \neg "
    r"\sharp \flat \natural \mho \Im \Re \bigcirc \digamma \triangledown \bigstar \odot \varpi \varrho \varsigma \mu"
)


def _fraction(parser: _Parser) -> Node:
    top = parser.argument()
    return divide(top, parser.argument())


def _root(parser: _Parser) -> Node:
    degree = None
    if parser.next.text == "[":
        parser.take()
        degree = parser.expression(0)
        parser.expect("]")
    if parser.next.text == "(":
        parser.take()
        radicand = parser.sequence(")")
        if parser.next.text == "," and degree is None:
            raise MathError("sqrt takes one argument")
        parser.expect(")")
        if radicand.kind == "group" and len(radicand.args) == 2:
            radicand, degree = radicand.args
    else:
        radicand = parser.argument()
    radicand = plain_bracket(radicand)
    if degree is None or rational(degree) == 2:
        return power(radicand, HALF)
    return call("root", radicand, degree)


def _surd(parser: _Parser) -> Node:
    """The sign of Unicode text: takes a whole number."""
    if parser.next.text == "(":
        return _root(parser)
    if parser.next.text == "{":
        return power(parser.argument(), HALF)
    return power(parser.prefix(parser.take()), HALF)


def _binomial(parser: _Parser) -> Node:
    if parser.next.text == "(":
        parser.take()
        inner = parser.sequence(")")
        parser.expect(")")
        if len(inner.args) != 2:
            raise MathError("binomial takes two arguments")
        return call("binom", *inner.args)
    top = parser.argument()
    return call("binom", top, parser.argument())


def _between(name: str, closing: str) -> Callable[[_Parser], Node]:
    def read(parser: _Parser) -> Node:
        inner = parser.expression(10)
        parser.expect(closing)
        return call(name, inner)

    return read


def _overline(parser: _Parser) -> Node:
    inner = parser.argument()
    letters = inner.args if inner.kind == "mul" else (inner,)
    if len(letters) > 1 and all(n.kind == "sym" for n in letters):
        return inner  # a segment AB
    return call("bar", inner)


def _big(parser: _Parser, name: str) -> Node:
    """Sums, products, integrals, limits: kept as they are, with bounds."""
    lower = upper = EMPTY
    while parser.next.text in ("_", "^"):
        if parser.take().text == "^":
            upper = parser.exponent()
        elif parser.next.text == "{":
            parser.take()
            lower = parser.sequence("}")
            parser.expect("}")
        else:
            lower = parser.prefix(parser.take())
    start, tokens = parser.at, list(parser.tokens)
    parser.integrals += name == "int"
    if name == "int" and parser.integrals <= _MAX_INTEGRALS:  # up to its dx, which may stand behind a sum
        body = parser.expression(_TERM)
        if body.kind == "add" and differential(body)[1]:
            return call(name, body, lower, upper)
        parser.at, parser.tokens = start, tokens
    return call(name, parser.expression(_SIGN), lower, upper)


def _operator(parser: _Parser, token: Token) -> Node:
    text = token.text
    if text in ("-", "+"):
        inner = plain_bracket(parser.expression(_SIGN))
        if inner.kind in ("text", "relation"):
            raise MathError("text has no sign")
        if inner.kind in ("unit", "degree") and text == "-":
            return Node(inner.kind, (neg(inner.args[0]),), inner.value)
        return neg(inner) if text == "-" else inner
    if text in ("(", "[", "]"):
        return closed(parser, text)
    if text == "{":
        bars, braces, parser.bars, parser.braces = parser.bars, parser.braces, 0, 0
        node = plain_braces(parser)
        parser.bars, parser.braces = bars, braces
        return node
    if text == "\\{":
        return braced(parser)
    if text == "|":
        parser.bars += 1
        inner = parser.expression(10)
        parser.expect("|")
        parser.bars -= 1
        return call("abs", inner)
    if text in "$€£¥₹¢":
        return Node("unit", (parser.expression(_SIGN),), text)
    if text == "...":
        return sym("...")
    raise MathError(f"unexpected {text!r}")


def _missing(parser: _Parser) -> Node:
    raise MathError(f"unexpected {name_of(sym(parser.next.text))!r}")


_COMMANDS: dict[str, Callable[[_Parser], Node]] = {
    "\\frac": _fraction,
    "\\sqrt": _root,
    "\\surd": _surd,
    "\\binom": _binomial,
    "\\pi": lambda _: const("pi"),
    "\\infty": lambda _: INFINITY,
    "\\emptyset": lambda _: EMPTY,
    "\\lfloor": _between("floor", "\\rfloor"),
    "\\lceil": _between("ceil", "\\rceil"),
    "\\overline": _overline,
    "\\rfloor": _missing,
    "\\rceil": _missing,
}
_BY_KIND: dict[str, Callable[[_Parser, Token], Node]] = {
    "num": _number,
    "literal": _literal,
    "id": _identifier,
    "text": _text,
    "set": _numbers,
    "fn": _function,
    "cmd": _command,
    "op": _operator,
    "begin": environment,
}

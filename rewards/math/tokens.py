"""Answer text -> tokens. One linear pass; LaTeX, plain notation and the usual Python spellings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from rlreason.rewards.extract import matching_brace
from rlreason.rewards.math.commands import DROPPED, DROPPED_WITH_ARGUMENT, SAME, TEXT, WORDS
from rlreason.rewards.math.spelling import clean
from rlreason.rewards.math.tree import MAX_DIGITS, MAX_LENGTH, MathError
from rlreason.rewards.math.units import is_short_unit, unit_word
from rlreason.rewards.math.words import FUNCTIONS, GREEK, RELATIONS, SCALES, word_set


class Token(NamedTuple):
    """kind: num, id, fn, op, cmd, rel, sep, text, begin, end. ``spaced``: white space stands before it."""

    kind: str
    text: str
    spaced: bool = False


END = Token("eof", "")
_TOKEN = re.compile(
    r"(?P<space>(?:[\s~]|\\[,;:> !\n]|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick|en)?space(?![A-Za-z]))+)"
    r"|(?P<num>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![A-Za-z\d]))?)"
    r"|(?P<cmd>\\[A-Za-z]+\*?)"
    r"|(?P<esc>\\.)"
    r"|(?P<rel><=|>=|!=|==|:=|[=<>])"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<label>[^\x00-\x7f]+)"
    r"|(?P<op>\*\*|\.\.\.+|.)",
    re.DOTALL,
)
# Groups of three digits: 1,000  1{,}000  1\,000  1\!,000  11,\! 111  10 000
_GROUPED = re.compile(r"\d{1,3}(?:(?:(?:\\!)?(?:,| ?\{, ?\})(?:\\!\s?)?|\\[,;: !]|[~ ])\d{3}(?!\d))+(?:\.\d+)?")
_GROUPED_INSIDE = re.compile(r"\d{1,3}(?:(?:(?:\\!)?\{,\}(?:\\!)?|,\\!\s?|\\[,!])\d{3}(?!\d))+(?:\.\d+)?")


def tokenize(text: str, *, group_commas: bool = True) -> list[Token]:
    """Tokens of one answer. ``group_commas``: ``1,234`` outside brackets is one number. MathError beyond the limits."""
    if len(text) > MAX_LENGTH:
        raise MathError("the answer is too long")
    return _Lexer(clean(text), group_commas).run()


#: What may follow a one-letter unit; a letter or an index makes it a symbol.
_ENDS = re.compile(r"(?!\s*[A-Za-z_({])")
_TIGHT = re.compile(r"\d,(?!\d{3}(?!\d))\d+,\d{3}(?!\d)|(?<![\d,])\d{1,3}(?:,\d{3})+,(?!\d{3}(?!\d))\d")
_ZEROS = re.compile(r",0\d\d(?!\d)")
_BEHIND_GREEK = {
    "Omega": re.compile(r"(?=\s*[}$.,]*\s*$)"),
    "mu": re.compile(r"\s*(?:\\(?:text|mathrm)\s*\{)?\s*([FmgsAVWHLJC])\s*\}?(?=\s*[}$.,]*\s*$)"),
}
_COMMANDS = re.compile(r"\\(?!displaystyle|,|;| )")
_CONDITION = re.compile(r"(?:where|with|for|such that|as long as|provided)\b")


class _Lexer:
    """State of one pass: position, open brackets (thousands commas count only outside them)."""

    def __init__(self, text: str, group_commas: bool) -> None:
        self.text = text
        self.at = 0
        self.out: list[Token] = []
        self.open: list[str] = []
        self.spaced = False
        self.group_commas = group_commas
        self.money = text.count("$") - text.count("\\$")
        # An odd dollar sign is money, even ones delimit mathematics.
        self.odd_dollar = self.money % 2 == 1
        if group_commas and "," in text and _TIGHT.search(text) and not _ZEROS.search(text):
            self.group_commas = False  # 1,2,100,200 lists four numbers

    def run(self) -> list[Token]:
        text, match = self.text, _TOKEN.match
        length = len(text)
        while self.at < length:
            found = match(text, self.at)
            assert found is not None
            kind, piece = found.lastgroup or "", found[0]
            if kind == "space":
                self.at = found.end()
                self.spaced = True
                continue
            if kind == "num":
                self.number(piece)
            else:
                self.at = found.end()
                _HANDLERS[kind](self, piece)
        return self.out

    def emit(self, kind: str, text: str) -> None:
        self.out.append(Token(kind, text, self.spaced))
        self.spaced = False

    def number(self, piece: str) -> None:
        # A comma groups digits only where it can't separate: outside brackets, or in the braces of a command.
        free = self.group_commas and (not self.open or self.open[-1] == "argument")
        grouped = (_GROUPED if free else _GROUPED_INSIDE).match(self.text, self.at)
        if grouped and grouped.end() > self.at + len(piece):
            piece = grouped[0]
        self.at += len(piece)
        digits = re.sub(r"[^0-9.eE+-]", "", piece)
        if len(digits) > MAX_DIGITS:
            self.emit("literal", digits.lstrip("0") or "0")
            return
        self.emit("num", digits)

    def command(self, name: str) -> None:
        if name in TEXT:
            self.text_command(name)
        elif name in DROPPED_WITH_ARGUMENT:
            self.argument()
        elif name in DROPPED:
            if name in ("\\left", "\\right") and self.text[self.at : self.at + 1] == ".":
                self.at += 1
            self.spaced = self.spaced or name in ("\\quad", "\\qquad")
        elif name in ("\\begin", "\\end"):
            self.environment(name)
        elif name in RELATIONS:
            self.emit("rel", RELATIONS[name])
        elif name in SAME:
            self.same(SAME[name])
        elif name[1:] in FUNCTIONS and name != "\\sqrt":
            self.emit("fn", FUNCTIONS[name[1:]])
        elif name[1:] in GREEK:
            self.greek(name[1:])
        elif name == "\\mathbb":
            self.emit("set", self.argument().strip())
        else:
            self.emit("cmd", name)

    def greek(self, name: str) -> None:
        """``5 \\Omega`` and ``5 \\mu F`` are units behind a number; elsewhere a letter."""
        last = self.out[-1] if self.out else END
        prefix = name == "Omega" and last.kind == "id" and last.text in ("k", "M", "m") and len(self.out) > 1
        if prefix and self.out[-2].kind == "num" and _BEHIND_GREEK[name].match(self.text, self.at):
            self.out[-1] = last._replace(kind="text", text=f"{last.text}Ω")
            return
        if name in ("Omega", "mu") and (last.kind == "num" or last.text == "}"):
            behind = _BEHIND_GREEK[name].match(self.text, self.at)
            if behind:
                self.at = behind.end()
                self.emit("text", "Ω" if name == "Omega" else f"μ{behind[1]}")
                return
        self.emit("id", name)

    def same(self, plain: str) -> None:
        if plain in ("and", "or"):
            self.emit("sep", plain)
        elif plain in "{}[]()":
            self.bracket(plain, escaped=True)
        elif plain[1:] in GREEK:
            self.emit("id", plain[1:])
        elif plain.startswith("\\"):
            self.emit("cmd", plain)
        else:
            self.emit("op", plain)

    def argument(self) -> str:
        """Raw text of the next braced group (or one character), skipping it."""
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        if self.text[self.at : self.at + 1] != "{":
            self.at += 1
            return self.text[self.at - 1 : self.at]
        close = matching_brace(self.text, self.at)
        if close < 0:
            raise MathError("a brace is not closed")
        start, self.at = self.at + 1, close + 1
        return self.text[start:close]

    def environment(self, name: str) -> None:
        env = self.argument().strip().rstrip("*")
        if name == "\\begin" and env == "array":
            self.argument()
        self.emit(name[1:], env)

    def text_command(self, name: str) -> None:
        content = self.argument()
        words = content.replace("~", " ").replace("\\ ", " ").replace("\\,", " ").strip()
        if not words:
            self.spaced = True
            return
        last = self.out[-1] if self.out else END
        if self.is_unit(words, last):
            self.emit("text", words)
            return
        fresh = not self.out or last.kind == "sep" or last.text in (",", ";")
        parts = [_COUNTED.fullmatch(part) for part in _PARTS.split(words)] if fresh else []
        if parts and None not in parts:
            for part in parts:
                if self.out and part is not parts[0]:
                    self.emit("sep", "and")
                self.counted(part)
        elif _is_mathematics(words):
            inner = tokenize(words, group_commas=self.group_commas)
            self.out.extend([inner[0]._replace(spaced=self.spaced), *inner[1:]] if inner else [])
        elif words in FUNCTIONS:
            self.emit("fn", FUNCTIONS[words])
        elif words.lower() in SCALES and last.kind == "num":
            self.emit("scale", str(SCALES[words.lower()]))
        elif words.lower() in ("infinity", "inf", "pi"):
            self.emit(*WORDS[words.lower()])
        else:
            self.label(words)

    def is_unit(self, words: str, last: Token) -> bool:
        """``\\mathrm{C}`` or ``\\text{min}`` where a number stands before it and no letter or index follows."""
        if last.text in ("deg", "\\circ") and words in ("N", "S", "E", "W"):
            return True
        behind = last.kind == "num" or last.text in ("}", "deg", "\\circ")
        behind = behind or (last.kind == "text" and unit_word(last.text))
        return behind and (is_short_unit(words) or words in ("min", "sec")) and bool(_ENDS.match(self.text, self.at))

    def counted(self, found: re.Match[str] | None) -> None:
        """``\\text{There are 42 red apples}``: the number and its label."""
        assert found is not None
        inner = tokenize(found[1], group_commas=self.group_commas)
        self.out.extend([inner[0]._replace(spaced=self.spaced), *inner[1:]])
        self.spaced = True
        if found[2].strip():
            self.label(found[2].strip())

    def label(self, words: str) -> None:
        """Text in a formula: connecting words become separators, the rest stays a label."""
        lower = words.lower().strip(" ,;.")
        if words in _CURRENCIES or (not self.out and lower in _MONEY_WORDS):
            self.emit("op", _MONEY_WORDS.get(lower, words))
        elif lower in ("and", "or", "and/or"):
            self.emit("sep", lower[:3].rstrip("/"))
        elif lower in ("to", ":"):
            self.emit("op", ":")
        elif lower in ("percent", "per cent", "pct", "degrees", "degree"):
            self.emit("op", "deg" if lower.startswith("deg") else "%")
        elif lower.endswith((" and", " or")):
            stated, _, word = words.rpartition(" ")
            self.emit("text", stated)
            self.emit("sep", word.lower())
        elif _CONDITION.match(lower):
            self.emit("cond", lower)
        elif words.endswith((",", ";")) and self.out:
            self.emit("text", words.rstrip(" ,;"))
            self.emit("op", ",")
        else:
            self.emit("text", words)

    def escaped(self, piece: str) -> None:
        char = piece[1]
        if char in "{}":
            self.bracket(char, escaped=True)
        elif char == "\\":
            self.emit("op", "\\\\")
        elif char in "()[]":
            return  # \( \) \[ \] delimit mathematics
        elif char == "|":
            self.emit("op", "|")
        elif char in "$%&#_":
            self.emit("op", char)
        else:
            raise MathError(f"unexpected {piece!r}")

    def bracket(self, char: str, *, escaped: bool = False) -> None:
        if char in "([{":
            self.open.append(char if escaped or char != "{" or not self.is_argument() else "argument")
        elif self.open:
            self.open.pop()
        self.emit("op", f"\\{char}" if escaped and char in "{}" else char)

    def is_argument(self) -> bool:
        last = self.out[-1] if self.out else END
        return last.kind in ("cmd", "fn") or last.text in ("^", "_", "}", "]")

    def operator(self, piece: str) -> None:
        if piece in "()[]{}":
            self.bracket(piece)
        elif piece == "$":
            if self.odd_dollar and _money_here(self.text, self.at - 1):
                self.odd_dollar = False
                self.emit("op", "$")
            else:
                self.spaced = True
        elif piece == "**":
            self.emit("op", "^")
        elif piece.startswith("..."):
            self.emit("op", "...")
        elif piece == "\\" and self.at >= len(self.text):
            return
        else:
            self.emit("op", piece)

    def word(self, word: str) -> None:
        following = self.text[self.at : self.at + 1]
        if len(word) <= 2 and following.isdigit() and word[-1:] not in ("e", "E") and (len(word) == 1 or word in GREEK):
            self.emit("id", word)  # x1 and c2 are names
            self.out.append(Token("op", "_"))
            return
        last = self.out[-1] if self.out else END
        after_number = last.kind in ("num", "literal") or last.text in ("%", ")", "}", "]")
        if not self.out and word.lower() in _MONEY_WORDS and _money_here(self.text, self.at - 1):
            self.emit("op", _MONEY_WORDS[word.lower()])
            self.at += self.text.startswith(". ", self.at)
        elif len(word) == 1:
            short = after_number and self.spaced and is_short_unit(word) and not _COMMANDS.search(self.text)
            self.emit("text" if short else "id", word)
        elif word == "in" and after_number:
            self.emit("text", word)
        elif word in WORDS or word.lower() in ("and", "or", "infinity", "percent"):
            self.emit(*WORDS.get(word) or WORDS[word.lower()])
        elif word in FUNCTIONS or word in GREEK:
            self.emit("fn" if word in FUNCTIONS else "id", FUNCTIONS.get(word, word))
        elif after_number and word.lower() in SCALES:
            self.emit("scale", str(SCALES[word.lower()]))
        elif word in ("where", "for") and self.out:
            self.emit("cond", word)
        elif after_number and unit_word(word):
            self.emit("text", word)
        else:
            self.letters(word)

    def letters(self, word: str) -> None:
        """A run of letters: a product of symbols, a function and its argument (``sinx``), or a word."""
        for name in ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "log", "ln"):
            rest = word.removeprefix(name)
            if rest != word and len(rest) == 1:
                self.emit("fn", FUNCTIONS[name])
                self.emit("id", rest)
                return
        joined = re.fullmatch(r"(and|or)([A-Z])", word)
        if joined:
            self.emit("sep", joined[1])
            self.emit("id", joined[2])
            return
        if (word.isupper() and len(word) <= 6) or is_product(word):
            for letter in word:
                self.emit("id", letter)
        else:
            self.emit("text", word)


_CURRENCIES = frozenset("€£¥₹¢")
_MONEY_WORDS = {"usd": "$", "eur": "€", "gbp": "£", "inr": "₹", "rs": "₹", "cny": "¥", "rmb": "¥"}
_HANDLERS: dict[str, Callable[[_Lexer, str], None]] = {
    "cmd": _Lexer.command,
    "esc": _Lexer.escaped,
    "rel": lambda lexer, piece: lexer.emit("rel", RELATIONS[piece]),
    "word": _Lexer.word,
    "op": _Lexer.operator,
    "label": lambda lexer, piece: lexer.label(piece),
}
_SHORT_WORDS = word_set("no on yes odd or is it in at an of to by the not all one two six ten day red any off too")


def is_product(word: str) -> bool:
    """Is ``word`` a product of symbols (``xy``, ``abc``) rather than English?"""
    return (
        len(word) <= 3
        and word.lower() not in _SHORT_WORDS
        and (len(word) < 3 or word in ("abc", "xyz", "pqr", "mnp") or not set(word.lower()) & set("aeiou"))
    )


def _is_mathematics(words: str) -> bool:
    """Is this the content of a ``\\text{}`` that is mathematics all the same: a number, a letter, ``(A)``, ``$…$``?"""
    if len(words) == 1:
        return True
    quantity = _QUANTITY.fullmatch(words)
    return _MATHEMATICS.fullmatch(words) is not None or (quantity is not None and unit_word(quantity[1]) is not None)


_MATHEMATICS = re.compile(
    r"[-+]?[\d.,/%\s]*\d[\d.,/%]*"  # a number
    r"|\([A-Z]\)|[A-Z](?:\s*(?:,|and|or)\s*[A-Z])+"  # choices
    r"|-?\d+(?:\.\d+)?(?:\s*(?:or|and|,)\s*-?\d+(?:\.\d+)?)+"  # 3 or 4
    r"|\\?\$.*"
)
_PARTS = re.compile(r"\s*,\s+(?:and\s+)?|\s+and\s+")
#: One number and what it counts, alone or in a plain sentence.
_COUNTED = re.compile(
    r"(?:(?:there|it|they|he|she|we)\s+(?:are|is|were|was|will be|has|have|takes?|get|needs?)\s+)?"
    r"(?:(?:about|approximately|exactly|around|roughly)\s+)?"
    r"(-?(?:\\?\$)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?(?:\\?%)?)((?:\s+[^\W\d_][^\d$\\]*)?)\.?",
    re.IGNORECASE,
)
_QUANTITY = re.compile(r"-?\d+(?:\.\d+)?\s*([A-Za-z]+)\.?")


def _money_here(text: str, at: int) -> bool:
    """Does the dollar sign at ``at`` touch a number?"""
    before, after = text[:at].rstrip()[-1:], text[at + 1 : at + 3].lstrip()[:1]
    return before.isdigit() or after.isdigit() or after == "."

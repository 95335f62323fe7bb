"""A position in a list of tokens, and what is read without building nodes: separators, units, subscripts."""

from __future__ import annotations

from rlreason.rewards.math.tokens import END, Token
from rlreason.rewards.math.tree import MathError


class Cursor:
    """Walks over tokens; ``next`` is END behind the last one."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = [*tokens, END]
        self.at = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self) -> Token:
        token = self.tokens[self.at]
        if token is not END:
            self.at += 1
        return token

    def expect(self, *texts: str) -> str:
        token = self.take()
        if token.text not in texts:
            raise MathError(f"expected {' or '.join(texts)}, found {token.text!r}")
        return token.text

    def separators(self) -> list[str]:
        """A run such as ``,`` or ``, and``; the word wins."""
        found = []
        while self.next.kind == "sep" or (self.next.kind == "op" and self.next.text in (",", ";", "\\\\")):
            text = self.take().text
            found.append("," if text == "\\\\" else text)
        return found[-1:] if found and found[-1] in ("and", "or") and found[0] != "," else found[:1]

    def unit(self) -> str:
        """Unit words with their exponents, as text."""
        parts: list[str] = []
        while True:
            token = self.next
            if token.kind == "text":
                parts.append(self.take().text)
            elif token.text == "^" and parts:
                self.take()
                exponent = self.index()
                if not exponent.lstrip("-").isdigit():
                    raise MathError("a unit has a strange exponent")
                parts[-1] += f"^{exponent}"
            elif token.text in ("/", "*", "."):
                self.take()
                parts.append("/" if token.text == "/" else " ")
            elif (token.kind == "rel" and token.text == "in") or (token.kind == "id" and parts[-1:] in (["/"], [" "])):
                parts.append(self.take().text)
            else:
                return " ".join(parts)

    def index(self) -> str:
        """Text of a subscript."""
        if self.next.text != "{":
            return self.take().text
        start, depth = self.at, 0
        while True:
            text = self.take()
            if text is END:
                raise MathError("a brace is not closed")
            depth += (text.text == "{") - (text.text == "}")
            if depth == 0:
                return "".join(t.text for t in self.tokens[start + 1 : self.at - 1])

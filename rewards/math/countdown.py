"""``countdown``: reach a target from given numbers with + - * / and parentheses.

Reference ``{"numbers": [3, 7, 25], "target": 46}`` (the task of TinyZero, https://github.com/Jiayi-Pan/TinyZero).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from rlreason.rewards.extract import marked_answer
from rlreason.rewards.registry import verifier
from rlreason.types import Completion, Problem, RewardResult, Verdict

_MAX_LENGTH = 400
_MAX_DEPTH = 40
_MAX_DIGITS = 12
_SPELLINGS = {"\\times": "*", "\\cdot": "*", "\\div": "/", "\\left": "", "\\right": "", "\\,": "", "$": ""} | {
    "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "−": "-", "–": "-",
}  # fmt: skip


class _Refused(Exception):
    """The answer is no arithmetic expression within the limits."""


@dataclass(slots=True)
class _Reader:
    """Recursive descent over the characters; keeps the numbers it met."""

    text: str
    at: int = 0
    depth: int = 0

    def __post_init__(self) -> None:
        self.text = "".join(self.text.split())

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def sum(self, numbers: list[int]) -> Fraction:
        value = self.product(numbers)
        while self.peek() in ("+", "-") and self.peek():
            sign = self.peek()
            self.at += 1
            right = self.product(numbers)
            value = value + right if sign == "+" else value - right
        return value

    def product(self, numbers: list[int]) -> Fraction:
        value = self.factor(numbers)
        while self.peek() in ("*", "/") and self.peek():
            sign = self.peek()
            self.at += 1
            right = self.factor(numbers)
            if sign == "/" and right == 0:
                raise _Refused("division by zero")
            value = value * right if sign == "*" else value / right
        return value

    def factor(self, numbers: list[int]) -> Fraction:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Refused("nested too deep")
        try:
            if self.peek() == "-":
                self.at += 1
                return -self.factor(numbers)
            if self.peek() == "(":
                self.at += 1
                value = self.sum(numbers)
                if self.peek() != ")":
                    raise _Refused("a parenthesis is not closed")
                self.at += 1
                return value
            return Fraction(self.number(numbers))
        finally:
            self.depth -= 1

    def number(self, numbers: list[int]) -> int:
        end = self.at
        while end < len(self.text) and self.text[end] in "0123456789":
            end += 1
        if end == self.at or end - self.at > _MAX_DIGITS:
            raise _Refused(f"no number at {self.text[self.at : self.at + 10]!r}")
        value = int(self.text[self.at : end])
        self.at = end
        numbers.append(value)
        return value


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """Exact value and the numbers used. Raises ValueError for anything but + - * / ( ) and whole numbers."""
    for spelling, plain in _SPELLINGS.items():
        expression = expression.replace(spelling, plain)
    if len(expression) > _MAX_LENGTH:
        raise ValueError("the expression is too long")
    # Two numbers with only a space between them must not become one.
    pieces = expression.split()
    if any(a[-1].isdigit() and b[0].isdigit() for a, b in pairwise(pieces)):
        raise ValueError("two numbers stand side by side")
    reader, numbers = _Reader(expression), list[int]()
    try:
        value = reader.sum(numbers)
    except _Refused as error:
        raise ValueError(str(error)) from None
    if reader.peek():
        raise ValueError(f"unexpected {reader.peek()!r}")
    return value, numbers


def _read_reference(reference: object) -> tuple[Counter[int], Fraction] | None:
    if not isinstance(reference, Mapping) or "numbers" not in reference or "target" not in reference:
        return None
    try:
        return Counter(int(n) for n in reference["numbers"]), Fraction(str(reference["target"]))
    except (TypeError, ValueError):
        return None


@verifier("countdown")
def countdown(problem: Problem, completion: Completion, *, use_all: bool = False) -> RewardResult:
    """Right if the answer's expression has the target's exact value and uses each given number at most once
    (``use_all``: exactly once). ``… = target`` may follow. Never ``eval``: own parser, exact fractions."""
    reference = _read_reference(problem.reference)
    if reference is None:
        return RewardResult(
            score=None, verdict=Verdict.BROKEN, detail="the reference needs 'numbers' and 'target', both numeric"
        )
    given, target = reference
    answer = marked_answer(completion.response)
    if answer is None:
        return RewardResult(score=0.0, verdict=Verdict.UNPARSED, detail="no <answer> or \\boxed{} after the thought")
    expression, equals, claimed = answer.partition("=")
    try:
        value, used = evaluate(expression)
        if equals and evaluate(claimed)[0] != target:
            return RewardResult(score=0.0, verdict=Verdict.WRONG, extracted=answer, detail="claims another value")
    except ValueError as error:
        return RewardResult(score=0.0, verdict=Verdict.WRONG, extracted=answer, detail=str(error))
    counts = Counter(used)
    if counts - given:
        detail = f"uses numbers it was not given: {sorted((counts - given).elements())}"
    elif use_all and given - counts:
        detail = f"leaves numbers out: {sorted((given - counts).elements())}"
    elif value != target:
        detail = f"has the value {value}, not {target}"
    else:
        return RewardResult(score=1.0, verdict=Verdict.CORRECT, extracted=answer)
    return RewardResult(score=0.0, verdict=Verdict.WRONG, extracted=answer, detail=detail)

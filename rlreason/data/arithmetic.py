"""Task ``arithmetic``: chains of one-digit terms such as ``3+5-2=``, the thought being the steps written out.

Products bind tighter, as everywhere: they are worked out first, each run from left to right, then the sums.
``3+5*2=`` has the thought ``5*2=10;3+10=13``.
"""

from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field, field_validator, model_validator

from rlreason.data.streams import Stream
from rlreason.data.task import PATIENCE, Draft, Options, Split, Task, parse_options
from rlreason.errors import UsageError

__all__ = ["ArithmeticOptions", "arithmetic"]


class ArithmeticOptions(Options):
    """Options of the task; the length of a chain is drawn uniformly from those allowed."""

    #: Numbers in a chain: from `min_terms` to `max_terms`.
    min_terms: int = Field(default=2, ge=2)
    max_terms: int = Field(default=6, ge=2, le=64)
    #: Any of ``+-*``.
    operators: str = "+-"
    #: No product and no running total is larger than this, in absolute value.
    max_total: int = Field(default=99, ge=9)
    #: Whether running totals may fall below zero.
    negatives: bool = True
    #: Training problems over which the longest chain grows evenly from `min_terms` to `max_terms`; 0: all lengths
    #: from the start. Held-out problems always have all lengths.
    growth: int = Field(default=0, ge=0)

    @field_validator("operators")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value or set(value) - set("+-*") or len(set(value)) < len(value):
            raise ValueError(f"{value!r} must be one or more of + - *, each once, such as '+-'")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_terms < self.min_terms:
            raise ValueError(f"max_terms={self.max_terms} is below min_terms={self.min_terms}")
        return self


class _Arithmetic:
    name = "arithmetic"
    verifier = "math"

    def __init__(self, options: ArithmeticOptions) -> None:
        self.options = options

    @property
    def alphabet(self) -> str:
        signs = set(self.options.operators) | ({"-"} if self.options.negatives else set())
        return "0123456789" + "".join(sign for sign in "+-*" if sign in signs) + "=;"

    def identity(self, split: Split) -> Mapping[str, object]:
        # A run with a curriculum and one without are compared on the same held-out problems.
        return self.options.model_dump(exclude={"growth"} if split == "heldout" else None)

    def draw(self, stream: Stream, train_index: int | None) -> Draft:
        options = self.options
        shortest = options.min_terms
        count = shortest + stream.below(self._longest(train_index) - shortest + 1)
        for _ in range(PATIENCE):
            terms = [1 + stream.below(9) for _ in range(count)]
            signs = [stream.pick(options.operators) for _ in range(count - 1)]
            steps, results = work_out(terms, signs)
            if all(self._allowed(result) for result in results):
                break
        else:
            raise UsageError(
                f"arithmetic: no chain of {count} terms found with max_total={options.max_total}; raise it"
            )
        prompt = str(terms[0]) + "".join(f"{sign}{term}" for sign, term in zip(signs, terms[1:], strict=True)) + "="
        answer = str(results[-1])
        return Draft(
            content=prompt,
            prompt=prompt,
            reference=answer,
            thought=";".join(steps),
            answer=answer,
            tags=(f"terms={count}",),
        )

    def _longest(self, train_index: int | None) -> int:
        low, high, growth = self.options.min_terms, self.options.max_terms, self.options.growth
        if train_index is None or train_index >= growth:
            return high
        return low + (high - low) * train_index // growth

    def _allowed(self, result: int) -> bool:
        return abs(result) <= self.options.max_total and (self.options.negatives or result >= 0)


def work_out(terms: Sequence[int], signs: Sequence[str]) -> tuple[list[str], list[int]]:
    """The steps from a chain to its value, and the result of each: products first, then sums, left to right.

    ``work_out([3, 5, 2], "+-") == (["3+5=8", "8-2=6"], [8, 6])``.
    """
    steps: list[str] = []
    results: list[int] = []

    def step(left: int, sign: str, right: int) -> int:
        result = left * right if sign == "*" else left + right if sign == "+" else left - right
        steps.append(f"{left}{sign}{right}={result}")
        results.append(result)
        return result

    sums, sum_signs = [terms[0]], []
    for sign, term in zip(signs, terms[1:], strict=True):
        if sign == "*":
            sums[-1] = step(sums[-1], "*", term)
        else:
            sums.append(term)
            sum_signs.append(sign)
    total = sums[0]
    for sign, term in zip(sum_signs, sums[1:], strict=True):
        total = step(total, sign, term)
    return steps, results


def arithmetic(options: Mapping[str, object], seed: int) -> Task:
    """The task with ``options`` (see `ArithmeticOptions`). Raises UsageError naming a wrong option."""
    return Task(_Arithmetic(parse_options(ArithmeticOptions, "arithmetic", options)), seed)

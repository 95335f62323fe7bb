"""Task ``arithmetic``: chains of one-digit terms such as ``3+5-2=``, the thought being the steps written out.

Products bind tighter, as everywhere: they are worked out first, each run from left to right, then the sums.
``3+5*2=`` has the thought ``5*2=10;3+10=13``.

People who write solutions down leave steps out. With ``mental_steps`` a demonstration does too: ``3+5-2+4=`` may be
thought as ``3+5-2=6;6+4=10``. Everything written is right; how much to write is left for the reward to teach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field, field_validator, model_validator

from rlreason.errors import UsageError
from rlreason.streams import Stream
from rlreason.tasks.task import PATIENCE, Draft, Options, Split, Task, parse_options

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
    #: Chance that a demonstration does a step, other than the last, in the head. Problems don't depend on it.
    mental_steps: float = Field(default=0.0, ge=0.0, le=1.0)

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
        return self.options.model_dump(exclude={"growth", "mental_steps"} if split == "heldout" else {"mental_steps"})

    def draw(self, stream: Stream, train_index: int | None) -> Draft:
        options = self.options
        shortest = options.min_terms
        count = shortest + stream.below(self._longest(train_index) - shortest + 1)
        for _ in range(PATIENCE):
            terms = [1 + stream.below(9) for _ in range(count)]
            signs = [stream.pick(options.operators) for _ in range(count - 1)]
            steps = work_out(terms, signs)
            if all(self._allowed(step.result) for step in steps):
                break
        else:
            raise UsageError(
                f"arithmetic: no chain of {count} terms found with max_total={options.max_total}; raise it"
            )
        prompt = str(terms[0]) + "".join(f"{sign}{term}" for sign, term in zip(signs, terms[1:], strict=True)) + "="
        answer = str(steps[-1].result)
        return Draft(
            content=prompt,
            prompt=prompt,
            reference=answer,
            thought=";".join(written(steps, self._in_head(prompt, len(steps)))),
            answer=answer,
            tags=(f"terms={count}",),
        )

    def _longest(self, train_index: int | None) -> int:
        low, high, growth = self.options.min_terms, self.options.max_terms, self.options.growth
        if train_index is None or train_index >= growth:
            return high
        return low + (high - low) * train_index // growth

    def _in_head(self, prompt: str, count: int) -> list[bool]:
        """For each of ``count`` steps whether it is done in the head. A stream of its own: problems stay the same."""
        stream = Stream("arithmetic", "mental_steps", prompt)
        return [stream.happens(self.options.mental_steps) for _ in range(count - 1)] + [False]

    def _allowed(self, result: int) -> bool:
        return abs(result) <= self.options.max_total and (self.options.negatives or result >= 0)


#: A value, and the index of the step that made it; None for a term of the chain.
Operand = tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class Step:
    """``left sign right = result``. An operand is a term of the chain, or the index of an earlier step (``*_step``)."""

    left: int
    sign: str
    right: int
    result: int
    left_step: int | None = None
    right_step: int | None = None


def work_out(terms: Sequence[int], signs: Sequence[str]) -> list[Step]:
    """The steps from a chain to its value: products first, then sums, left to right.

    ``work_out([3, 5, 2], "+-") == [Step(3, "+", 5, 8), Step(8, "-", 2, 6, left_step=0)]``.
    """
    steps: list[Step] = []

    def step(left: Operand, sign: str, right: Operand) -> Operand:
        a, b = left[0], right[0]
        result = a * b if sign == "*" else a + b if sign == "+" else a - b
        steps.append(Step(a, sign, b, result, left[1], right[1]))
        return result, len(steps) - 1

    sums: list[Operand] = [(terms[0], None)]
    sum_signs = []
    for sign, term in zip(signs, terms[1:], strict=True):
        if sign == "*":
            sums[-1] = step(sums[-1], "*", (term, None))
        else:
            sums.append((term, None))
            sum_signs.append(sign)
    total = sums[0]
    for sign, operand in zip(sum_signs, sums[1:], strict=True):
        total = step(total, sign, operand)
    return steps


def written(steps: Sequence[Step], in_head: Sequence[bool]) -> list[str]:
    """Each step as text, those in the head folded into the step that uses their result.

    Of ``3+5-2=``: ``["3+5=8", "8-2=6"]``, or with the first step in the head ``["3+5-2=6"]``. No parentheses are ever
    needed: a folded operand binds as tightly as the chain had it.
    """
    texts: list[str] = []
    shown: list[str] = []
    for step, hidden in zip(steps, in_head, strict=True):
        left = str(step.left) if step.left_step is None else texts[step.left_step]
        right = str(step.right) if step.right_step is None else texts[step.right_step]
        expression = f"{left}{step.sign}{right}"
        if not hidden:
            shown.append(f"{expression}={step.result}")
        texts.append(expression if hidden else str(step.result))
    return shown


def arithmetic(options: Mapping[str, object], seed: int) -> Task:
    """The task with ``options`` (see `ArithmeticOptions`). Raises UsageError naming a wrong option."""
    return Task(_Arithmetic(parse_options(ArithmeticOptions, "arithmetic", options)), seed)

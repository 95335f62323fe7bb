"""Task ``countdown``: reach a target from given numbers, each used once. Many expressions may be right.

``4 7 2 -> 15`` has the answer ``4*2+7``. The thought is a search: attempts that combine two numbers at a time until
one is left, drawn at random until one hits the target or `tries` have failed; the last attempt is the solution. It is
written ``4+7=11,11-2=9;4*2=8,8+7=15``: a comma between steps, a semicolon between attempts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field, field_validator

from rlreason.errors import UsageError
from rlreason.streams import Stream
from rlreason.tasks.task import PATIENCE, Draft, Options, Split, Task, parse_options

__all__ = ["CountdownOptions", "countdown"]


class CountdownOptions(Options):
    """Options of the task. Every result on the way to the target is a positive whole number."""

    #: Numbers in a problem.
    count: int = Field(default=3, ge=2, le=6)
    #: Numbers are from 1 to this.
    max_number: int = Field(default=20, ge=2, le=1000)
    #: Targets are from 1 to this.
    max_target: int = Field(default=99, ge=1)
    #: Any of ``+-*/``; a division must leave no remainder.
    operators: str = "+-*"
    #: Most failed attempts in a demonstration.
    tries: int = Field(default=3, ge=0)

    @field_validator("operators")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value or set(value) - set("+-*/") or len(set(value)) < len(value):
            raise ValueError(f"{value!r} must be one or more of + - * /, each once, such as '+-*'")
        return value


@dataclass(frozen=True, slots=True)
class _Part:
    """A value and an expression for it. ``binding``: 0 for a sum, 1 for a product, 2 for a number."""

    value: int
    text: str
    binding: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    result: _Part
    steps: str


class _Countdown:
    name = "countdown"
    verifier = "countdown"

    def __init__(self, options: CountdownOptions) -> None:
        self.options = options

    @property
    def alphabet(self) -> str:
        # "-" and ">" are in the prompt's arrow whatever the operators.
        return "0123456789" + "".join(sign for sign in "+-*/" if sign in self.options.operators + "-") + "()=>,; "

    def identity(self, split: Split) -> Mapping[str, object]:
        return self.options.model_dump()

    def draw(self, stream: Stream, train_index: int | None) -> Draft:
        options = self.options
        for _ in range(PATIENCE):
            numbers = [1 + stream.below(options.max_number) for _ in range(options.count)]
            solution = self._attempt(numbers, stream)
            if solution and solution.result.value <= options.max_target:
                break
        else:
            raise UsageError("countdown: no problem found with these options; raise max_target or add operators")
        target = solution.result.value
        tried: list[str] = []
        # Twice as many draws as failures to show: some attempts repeat or end in a fraction.
        for _ in range(2 * options.tries):
            attempt = self._attempt(numbers, stream)
            if attempt and attempt.result.value == target:
                solution = attempt
                break
            if attempt and attempt.steps not in tried and len(tried) < options.tries:
                tried.append(attempt.steps)
        listed = " ".join(map(str, numbers))
        return Draft(
            content=f"countdown {sorted(numbers)} {target}",
            prompt=f"{listed} -> {target}",
            reference={"numbers": numbers, "target": target},
            thought=";".join([*tried, solution.steps]),
            answer=solution.result.text,
            tags=(f"numbers={options.count}",),
        )

    def _attempt(self, numbers: list[int], stream: Stream) -> _Attempt | None:
        """All numbers combined in a random way, or None where that leaves the positive whole numbers."""
        parts = [_Part(number, str(number)) for number in numbers]
        steps: list[str] = []
        while len(parts) > 1:
            left = parts.pop(stream.below(len(parts)))
            right = parts.pop(stream.below(len(parts)))
            sign = stream.pick(self.options.operators)
            joined = _join(left, sign, right)
            if joined is None:
                return None
            steps.append(f"{left.value}{sign}{right.value}={joined.value}")
            parts.append(joined)
        return _Attempt(result=parts[0], steps=",".join(steps))


def _join(left: _Part, sign: str, right: _Part) -> _Part | None:
    """``left sign right`` with no needless parentheses; None where the result is not a positive whole number."""
    if sign == "+":
        value = left.value + right.value
    elif sign == "-":
        value = left.value - right.value
    elif sign == "*":
        value = left.value * right.value
    else:
        value, remainder = divmod(left.value, right.value)
        if remainder:
            return None
    if value <= 0:
        return None
    binding = 0 if sign in "+-" else 1
    # a-(b+c) and a/(b*c) need their parentheses though both signs bind alike.
    right_binds = right.binding > binding or (right.binding == binding and sign in "+*")
    left_text = left.text if left.binding >= binding else f"({left.text})"
    right_text = right.text if right_binds else f"({right.text})"
    return _Part(value, f"{left_text}{sign}{right_text}", binding)


def countdown(options: Mapping[str, object], seed: int) -> Task:
    """The task with ``options`` (see `CountdownOptions`). Raises UsageError naming a wrong option."""
    return Task(_Countdown(parse_options(CountdownOptions, "countdown", options)), seed)

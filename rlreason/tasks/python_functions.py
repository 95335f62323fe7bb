"""Task ``python_functions``: write the Python function that two examples show.

``f(3,5,1)=[7,2] f(1,0,8)=[2,0]`` has the answer ``def f(a,b,c):return[b+2,a-1]``: each output is one argument and a
constant added. The verifier runs the answer, on the examples and on inputs that the prompt does not show.

The thought is a search. For each output it goes through the arguments and writes what would have to be added to each
in either example, until both say the same: ``a+4,+1;b+2,+2|a-1,-1``: the first output is not ``a`` and something, as
that would be 4 in one example and 1 in the other; it is ``b+2``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from rlreason.errors import UsageError
from rlreason.streams import Stream
from rlreason.tasks.task import PATIENCE, Draft, Options, Split, Task, parse_options

__all__ = ["PythonFunctionsOptions", "python_functions"]

_NAMES = "abcdef"
_EXAMPLES = 2


class PythonFunctionsOptions(Options):
    """Options of the task. Arguments and outputs of the examples have one digit."""

    #: Arguments of the function, and numbers in the list that it returns.
    arguments: int = Field(default=3, ge=1, le=len(_NAMES))
    outputs: int = Field(default=3, ge=1, le=8)
    #: Inputs that the verifier tries beside the examples; their numbers have two digits.
    hidden: int = Field(default=4, ge=1, le=100)
    #: Chance that a training demonstration leaves a step out of its thought, each step by itself ("done in the head").
    mental_steps: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True, slots=True)
class _Output:
    """One output: the argument at ``place`` and ``added``."""

    place: int
    added: int

    @property
    def source(self) -> str:
        return f"{_NAMES[self.place]}{self.added:+}"


class _PythonFunctions:
    name = "python_functions"
    verifier = "code"

    def __init__(self, options: PythonFunctionsOptions) -> None:
        self.options = options

    @property
    def alphabet(self) -> str:
        return "0123456789+-=,;|:()[] " + "".join(sorted({*"def return", *_NAMES[: self.options.arguments]} - {" "}))

    def identity(self, split: Split) -> Mapping[str, object]:
        # Held-out demonstrations are complete, so runs that leave out more or fewer steps have the same tests.
        return self.options.model_dump(exclude={"mental_steps"} if split == "heldout" else None)

    def draw(self, stream: Stream, train_index: int | None) -> Draft:
        names = ",".join(_NAMES[: self.options.arguments])
        for _ in range(PATIENCE):
            outputs = [
                _Output(stream.below(self.options.arguments), stream.below(19) - 9) for _ in range(self.options.outputs)
            ]
            inputs = [[stream.below(10) for _ in range(self.options.arguments)] for _ in range(_EXAMPLES)]
            results = [_call(outputs, arguments) for arguments in inputs]
            if all(0 <= value <= 9 for values in results for value in values) and _is_clear(outputs, inputs):
                break
        else:
            raise UsageError("python_functions: no function found with these options; lower outputs")
        hidden = [[10 + stream.below(90) for _ in range(self.options.arguments)] for _ in range(self.options.hidden)]
        left_out = self.options.mental_steps if train_index is not None else 0.0
        thought = "|".join(
            ";".join(step for step in _search(output, inputs) if not stream.happens(left_out)) for output in outputs
        )
        source = f"def f({names}):return[{','.join(output.source for output in outputs)}]"
        return Draft(
            content=source,
            prompt=" ".join(
                f"f({','.join(map(str, arguments))})=[{','.join(map(str, values))}]"
                for arguments, values in zip(inputs, results, strict=True)
            ),
            reference={
                "type": "function",
                "entry_point": "f",
                "cases": [
                    {"args": arguments, "expected": _call(outputs, arguments)} for arguments in (*inputs, *hidden)
                ],
            },
            thought=thought,
            answer=source,
        )


def _call(outputs: list[_Output], arguments: list[int]) -> list[int]:
    return [arguments[output.place] + output.added for output in outputs]


def _is_clear(outputs: list[_Output], inputs: list[list[int]]) -> bool:
    """Whether the examples leave no other argument for any output: no two arguments change by the same."""
    changes = [second - first for first, second in zip(*inputs, strict=True)]
    return all(changes.count(changes[output.place]) == 1 for output in outputs)


def _search(output: _Output, inputs: list[list[int]]) -> list[str]:
    """The steps to one output: for each argument up to the right one, what would have to be added to it."""
    steps = []
    for place in range(output.place + 1):
        added = [arguments[output.place] + output.added - arguments[place] for arguments in inputs]
        steps.append(_NAMES[place] + ",".join(f"{value:+}" for value in added))
    return steps


def python_functions(options: Mapping[str, object], seed: int) -> Task:
    """The task with ``options`` (see `PythonFunctionsOptions`). Raises UsageError naming a wrong option."""
    return Task(_PythonFunctions(parse_options(PythonFunctionsOptions, "python_functions", options)), seed)

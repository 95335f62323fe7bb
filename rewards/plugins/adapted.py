"""A function from elsewhere as one of ours, and what is read off signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlreason.types import Completion, Problem

AnyFunction = Callable[..., object]
#: What one call of a reward sees: a completion, all completions of a problem, or all of a step.
Per = Literal["completion", "group", "step"]
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """A reward with our calling convention for ``per``. Example: ``Adapted(function=call, per="step")``.

    "completion": ``(problem, completion, **options)``; "group": ``(problem, completions, **options)``; "step":
    ``(problems, completions, **options)`` with one problem a completion. The last two give one value a completion.
    """

    function: AnyFunction
    per: Per
    #: Whether calls may run many at a time, in one event loop.
    concurrent: bool = False
    options: frozenset[str] | None = frozenset()
    required: frozenset[str] = frozenset()
    injected: frozenset[str] = frozenset()
    #: Limits of one completion; None: those of the run. No limit of memory: 0.
    seconds: float | None = None
    memory_mb: int | None = None
    deterministic: bool = True
    doc: str = ""


def parameters_of(function: AnyFunction) -> Mapping[str, inspect.Parameter]:
    """Parameters by name. Raises ValueError where there is no signature to read."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(f"{function!r} has no signature to read its arguments from: {error}") from None


def takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether there is a ``**kwargs``."""
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())


def named(parameters: Mapping[str, inspect.Parameter]) -> frozenset[str]:
    """What may be given by name."""
    return frozenset(name for name, one in parameters.items() if one.kind in _NAMED)


def with_default(parameters: Mapping[str, inspect.Parameter]) -> frozenset[str]:
    """What may be given by name and need not be."""
    return frozenset(name for name in named(parameters) if parameters[name].default is not inspect.Parameter.empty)


def needed(parameters: Mapping[str, inspect.Parameter]) -> frozenset[str]:
    """What must be given, by name."""
    return named(parameters) - with_default(parameters)


def accepted(parameters: Mapping[str, inspect.Parameter], offered: Mapping[str, object]) -> dict[str, object]:
    """Those of ``offered`` that the function takes: not every function has ``**kwargs``."""
    if takes_any(parameters):
        return dict(offered)
    return {key: value for key, value in offered.items() if key in parameters}


def is_async(function: AnyFunction) -> bool:
    """Whether calling it gives an awaitable; also an object whose ``__call__`` does."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def doc_of(function: AnyFunction) -> str:
    """The docstring; "" for an object that has only its class's inherited one."""
    return inspect.getdoc(function) or ""


def listed(value: object, count: int, who: str) -> list[object]:
    """One value a completion, of a list, a tuple, a NumPy array or a tensor. Raises ValueError for anything else."""
    tolist = getattr(value, "tolist", None)
    values = tolist() if tolist is not None else value
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise ValueError(f"{who} must give a list of {count} values, one a completion, not {type(value).__name__}")
    if len(values) != count:
        raise ValueError(f"{who} gave {len(values)} values for {count} completions; it must give one each")
    return list(values)


def messages_of(problem: Problem) -> list[dict[str, str]]:
    """The prompt as chat turns."""
    turns = [{"role": turn.role, "content": turn.content} for turn in problem.messages]
    return turns or [{"role": "user", "content": problem.prompt}]


def reply_of(completion: Completion) -> list[dict[str, str]]:
    """The response as the assistant's turn."""
    return [{"role": "assistant", "content": completion.response}]


def gold_of(problem: Problem) -> object:
    """The reference as a data set holds it: several golds are a list."""
    return list(problem.reference) if isinstance(problem.reference, tuple) else problem.reference

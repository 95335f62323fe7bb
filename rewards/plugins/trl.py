"""Reward functions of TRL (1.16), unchanged: called as its GRPOTrainer calls them.

``(prompts, completions, completion_ids, **columns) -> list[float | None]``: one call for all completions of a step, the
completions of a prompt beside each other. Chat prompts give completions as messages, text prompts as text.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rlreason.rewards.plugins.adapted import (
    Adapted,
    AnyFunction,
    accepted,
    doc_of,
    gold_of,
    is_async,
    listed,
    messages_of,
    named,
    needed,
    parameters_of,
    reply_of,
    takes_any,
    with_default,
)
from rlreason.types import Completion, Problem, RewardResult, Verdict

#: What the trainer gives.
_GIVEN = frozenset({"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"})
#: Names that data sets have for the gold answer: the reference, where the row has no column of that name.
_GOLD = ("answer", "solution", "ground_truth", "target", "reference")


@dataclass(slots=True)
class TrainerState:
    """What of ``transformers.TrainerState`` a reward can know here: the step of the stage, from 0."""

    global_step: int = 0


@dataclass(slots=True)
class _Logged:
    """What a function logs: columns hold one value a completion, metrics one value a call."""

    columns: dict[str, list[object]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[object]) -> None:
        """See TRL's ``GRPOTrainer._log_completion_extra``."""
        self.columns.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        """See TRL's ``GRPOTrainer._log_metric``."""
        self.metrics[name] = float(value)


def adapt(target: AnyFunction) -> Adapted:
    """``target``: a reward function, or what makes one of options (``get_soft_overlong_punishment``, a class).

    Raises ValueError where it is neither.
    """
    parameters = parameters_of(target)
    makes = inspect.isclass(target) or not (takes_any(parameters) or named(parameters) & _GIVEN)
    if makes and not parameters:
        raise ValueError(f"{_name(target)} takes no arguments: a TRL reward function takes completions, …")
    own = frozenset({"conversational"})
    options = named(parameters) if makes else with_default(parameters) - _GIVEN
    made: dict[str, AnyFunction] = {}

    def call(
        problems: Sequence[Problem],
        completions: Sequence[Completion],
        *,
        step: int = 0,
        conversational: bool | None = None,
        **given: object,
    ) -> object:
        logged = _Logged()
        function = target
        if makes:
            key = repr(sorted(given.items()))
            if key not in made:
                made[key] = _make(target, given)
            function = made[key]
        keywords = _arguments(problems, completions, step, conversational) | (given if not makes else {})
        keywords |= {"log_extra": logged.log_extra, "log_metric": logged.log_metric}
        takes = parameters_of(function)
        _check_columns(takes, keywords)
        values = function(**accepted(takes, keywords))
        if inspect.isawaitable(values):
            return _later(values, len(completions), logged, _name(target))
        return _results(values, len(completions), logged, _name(target))

    return Adapted(
        function=call,
        per="step",
        concurrent=is_async(target),
        options=own | options,
        required=needed(parameters) if makes else frozenset(),
        injected=frozenset({"step"}),
        doc=doc_of(target),
    )


def _make(target: AnyFunction, options: Mapping[str, object]) -> AnyFunction:
    function = target(**options)
    if not callable(function):
        raise ValueError(f"{_name(target)} made {type(function).__name__}, which is no reward function")
    return function


def _arguments(
    problems: Sequence[Problem], completions: Sequence[Completion], step: int, conversational: bool | None
) -> dict[str, object]:
    """Everything but what logs. Chat or text is decided as TRL does: by the form of the data set's prompts."""
    chat = bool(problems[0].messages) if conversational is None else conversational
    columns: dict[str, object] = {
        "id": [one.id for one in problems],
        "source": [one.source for one in problems],
        **{name: [gold_of(one) for one in problems] for name in _GOLD},
    }
    for name in dict.fromkeys(name for one in problems for name in one.extra):
        filler = columns.get(name)
        gold = filler if isinstance(filler, list) else [None] * len(problems)
        columns[name] = [one.extra.get(name, other) for one, other in zip(problems, gold, strict=True)]
    return columns | {
        "prompts": [messages_of(one) if chat else one.prompt for one in problems],
        "completions": [reply_of(one) if chat else one.response for one in completions],
        "completion_ids": [one.token_ids.tolist() for one in completions],
        "trainer_state": TrainerState(global_step=step),
    }


def _check_columns(parameters: Mapping[str, inspect.Parameter], given: Mapping[str, object]) -> None:
    missing = sorted(needed(parameters) - given.keys())
    if missing:
        has = ", ".join(sorted(set(given) - _GIVEN))
        raise ValueError(f"it asks for the column {missing[0]!r}, which the data does not have (there are: {has})")


async def _later(values: object, count: int, logged: _Logged, who: str) -> list[object]:
    assert inspect.isawaitable(values)
    return _results(await values, count, logged, who)


def _results(values: object, count: int, logged: _Logged, who: str) -> list[object]:
    """Scores, with what was logged as parts (numbers) and detail (anything else)."""
    scores = [None if isinstance(one, float) and math.isnan(one) else one for one in listed(values, count, who)]
    columns = {name: column for name, column in logged.columns.items() if len(column) == count}
    if not columns and not logged.metrics:
        return scores
    return [
        _result(score, {name: column[i] for name, column in columns.items()}, logged) for i, score in enumerate(scores)
    ]


def _result(value: object, logged: Mapping[str, object], of_all: _Logged) -> object:
    score = None if value is None else float(value)  # type: ignore[arg-type]
    if score is None:
        return None
    numbers = {name: float(one) for name, one in logged.items() if isinstance(one, (int, float))}
    texts = [f"{name}: {one}" for name, one in logged.items() if name not in numbers]
    return RewardResult(
        score=score,
        verdict=Verdict.CORRECT if score > 0 else Verdict.WRONG,
        parts=numbers | of_all.metrics,
        detail="; ".join(texts),
    )


def _name(target: Callable[..., object]) -> str:
    return getattr(target, "__name__", type(target).__name__)

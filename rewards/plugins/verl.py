"""Score functions of verl (0.9.1), unchanged: custom ``compute_score`` functions and those of its own data sets.

verl calls ``compute_score(data_source=…, solution_str=…, ground_truth=…, extra_info=…)``; its functions for one data
set (``gsm8k.compute_score(solution_str, ground_truth, method="strict", …)``) have names and options of their own, and
``compute_score_batched(data_sources, solution_strs, ground_truths, extra_infos)`` takes a batch. Which one it is, is
read off the signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

from rlreason.rewards.plugins.adapted import (
    Adapted,
    AnyFunction,
    accepted,
    doc_of,
    gold_of,
    is_async,
    listed,
    named,
    needed,
    parameters_of,
    takes_any,
    with_default,
)
from rlreason.types import Completion, Problem, RewardResult, Verdict

#: Names of a parameter -> what goes in.
_MEANINGS = {
    "response": ("solution_str", "solution", "response", "response_str", "predict_str", "prediction", "model_output",
                 "model_response", "completion", "output", "text"),
    "gold": ("ground_truth", "gold", "reference", "answer", "label", "target", "gt"),
    "source": ("data_source",),
    "extra": ("extra_info",),
}  # fmt: skip
_BATCH = ("data_sources", "solution_strs", "ground_truths", "extra_infos")


def adapt(function: AnyFunction) -> Adapted:
    """Raises ValueError where no argument of ``function`` is the response."""
    parameters = parameters_of(function)
    if "solution_strs" in parameters:
        return _batched(function, parameters)
    names = _bound(function, parameters)
    unbound = needed(parameters) - set(names.values())

    def call(problem: Problem, completion: Completion, **options: object) -> object:
        values = _values(problem, completion)
        given = {name: values[meaning] for meaning, name in names.items()}
        value = function(**given, **options)
        return _later(value) if inspect.isawaitable(value) else as_reward(value)

    return Adapted(
        function=call,
        per="completion",
        concurrent=is_async(function),
        options=None if takes_any(parameters) else (with_default(parameters) | unbound) - set(names.values()),
        required=unbound,
        doc=doc_of(function),
    )


def _bound(function: AnyFunction, parameters: Mapping[str, inspect.Parameter]) -> dict[str, str]:
    """Meaning -> the parameter that has it, by name; what has another name goes by its place, as in verl's
    functions."""
    has = named(parameters)
    found = {meaning: name for meaning, names in _MEANINGS.items() for name in names[::-1] if name in has}
    if takes_any(parameters):  # verl gives all four by name
        found = {meaning: names[0] for meaning, names in _MEANINGS.items()} | found
    free = [name for name in parameters if name in needed(parameters) and name not in found.values()]
    for meaning in ("response", "gold"):
        if meaning not in found and free:
            found[meaning] = free.pop(0)
    if "response" not in found:
        raise ValueError(
            f"{getattr(function, '__name__', function)}({', '.join(parameters)}) has no argument for the response; "
            "verl's compute_score takes data_source, solution_str, ground_truth and extra_info"
        )
    return found


def _values(problem: Problem, completion: Completion) -> dict[str, object]:
    """As verl's reward managers have it: ``data_source`` and ``extra_info`` are the row's columns of these names."""
    extra: dict[str, object] = {
        "index": problem.id,
        "tags": list(problem.tags),
        "num_turns": None,
        "rollout_reward_scores": {},
    }
    own = problem.extra.get("extra_info", {})
    extra |= dict(own) if isinstance(own, Mapping) else {}
    return {
        "source": problem.extra.get("data_source", problem.source),
        "response": completion.response,
        "gold": gold_of(problem),
        "extra": extra,
    }


async def _later(value: object) -> object:
    assert inspect.isawaitable(value)
    return as_reward(await value)


def as_reward(value: object) -> object:
    """A score, ``{"score", "acc", "pred", …}``, or a tuple that begins with the score, as verl's managers read them."""
    if isinstance(value, (tuple, list)) and value:
        return as_reward(value[0])
    if not isinstance(value, Mapping):
        return value
    if "score" not in value:
        raise ValueError(f"compute_score gave a dict without 'score' (it has: {', '.join(map(str, value))})")
    score = float(value["score"])
    right = bool(value["acc"]) if "acc" in value else score > 0
    extracted = value.get("pred")
    rest = {
        str(key): float(one)
        for key, one in value.items()
        if key not in {"score", "pred"} and isinstance(one, (bool, int, float))
    }
    return RewardResult(
        score=score,
        verdict=Verdict.CORRECT if right else Verdict.WRONG,
        extracted=None if extracted is None else str(extracted),
        parts=rest,
    )


def _batched(function: AnyFunction, parameters: Mapping[str, inspect.Parameter]) -> Adapted:
    def call(problems: Sequence[Problem], completions: Sequence[Completion], **options: object) -> object:
        rows = [_values(*pair) for pair in zip(problems, completions, strict=True)]
        columns = ([row[key] for row in rows] for key in ("source", "response", "gold", "extra"))
        given = accepted(parameters, dict(zip(_BATCH, columns, strict=True)))
        return [as_reward(one) for one in listed(function(**given, **options), len(rows), "compute_score_batched")]

    return Adapted(
        function=call,
        per="step",
        options=None if takes_any(parameters) else named(parameters) - set(_BATCH),
        required=needed(parameters) - set(_BATCH),
        doc=doc_of(function),
    )

"""Reward functions of OpenRLHF, unchanged: ``reward_func(queries, prompts, labels, **kwargs)``.

``queries`` are prompt and response in one text, ``labels`` the gold answers. What comes back is a list or tensor with
one number a query, or ``{"rewards": …, "scores": …, "extra_logs": {…}}``; of a dict, ``rewards`` is the score.
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
    needed,
    parameters_of,
    takes_any,
    with_default,
)
from rlreason.types import Completion, Problem, RewardResult, Verdict

_GIVEN = ("queries", "prompts", "labels")


def adapt(function: AnyFunction) -> Adapted:
    """Raises ValueError where ``function`` takes no queries."""
    parameters = parameters_of(function)
    if "queries" not in parameters and not takes_any(parameters):
        raise ValueError(f"an OpenRLHF reward function takes (queries, prompts, labels), not ({', '.join(parameters)})")

    def call(problems: Sequence[Problem], completions: Sequence[Completion], **options: object) -> object:
        prompts = [prompt_text(one) for one in problems]
        given = {
            "queries": [prompt + one.response for prompt, one in zip(prompts, completions, strict=True)],
            "prompts": prompts,
            "labels": [gold_of(one) for one in problems],
        }
        value = function(**accepted(parameters, given), **options)
        return (
            _later(value, len(prompts)) if inspect.isawaitable(value) else results(value, len(prompts), "reward_func")
        )

    return Adapted(
        function=call,
        per="step",
        concurrent=is_async(function),
        options=None if takes_any(parameters) else (with_default(parameters) | needed(parameters)) - set(_GIVEN),
        required=needed(parameters) - set(_GIVEN),
        doc=doc_of(function),
    )


def prompt_text(problem: Problem) -> str:
    """The prompt as text; the chat turns one after the other, since no template is at hand here."""
    return "\n".join(turn.content for turn in problem.messages) or problem.prompt


async def _later(value: object, count: int) -> object:
    assert inspect.isawaitable(value)
    return results(await value, count, "reward_func")


def results(value: object, count: int, who: str) -> list[object]:
    """One reward a query of ``value``; ``extra_logs`` with one number a query become parts. Raises ValueError."""
    if not isinstance(value, Mapping):
        return _flat(listed(value, count, who))
    key = next((one for one in ("rewards", "scores") if one in value), None)
    if key is None:
        raise ValueError(f"{who} gave a dict without 'rewards' (it has: {', '.join(map(str, value))})")
    rewards = _flat(listed(value[key], count, who))
    logs = value.get("extra_logs") or {}
    columns = {str(name): listed(column, count, f"{who}: {name}") for name, column in logs.items()}
    if not columns:
        return rewards
    return [
        None
        if one is None
        else RewardResult(
            score=float(one),  # type: ignore[arg-type]
            verdict=Verdict.CORRECT if float(one) > 0 else Verdict.WRONG,  # type: ignore[arg-type]
            parts={name: float(column[i]) for name, column in columns.items()},  # type: ignore[arg-type]
        )
        for i, one in enumerate(rewards)
    ]


def _flat(values: list[object]) -> list[object]:
    """A column of shape [N, 1] as one of shape [N]."""
    return [one[0] if isinstance(one, list) and len(one) == 1 else one for one in values]

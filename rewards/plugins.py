"""Rewards from outside: ``pkg.mod:fn``, ``path/file.py:fn``, and functions written for TRL or verl, unchanged."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from rlreason.types import Completion, Problem, RewardResult, Verdict

_Function = Callable[..., object]


def load(spec: str) -> _Function:
    """The function that ``spec`` names, wrapped where it is written for another framework."""
    prefix, _, rest = spec.partition(":")
    if prefix == "trl" and ":" in rest:
        return _from_trl(_load_target(rest))
    if prefix == "verl" and ":" in rest:
        return _from_verl(_load_target(rest))
    return _load_target(spec)


def _load_target(target: str) -> _Function:
    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"plug-in {target!r}: expected pkg.mod:function or path/file.py:function")
    module = _load_file(place) if place.endswith(".py") else _load_module(place)
    try:
        function = vars(module)[name]
    except KeyError:
        offered = sorted(key for key, value in vars(module).items() if inspect.isfunction(value))
        raise ValueError(f"plug-in {target!r}: {place} has no {name!r}; it has: {', '.join(offered)}") from None
    if not callable(function):
        raise ValueError(f"plug-in {target!r}: {name!r} is not a function")
    return function  # type: ignore[no-any-return]


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"plug-in module {name!r} did not import: {type(error).__name__}: {error}") from error


def _load_file(path: str) -> ModuleType:
    file = Path(path).resolve()
    if not file.is_file():
        raise ValueError(f"plug-in file {path!r} does not exist (looked at {file})")
    # A name of its own per path, so that two files of one name do not shadow each other.
    name = f"rlreason_plugin_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"plug-in file {path!r} did not import: {type(error).__name__}: {error}") from error
    return module


def _from_trl(function: _Function) -> _Function:
    """A TRL reward function ``(prompts, completions, completion_ids=…, **columns) -> list[float | None]``.

    It is called with one sample at a time; data set columns ``answer``, ``solution``, ``ground_truth`` and ``target``
    all hold the reference. Chat prompts give chat completions, as in TRL.
    """

    async def call(problem: Problem, completion: Completion) -> object:
        chat = bool(problem.messages)
        turns = [{"role": turn.role, "content": turn.content} for turn in problem.messages]
        reply = [{"role": "assistant", "content": completion.response}]
        columns: dict[str, object] = {
            name: [problem.reference] for name in ("answer", "solution", "ground_truth", "target", "reference")
        }
        values = function(
            prompts=[turns if chat else problem.prompt],
            completions=[reply if chat else completion.response],
            **_accepted(
                function,
                {
                    "completion_ids": [list(completion.token_ids)],
                    "trainer_state": None,
                    "id": [problem.id],
                    "source": [problem.source],
                    **columns,
                },
            ),
        )
        if inspect.isawaitable(values):
            values = await values
        assert isinstance(values, (list, tuple))
        return values[0]

    return call


def _from_verl(function: _Function) -> _Function:
    """A verl ``compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float | dict``."""

    async def call(problem: Problem, completion: Completion) -> object:
        value = function(
            data_source=problem.source,
            solution_str=completion.response,
            ground_truth=problem.reference,
            **_accepted(function, {"extra_info": {"index": problem.id, "tags": list(problem.tags)}}),
        )
        if inspect.isawaitable(value):
            value = await value
        if not isinstance(value, Mapping):
            return value
        score = float(value["score"])
        right = bool(value["acc"]) if "acc" in value else score > 0
        extracted = value.get("pred")
        return RewardResult(
            score=score,
            verdict=Verdict.CORRECT if right else Verdict.WRONG,
            extracted=None if extracted is None else str(extracted),
        )

    return call


def _accepted(function: _Function, offered: dict[str, object]) -> dict[str, object]:
    """Those of ``offered`` that the function takes: not every function has ``**kwargs``."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return offered
    return {key: value for key, value in offered.items() if key in parameters}

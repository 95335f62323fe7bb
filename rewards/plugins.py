"""Rewards from outside: ``pkg.mod:fn``, ``path/file.py:fn``, and functions written for TRL or verl, unchanged."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from rlreason.types import Completion, Problem, RewardResult, Verdict

_Function = Callable[..., object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a plug-in's name says. ``trl:judges/length.py:short`` is ``Target(prefix="trl", place="judges/length.py",
    function="short")``."""

    #: "trl", "verl" or "".
    prefix: str
    #: A file that ends in .py, or a module.
    place: str
    function: str

    @property
    def is_file(self) -> bool:
        """Whether ``place`` is a file and not a module."""
        return self.place.endswith(".py")

    @property
    def spec(self) -> str:
        """The name again."""
        return ":".join(part for part in (self.prefix, self.place, self.function) if part)

    @property
    def label(self) -> str:
        """A name for metrics: without the folders, so that it stays when the file moves."""
        return replace(self, place=Path(self.place).name).spec if self.is_file else self.spec


def parse(spec: str) -> Target:
    """Take a plug-in's name apart. Raises ValueError where it is none."""
    prefix, _, rest = spec.partition(":")
    if prefix not in _WRAPPERS or ":" not in rest:
        prefix, rest = "", spec
    place, _, function = rest.rpartition(":")
    if not place or not function.isidentifier():
        raise ValueError(f"plug-in {rest!r}: expected pkg.mod:function or path/file.py:function")
    return Target(prefix=prefix, place=place, function=function)


def load(spec: str) -> _Function:
    """The function that ``spec`` names, wrapped where it is written for another framework."""
    target = parse(spec)
    function = _load_target(target)
    return _WRAPPERS[target.prefix](function) if target.prefix else function


def module_file(name: str) -> Path | None:
    """The file of module ``name``, not run; None: it has none that can be found."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _load_target(of: Target) -> _Function:
    place, name, target = of.place, of.function, f"{of.place}:{of.function}"
    module = _load_file(place) if of.is_file else _load_module(place)
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

    It is called with one sample at a time. It may ask for every column of the problem's row; ``answer``, ``solution``,
    ``ground_truth`` and ``target`` hold the reference where the row has none of that name. Chat prompts give chat
    completions, as in TRL.
    """

    async def call(problem: Problem, completion: Completion) -> object:
        chat = bool(problem.messages)
        turns = [{"role": turn.role, "content": turn.content} for turn in problem.messages]
        reply = [{"role": "assistant", "content": completion.response}]
        columns: dict[str, object] = {
            name: [problem.reference] for name in ("answer", "solution", "ground_truth", "target", "reference")
        } | {name: [value] for name, value in problem.extra.items()}
        values = function(
            prompts=[turns if chat else problem.prompt],
            completions=[reply if chat else completion.response],
            **_accepted(
                function,
                {
                    "completion_ids": [completion.token_ids.tolist()],
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
    """A verl ``compute_score(data_source, solution_str, ground_truth, extra_info=None) -> float | dict``.

    ``data_source`` and ``extra_info`` are the row's columns of these names, where it has them.
    """

    async def call(problem: Problem, completion: Completion) -> object:
        extra: dict[str, object] = {"index": problem.id, "tags": list(problem.tags)}
        own = problem.extra.get("extra_info", {})
        extra |= dict(own) if isinstance(own, Mapping) else {}
        value = function(
            data_source=problem.extra.get("data_source", problem.source),
            solution_str=completion.response,
            ground_truth=problem.reference,
            **_accepted(function, {"extra_info": extra}),
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


_WRAPPERS: dict[str, Callable[[_Function], _Function]] = {"trl": _from_trl, "verl": _from_verl}


def _accepted(function: _Function, offered: dict[str, object]) -> dict[str, object]:
    """Those of ``offered`` that the function takes: not every function has ``**kwargs``."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return offered
    return {key: value for key, value in offered.items() if key in parameters}

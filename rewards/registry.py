"""Names of rewards and verifiers, and how a recipe's name becomes a function.

A reward is ``(problem, completion, *, option=default, ...) -> float | bool | None | RewardResult``, sync or async.
A verifier is a reward that decides correctness; ``Problem.verifier`` names it and ``accuracy`` dispatches to it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

from rlreason.errors import suggest
from rlreason.rewards import plugins

RewardFunction = Callable[..., object]

#: Entry point group where an installed package offers its rewards.
ENTRY_POINT_GROUP = "rlreason.rewards"
#: Keyword-only parameters that the mix fills in; never options of a recipe.
INJECTED = frozenset({"verdict"})
#: Modules whose decorators register what ships with rlreason.
_SHIPPED = ("accuracy", "language", "math.answer", "math.countdown", "programs.verifier", "shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A named reward. Example: ``describe("format", function).options == {"style"}``."""

    name: str
    function: RewardFunction
    verifier: bool
    #: Keyword-only parameters that a recipe may set; None accepts any (the function takes ``**kwargs``).
    options: frozenset[str] | None
    #: Options without a default.
    required: frozenset[str]
    #: Parameters that the mix fills in, such as ``verdict``.
    injected: frozenset[str]


_REGISTERED: dict[str, Reward] = {}


def describe(name: str, function: RewardFunction, *, verifier: bool = False) -> Reward:
    """Read options and injected parameters off the signature of ``function``."""
    parameters = inspect.signature(function).parameters.values()
    keyword_only = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    names = frozenset(p.name for p in keyword_only)
    return Reward(
        name=name,
        function=function,
        verifier=verifier,
        options=None if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters) else names - INJECTED,
        required=frozenset(p.name for p in keyword_only if p.default is inspect.Parameter.empty) - INJECTED,
        injected=names & INJECTED,
    )


def reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Register a reward: ``@reward("short")`` above ``def short(problem, completion, *, limit=100): ...``."""
    return _registering(name, verifier=False)


def verifier(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Register a verifier, a reward that ``Problem.verifier`` may name."""
    return _registering(name, verifier=True)


def register_local(name: str, function: RewardFunction, *, verifier: bool) -> None:
    """Give a function of this process alone a name, in place of the one that had it: a notebook's cell runs again."""
    _REGISTERED[name] = describe(name, function, verifier=verifier)
    resolve.cache_clear()
    resolve_verifier.cache_clear()


def travels(name: str) -> bool:
    """Whether a process that has the recipe alone resolves ``name``.

    That is what ships, what is installed, and what is named by its module or file; not a function that was registered
    in a script or a notebook.
    """
    if ":" in name:
        return True
    _load_shipped()
    known = _REGISTERED.get(name)
    ours = known is not None and known.function.__module__.startswith("rlreason.rewards.")
    return ours or name in metadata.entry_points(group=ENTRY_POINT_GROUP).names


def _registering(name: str, *, verifier: bool) -> Callable[[RewardFunction], RewardFunction]:
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"reward name {name!r}: use letters, digits, '_' and '-'")

    def register(function: RewardFunction) -> RewardFunction:
        entry = describe(name, function, verifier=verifier)
        known = _REGISTERED.get(name)
        if known is not None and _origin(known.function) != _origin(function):
            raise ValueError(f"reward {name!r} is already {_origin(known.function)}, not {_origin(function)}")
        _REGISTERED[name] = entry
        resolve.cache_clear()
        resolve_verifier.cache_clear()
        return function

    return register


def _origin(function: RewardFunction) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _load_shipped() -> None:
    for module in _SHIPPED:
        importlib.import_module(f"rlreason.rewards.{module}")


def reward_names() -> tuple[str, ...]:
    """Every name that resolves without a path: shipped, decorated so far, and entry points."""
    _load_shipped()
    return tuple(sorted({*_REGISTERED, *metadata.entry_points(group=ENTRY_POINT_GROUP).names}))


def verifier_names() -> tuple[str, ...]:
    """Registered names that ``Problem.verifier`` may hold."""
    _load_shipped()
    return tuple(sorted(name for name, entry in _REGISTERED.items() if entry.verifier))


@lru_cache(maxsize=256)
def resolve(name: str) -> Reward:
    """The reward of a registered name, an entry point, ``pkg.mod:fn``, ``path/file.py:fn``, ``trl:…`` or ``verl:…``.

    Raises ValueError that names the nearest match and all allowed names, or says why the target did not load.
    """
    if ":" in name:
        function = plugins.load(name)
        known = next((entry for entry in _REGISTERED.values() if entry.function is function), None)
        return describe(name, function, verifier=known is not None and known.verifier)
    _load_shipped()
    if name in _REGISTERED:
        return _REGISTERED[name]
    for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        return describe(name, entry_point.load())
    raise ValueError(
        f"unknown reward {name!r}: {suggest(name, reward_names())}; "
        "or a plug-in: pkg.mod:fn, path/file.py:fn, trl:pkg.mod:fn, verl:path.py:fn"
    )


def entry_point_module(name: str) -> str | None:
    """The module that an installed package offers reward ``name`` from; None: nothing but we does."""
    _load_shipped()
    if ":" in name or name in _REGISTERED:
        return None
    return next((entry.module for entry in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)), None)


@lru_cache(maxsize=256)
def resolve_verifier(name: str) -> Reward:
    """Like ``resolve``, for ``Problem.verifier``; a shipped reward that is no verifier is refused."""
    if ":" in name:
        return resolve(name)
    if name in reward_names():
        entry = resolve(name)
        if entry.verifier or name not in _REGISTERED:
            return entry
        raise ValueError(f"{name!r} is a reward but no verifier: {suggest(name, verifier_names())}")
    raise ValueError(f"unknown verifier {name!r}: {suggest(name, verifier_names())}")


def check_options(entry: Reward, options: Mapping[str, object]) -> None:
    """Raise ValueError for an option that the function does not take, or a missing one that it needs."""
    if entry.options is not None:
        for key in options:
            if key not in entry.options:
                raise ValueError(f"reward {entry.name!r} has no option {key!r}: {suggest(key, entry.options)}")
    missing = sorted(entry.required - options.keys())
    if missing:
        raise ValueError(f"reward {entry.name!r} needs option {', '.join(map(repr, missing))}")

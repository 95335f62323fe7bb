"""Names of rewards and verifiers, and how a recipe's name becomes a function.

A reward is ``(problem, completion, *, option=default, ...) -> float | bool | None | RewardResult``, sync or async; with
a parameter ``completions`` in place of ``completion`` it sees all completions of a problem and gives a list.
A verifier is a reward that decides correctness; ``Problem.verifier`` names it and ``accuracy`` dispatches to it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata
from typing import Literal, get_args, get_origin

from rlreason.errors import suggest
from rlreason.rewards import plugins
from rlreason.rewards.environment import FromEnvironment
from rlreason.rewards.plugins.adapted import Adapted, Per, doc_of, is_async, parameters_of, takes_any
from rlreason.rewards.plugins.names import FORMS

RewardFunction = Callable[..., object]

#: Entry point group where an installed package offers its rewards.
ENTRY_POINT_GROUP = "rlreason.rewards"
#: Keyword-only parameters that the mix fills in; never options of a recipe. ``verdict``: the main part's (``verdicts``
#: of a group); ``step``: the training step of the stage, from 0.
INJECTED = frozenset({"verdict", "verdicts", "step"})
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
    #: What one call sees: a completion, all completions of a problem ("group"), or all of a step.
    per: Per = "completion"
    #: Asynchronous: many calls are under way at a time.
    concurrent: bool = False
    #: Limits of one completion; None: those of the run. No limit of memory: 0.
    seconds: float | None = None
    memory_mb: int | None = None
    #: Whether equal input gives equal scores; an LLM judge's doesn't.
    deterministic: bool = True
    doc: str = ""

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.strip().partition("\n")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a decorator says of a reward beside its name."""

    per: Per | None = None
    seconds: float | None = None
    memory_mb: int | None = None
    deterministic: bool = True


_REGISTERED: dict[str, Reward] = {}
#: Function -> what its decorator says of it.
_DECLARED: dict[RewardFunction, Reward] = {}


def describe(name: str, function: RewardFunction, *, verifier: bool = False, declared: Declared = Declared()) -> Reward:
    """Read options and injected parameters off the signature of ``function``. Raises ValueError for one that can't be
    called with a problem and a completion."""
    parameters = parameters_of(function)
    keyword_only = [p for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    names = frozenset(p.name for p in keyword_only)
    _check_call(name, parameters)
    per = declared.per or ("group" if list(parameters)[1:2] == ["completions"] else "completion")
    wrong = "verdicts" if per == "completion" else "verdict"
    if wrong in names:
        right = "verdict" if per == "completion" else "verdicts"
        raise ValueError(f"reward {name!r} sees a {per}: what it is told is {right!r}, not {wrong!r}")
    return Reward(
        name=name,
        function=function,
        verifier=verifier,
        options=None if takes_any(parameters) else names - INJECTED,
        required=frozenset(p.name for p in keyword_only if p.default is inspect.Parameter.empty) - INJECTED,
        injected=names & INJECTED,
        per=per,
        concurrent=is_async(function),
        seconds=declared.seconds,
        memory_mb=declared.memory_mb,
        deterministic=declared.deterministic,
        doc=doc_of(function),
    )


def _check_call(name: str, parameters: Mapping[str, inspect.Parameter]) -> None:
    """The function takes two arguments by place, and no third without a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    placed = [one for one in parameters.values() if one.kind in kinds]
    foreign = _FOREIGN[placed[0].name] if placed and placed[0].name in _FOREIGN else ""
    if not foreign and any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters.values()):
        return
    extra = [one.name for one in placed[2:] if one.default is inspect.Parameter.empty]
    if foreign or len(placed) < 2 or extra:
        hint = f"; a function of {foreign} is named {foreign.lower()}:…" if foreign else ""
        raise ValueError(
            f"reward {name!r} has the arguments ({', '.join(parameters)}); a reward takes (problem, completion), or "
            f"(problem, completions) for a group, and options after a *{hint}"
        )


#: First arguments that show whose function it is.
_FOREIGN = {
    "prompts": "TRL",
    "completions": "TRL",
    "completion_ids": "TRL",
    "solution_str": "verl",
    "data_source": "verl",
    "data_sources": "verl",
    "queries": "OpenRLHF",
}


def _of_plugin(name: str, plugin: Adapted) -> Reward:
    return Reward(
        name=name,
        function=plugin.function,
        verifier=False,
        options=plugin.options,
        required=plugin.required,
        injected=plugin.injected,
        per=plugin.per,
        concurrent=plugin.concurrent,
        seconds=plugin.seconds,
        memory_mb=plugin.memory_mb,
        deterministic=plugin.deterministic,
        doc=plugin.doc,
    )


def reward(
    name: str,
    *,
    per: Per | None = None,
    seconds: float | None = None,
    memory_mb: int | None = None,
    deterministic: bool = True,
) -> Callable[[RewardFunction], RewardFunction]:
    """Register a reward: ``@reward("short")`` above ``def short(problem, completion, *, limit=100): ...``.

    ``per``: "completion", "group" (``(problem, completions)`` -> a list) or "step" (``(problems, completions)``, one
    problem a completion -> a list); by default the name of the second argument says which of the first two it is. An
    ``async def`` runs many calls at a time. ``seconds`` and ``memory_mb`` are limits of one completion, in place of the
    run's; ``deterministic=False`` says that equal input may give other scores (an LLM judge).
    """
    return _registering(name, _declared(per, seconds, memory_mb, deterministic), verifier=False)


def verifier(
    name: str,
    *,
    per: Per | None = None,
    seconds: float | None = None,
    memory_mb: int | None = None,
    deterministic: bool = True,
) -> Callable[[RewardFunction], RewardFunction]:
    """Register a verifier, a reward that ``Problem.verifier`` may name."""
    return _registering(name, _declared(per, seconds, memory_mb, deterministic), verifier=True)


def _declared(per: Per | None, seconds: float | None, memory_mb: int | None, deterministic: bool) -> Declared:
    if per not in {None, "completion", "group", "step"}:
        raise ValueError(f"per must be 'completion', 'group' or 'step', not {per!r}")
    if (seconds is not None and not seconds > 0) or (memory_mb is not None and memory_mb < 0):
        raise ValueError(f"a reward needs seconds > 0 and memory_mb >= 0, not {seconds} and {memory_mb}")
    return Declared(per=per, seconds=seconds, memory_mb=memory_mb, deterministic=deterministic)


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


def _registering(name: str, declared: Declared, *, verifier: bool) -> Callable[[RewardFunction], RewardFunction]:
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"reward name {name!r}: use letters, digits, '_' and '-'")

    def register(function: RewardFunction) -> RewardFunction:
        entry = describe(name, function, verifier=verifier, declared=declared)
        known = _REGISTERED.get(name)
        other = known is not None and _origin(known.function) != _origin(function)
        if known is not None and other and not (_is_loose(known.function) or _is_loose(function)):
            raise ValueError(f"reward {name!r} is already {_origin(known.function)}, not {_origin(function)}")
        _DECLARED[function] = entry
        if known is None or not other or _is_loose(known.function):
            _REGISTERED[name] = entry
        resolve.cache_clear()
        resolve_verifier.cache_clear()
        return function

    return register


def _is_loose(function: RewardFunction) -> bool:
    """Whether it is of a script or a file, which are named by their place: the same name in two is no clash."""
    return function.__module__.startswith(("__main__", plugins.FILE_PACKAGE))


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
    """The reward of a registered name, an entry point, ``pkg.mod:fn``, ``path/file.py:fn``, ``trl:…``, ``verl:…``,
    ``openrlhf:…``, ``http:…`` or ``rm:…``.

    Raises ValueError that names the nearest match and all allowed names, or says why the target did not load.
    """
    if ":" in name:
        plugin = plugins.adapted(name)
        return _named(name, plugins.load(name)) if plugin is None else _of_plugin(name, plugin)
    _load_shipped()
    if name in _REGISTERED:
        return _REGISTERED[name]
    for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _named(name, _loaded(entry_point))
    raise ValueError(f"unknown reward {name!r}: {suggest(name, reward_names())}; or a plug-in: {FORMS}")


def _named(name: str, function: RewardFunction) -> Reward:
    """A function under the name that a recipe has for it, with what its decorator declares."""
    known = _DECLARED.get(function)
    return describe(name, function) if known is None else replace(known, name=name)


def _loaded(entry_point: metadata.EntryPoint) -> RewardFunction:
    try:
        return entry_point.load()  # type: ignore[no-any-return]
    except Exception as error:
        where = f"{entry_point.name} = {entry_point.value}"
        raise ValueError(f"the installed reward {where!r} did not import: {type(error).__name__}: {error}") from error


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
    for key, value in options.items():
        wanted = _mismatch(entry.function, key, value)
        if wanted:
            raise ValueError(f"reward {entry.name!r}: option {key!r} must be {wanted}, not {value!r}")
    missing = sorted(entry.required - options.keys())
    if missing:
        raise ValueError(f"reward {entry.name!r} needs option {', '.join(map(repr, missing))}")


#: Annotation -> (values that fit it, how it is called).
_KINDS: Mapping[object, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
}


def _mismatch(function: RewardFunction, key: str, value: object) -> str:
    """What the parameter ``key`` takes, where its annotation is a plain one that ``value`` does not fit; else ""."""
    if isinstance(value, FromEnvironment):
        return ""
    try:
        parameter = inspect.signature(function, eval_str=True).parameters.get(key)
    except Exception:  # an annotation that names what is not there at run time
        return ""
    hint = inspect.Parameter.empty if parameter is None else parameter.annotation
    if get_origin(hint) is Literal:
        allowed = get_args(hint)
        return "" if value in allowed else f"one of {', '.join(map(repr, allowed))}"
    for kind, (types, name) in _KINDS.items():
        if hint is kind:
            fits = isinstance(value, types) and (kind is bool or not isinstance(value, bool))
            return "" if fits else name
    return ""

"""What rewards there are, for people: ``rlreason rewards [NAME]``."""

from __future__ import annotations

import inspect
from importlib import metadata

from rlreason.rewards.environment import FromEnvironment
from rlreason.rewards.registry import ENTRY_POINT_GROUP, INJECTED, Reward, resolve, reward_names

_SEEN = {"completion": "one completion", "group": "all completions of a problem", "step": "all completions of a step"}


def listing() -> list[str]:
    """A line for each reward that is installed: name, options, first line of its docstring; or why it does not load."""
    lines = []
    names = reward_names()
    width = max(map(len, names))
    for name in names:
        try:
            entry = resolve(name)
        except ValueError as error:
            lines.append(f"{name:<{width}}  does not load: {error}")
            continue
        kind = "verifier: " if entry.verifier else ""
        lines.append(f"{name:<{width}}  {kind}{entry.summary}")
        options = ", ".join(_options(entry))
        if options:
            lines.append(f"{'':<{width}}  options: {options}")
    return lines


def description(name: str) -> list[str]:
    """All about one reward. Raises ValueError where there is none of that name."""
    entry = resolve(name)
    limits = [
        f"{entry.seconds:g} s a completion" if entry.seconds is not None else "",
        "no limit of memory" if entry.memory_mb == 0 else f"{entry.memory_mb} MB" if entry.memory_mb else "",
    ]
    lines = [
        f"{name}: {'a verifier' if entry.verifier else 'a reward'}, from {_origin(name, entry)}",
        f"sees      {_SEEN[entry.per]}",
        f"runs      {'many calls at a time (async)' if entry.concurrent else 'one call at a time in each worker'}",
        f"limits    {', '.join(filter(None, limits)) or 'those of the run'}",
        f"scores    {'the same for equal input' if entry.deterministic else 'may differ for equal input'}",
    ]
    options = _options(entry)
    lines += [f"options   {options[0]}", *(f"          {one}" for one in options[1:])] if options else []
    lines += ["", entry.doc] if entry.doc else []
    return lines


def _options(entry: Reward) -> list[str]:
    """``["style: Literal['tags', 'boxed'] = 'tags'", "max_tokens: int (needed)"]``."""
    if entry.options is None:
        return ["any"]
    try:
        parameters = inspect.signature(entry.function).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]
    return [_option(name, parameters.get(name), name in entry.required) for name in sorted(entry.options - INJECTED)]


def _option(name: str, parameter: inspect.Parameter | None, required: bool) -> str:
    if parameter is None:
        return f"{name} (needed)" if required else name
    kind = parameter.annotation
    text = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    typed = name if kind is inspect.Parameter.empty else f"{name}: {text}"
    if required or parameter.default is inspect.Parameter.empty:
        return f"{typed} (needed)"
    default = "***" if isinstance(parameter.default, FromEnvironment) else repr(parameter.default)
    return f"{typed} = {default}"


def _origin(name: str, entry: Reward) -> str:
    module = str(getattr(entry.function, "__module__", ""))
    if module.startswith("rlreason.rewards.") and ":" not in name:
        return "rlreason"
    for one in metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        package = one.dist.name if one.dist is not None else "an installed package"
        return f"{package} ({one.value})"
    return name if ":" in name else module

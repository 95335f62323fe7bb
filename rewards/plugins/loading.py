"""The function behind a plug-in's name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from rlreason.rewards.plugins import openrlhf, reward_model, server, trl, verl
from rlreason.rewards.plugins.adapted import Adapted, AnyFunction
from rlreason.rewards.plugins.names import Target, parse

#: Modules of plug-in files are in packages that begin so.
FILE_PACKAGE = "rlreason_plugin_"
_ADAPTERS = {"trl": trl.adapt, "verl": verl.adapt, "openrlhf": openrlhf.adapt}


def load(spec: str) -> AnyFunction:
    """The function that ``spec`` names, as it is written: ``pkg.mod:fn`` or ``path/file.py:fn``.

    Raises ValueError where there is none, saying what is there.
    """
    return _load_target(parse(spec))


def adapted(spec: str) -> Adapted | None:
    """The reward that ``spec`` names where it is written for another framework, a server or a model; None where it is
    one of our own kind."""
    target = parse(spec)
    if target.prefix == "http":
        return server.adapt(target.place)
    if target.prefix == "rm":
        return reward_model.adapt(target.place)
    return _ADAPTERS[target.prefix](_load_target(target)) if target.prefix else None


def module_file(name: str) -> Path | None:
    """The file of module ``name``, not run; None: it has none that can be found."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


def _load_target(of: Target) -> AnyFunction:
    place, name, target = of.place, of.function, f"{of.place}:{of.function}"
    module = _load_file(place) if of.is_file else _load_module(place)
    try:  # not vars(module): packages such as trl.rewards load what they offer when it is asked for
        function = getattr(module, name)
    except AttributeError:
        offered = sorted(key for key in dir(module) if not key.startswith("_") and _is_offered(module, key))
        raise ValueError(f"plug-in {target!r}: {place} has no {name!r}; it has: {', '.join(offered)}") from None
    except Exception as error:
        raise ValueError(f"plug-in {target!r} did not import: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"plug-in {target!r}: {name!r} is not a function")
    return function  # type: ignore[no-any-return]


def _is_offered(module: ModuleType, name: str) -> bool:
    """A function that is there, or one that a lazy package says it has."""
    return inspect.isfunction(vars(module)[name]) if name in vars(module) else True


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        here = Path(*name.split(".")).with_suffix(".py")
        hint = f"; the file in this folder is {here}:…" if here.is_file() else ""
        raise ValueError(f"plug-in module {name!r} did not import: {type(error).__name__}: {error}{hint}") from error


def _load_file(path: str) -> ModuleType:
    """The module of a file. Its relative imports (``from .parts import …``) find the files beside it."""
    file = Path(path).resolve()
    if not file.is_file():
        raise ValueError(f"plug-in file {path!r} does not exist (looked at {file})")
    # A package of its own per folder, so that two files of one name do not shadow each other. The folder's
    # __init__.py is not run: it may import a whole framework.
    folder = f"{FILE_PACKAGE}{hashlib.sha256(str(file.parent).encode()).hexdigest()[:16]}"
    if folder not in sys.modules:
        package = ModuleType(folder)
        package.__path__ = [str(file.parent)]
        sys.modules[folder] = package
    name = f"{folder}.{file.stem}"
    if name in sys.modules:
        return sys.modules[name]
    inside = [str(file.parent)] if file.stem == "__init__" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=inside)
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

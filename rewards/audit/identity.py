"""What an audit is of: the reward's code, options and versions. Nothing is imported or run to tell.

A plug-in's own files are those that it imports and that are neither of the standard library nor installed: the file
itself, modules beside it, its own package. Installed packages count by their version, rlreason's own rewards by their
code.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from rlreason.rewards import plugins
from rlreason.rewards.audit.result import Identity
from rlreason.rewards.environment import FromEnvironment
from rlreason.rewards.registry import entry_point_module

_MAX_FILES = 500


def identify(name: str, options: Mapping[str, object], verifier: str = "") -> Identity:
    """The identity of a reward by its name in a recipe. ``verifier``: of ``accuracy``, which one it asks; a plug-in's
    code counts too."""
    sources, packages = _code(name)
    if name == "accuracy" and ":" in verifier:
        more, also = _code(verifier)
        sources, packages = {**sources, **more}, {**packages, **also}
    versions = {"python": ".".join(platform.python_version_tuple()[:2]), "rlreason": _version("rlreason"), **packages}
    return Identity(
        reward=f"accuracy ({_label(verifier)})" if name == "accuracy" and verifier else _label(name),
        options={key: _plain(value) for key, value in sorted(options.items())},
        sources=sources, versions=versions,
    )  # fmt: skip


def same(first: Identity, second: Identity) -> list[str]:
    """What differs, in words; nothing: they are the same."""
    what = []
    if first.reward != second.reward:
        what.append(f"it is of {second.reward}")
    if dict(first.options) != dict(second.options):
        what.append(f"its options were {dict(second.options) or 'none'}, and are {dict(first.options) or 'none'}")
    for title, now, then in (
        ("code", first.sources, second.sources),
        ("version of", first.versions, second.versions),
    ):
        changed = sorted(key for key in {**now, **then} if now.get(key) != then.get(key))
        if changed:
            what.append(f"changed since: {title} {', '.join(changed[:4])}")
    return what


def _label(name: str) -> str:
    """The name without folders, so that a file may be moved with its audit."""
    return plugins.parse(name).label if ":" in name else name


def _plain(value: object) -> object:
    """As JSON gives it back."""
    if isinstance(value, FromEnvironment):
        return {"env": value.name}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _code(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """(file -> sha256, installed package -> version)."""
    module: str | None
    if ":" in name:
        target = plugins.parse(name)
        if target.is_folder:
            return _files(sorted(Path(target.place).glob("*.json")), Path(target.place)), {}
        if target.is_file:
            return _closure(Path(target.place))
        module = target.place if target.is_module else None
        if module is None:
            return {}, {}
    else:
        module = entry_point_module(name)
        if module is None:
            return _shipped(), {}
    file = _find(module, [Path(one) for one in sys.path])
    if file is None:
        return {}, {}
    installed = _distribution(module)
    if installed and _is_installed(file):
        return _files([file], file.parent), installed
    return _closure(file)


def _shipped() -> dict[str, str]:
    """One hash over the code of our rewards, without the auditor's."""
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        if "audit" not in file.relative_to(root).parts:
            total.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return {"rlreason.rewards": total.hexdigest()}


def _closure(start: Path) -> tuple[dict[str, str], dict[str, str]]:
    """A file and what of its own it imports."""
    start = Path(start).expanduser().resolve()
    places = [start.parent, *(Path(one) for one in sys.path)]
    found: dict[Path, None] = {}
    packages: dict[str, str] = {}
    waiting = [start]
    while waiting and len(found) < _MAX_FILES:
        file = waiting.pop()
        if file in found:
            continue
        found[file] = None
        for level, module in _imports(file):
            if level == 0 and module.partition(".")[0] in {*sys.stdlib_module_names, "rlreason"}:
                continue
            beside = [file.parents[min(level, len(file.parents)) - 1]] if level else [file.parent, *places]
            other = _find(module, beside, anywhere=level == 0)
            if other is not None and not _is_installed(other):
                waiting.append(other.resolve())
            elif other is not None:
                packages |= _distribution(module)
    return _files(list(found), start.parent), dict(sorted(packages.items()))


def _imports(file: Path) -> Iterator[tuple[int, str]]:
    """(0, dotted name) of what a file imports; of relative imports, how many dots they begin with."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, one.name) for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = f"{node.module}." if node.module else ""
            yield from ((node.level, f"{base}{one.name}") for one in node.names)
            if node.module:
                yield node.level, node.module


def _find(module: str, places: list[Path], *, anywhere: bool = True) -> Path | None:
    """The file of a module, without running anything; of ``a.b`` where there is no such file, that of ``a``."""
    parts = module.split(".")
    while parts:
        for place in places:
            path = place.joinpath(*parts)
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file():
                    return file
        if len(parts) == 1 and anywhere:
            spec = PathFinder.find_spec(parts[0])
            return Path(spec.origin) if spec is not None and spec.origin is not None else None
        parts.pop()
    return None


def _is_installed(file: Path) -> bool:
    shelves = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(file.is_relative_to(shelf) or file.resolve().is_relative_to(shelf) for shelf in shelves)


def _distribution(module: str) -> dict[str, str]:
    """Name and version of what a module was installed with."""
    names = metadata.packages_distributions().get(module.partition(".")[0], [])
    return {name: _version(name) for name in names[:1]}


def _version(name: str) -> str:
    if name == "rlreason":
        import rlreason

        return rlreason.__version__
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _files(files: list[Path], base: Path) -> dict[str, str]:
    """Paths relative to ``base`` where they are below it."""
    out = {}
    for file in files:
        path = file.relative_to(base) if file.is_relative_to(base) else Path(*file.parts[-2:])
        out[path.as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return dict(sorted(out.items()))

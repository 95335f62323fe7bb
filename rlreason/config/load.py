"""Reading recipes: shipped ones and files, with `key=value` overrides; errors that name the key."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter, ValidationError

from rlreason.config.errors import explain
from rlreason.config.recipe import Recipe
from rlreason.config.traces import TraceFilters
from rlreason.errors import UsageError, nearest


def recipe_toml(recipe: Recipe) -> str:
    """The effective recipe as TOML; what is None is left out, as TOML has no null."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def recipes_folder() -> Path:
    """The shipped recipes."""
    return Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the shipped recipes, sorted. Raises UsageError where their folder is missing."""
    names = sorted(path.parent.name for path in recipes_folder().glob("*/recipe.toml"))
    if not names:
        raise UsageError(
            f"no recipes in {recipes_folder()}: in a checkout that is a link, which some programs leave out when they "
            "unpack an archive; clone it by git, or install it by pip"
        )
    return names


def locate(recipe: str) -> Path:
    """The TOML file of a shipped name or a path. Raises UsageError naming the nearest shipped recipe."""
    shipped = recipes_folder() / recipe / "recipe.toml"
    if shipped.is_file():
        return shipped
    path = Path(recipe)
    if path.is_dir() and (path / "recipe.toml").is_file():
        return path / "recipe.toml"
    if path.is_file():
        return path
    names = shipped_recipes()
    raise UsageError(
        f"no recipe {recipe!r}: neither a file nor a shipped recipe ({', '.join(names)}){nearest(recipe, names)}"
    )


def load(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply ``key=value`` overrides. Raises UsageError with file, key and nearest match."""
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from error
    for override in overrides:
        _override(table, override)
    try:
        return TypeAdapter(Recipe).validate_python(table)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, table, Recipe)}") from error


def trace_filters(pairs: Iterable[str]) -> TraceFilters:
    """Filters of traces by ``NAME=VALUE``, such as "repetition=0.4" or "difficulty.above=0.1"; the others are as they
    are by default. Raises UsageError naming the pair or key, what is allowed and the nearest match."""
    table: dict[str, Any] = {}
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise UsageError(f"--filter {pair!r}: write NAME=VALUE, such as repetition=0.4")
        _override(table, pair)
    try:
        return TraceFilters.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"--filter: {explain(error, table, TraceFilters)}") from error


def allowed(recipe: Recipe, overrides: Iterable[str]) -> bool:
    """Whether ``recipe`` with these overrides is one."""
    table = tomllib.loads(recipe_toml(recipe))
    try:
        for override in overrides:
            _override(table, override)
        TypeAdapter(Recipe).validate_python(table)
    except (UsageError, ValidationError):
        return False
    return True


def _override(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UsageError(f"override {override!r}: write key=value, such as seed=1 or stage.grpo.steps=10")
    parts = _split_key(key)
    node: Any = table
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, list):
            node = _stage_named(node, part, override)
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            raise UsageError(f"override {override!r}: {'.'.join(parts[:depth])} holds a value, not a table")
    if not isinstance(node, dict):
        raise UsageError(f"override {override!r}: a stage is addressed by name, such as stage.grpo.steps=10")
    node[parts[-1]] = _value(text)


def _split_key(key: str) -> list[str]:
    """Dotted key, with quoted parts for names that hold dots: ``reward."pkg.mod:fn"``."""
    parts: list[str] = []
    for index, piece in enumerate(key.split('"')):
        parts += [piece] if index % 2 else [part for part in piece.split(".") if part]
    return parts


def _stage_named(stages: list[dict[str, Any]], name: str, override: str) -> dict[str, Any]:
    for stage in stages:
        if stage.get("name") == name:
            return stage
    names = [str(stage.get("name")) for stage in stages]
    raise UsageError(f"override {override!r}: no stage {name!r} (stages: {', '.join(names)}){nearest(name, names)}")


def _value(text: str) -> Any:
    """A TOML value where the text is one, a string otherwise."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text

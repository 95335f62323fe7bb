"""pydantic's errors about a recipe, as one line a person can act on."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from rlreason.config.data import DataConfig, DataSetConfig
from rlreason.errors import nearest


def explain(error: ValidationError, table: dict[str, Any], model: type[BaseModel]) -> str:
    """The first problem with its place, what is allowed and the nearest match; how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    location = first["loc"]
    place = _place(location, table)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden" or first["type"] == "unexpected_keyword_argument":
        allowed = _fields(model, location[:-1])
        unknown = str(location[-1])
        return f"unknown key {place}{nearest(unknown, allowed)}; allowed here: {', '.join(allowed)}{more}"
    if first["type"] == "missing":
        return f"{place} is missing{more}"
    message = first["msg"].removeprefix("Value error, ")
    given = (
        ""
        if first["type"] in {"value_error", "union_tag_not_found", "union_tag_invalid"}
        else f", not {first['input']!r}"
    )
    return f"{place}: {message}{given}{more}" if place else f"{message}{more}"


def _place(location: tuple[int | str, ...], table: dict[str, Any]) -> str:
    """``('stage', 1, 'grpo', 'steps')`` -> ``stage.<name of stage 1>.steps``."""
    parts: list[str] = []
    skip_tag = False
    for part in location:
        if isinstance(part, int) and parts == ["stage"]:
            stage = table["stage"][part]
            parts.append(str(stage.get("name", part)) if isinstance(stage, dict) else str(part))
            skip_tag = True
        elif skip_tag:
            skip_tag = False
            if part != table["stage"][int(location[1])].get("kind"):
                parts.append(str(part))
        elif not str(part).startswith(("function-", "tuple[", "dict[")):
            parts.append(str(part))
    return ".".join(parts)


def _fields(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Keys allowed in the table at ``location``."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        current = _descend(current, str(part))
    return _keys(current)


def _descend(current: Any, part: str) -> Any:
    for candidate in _candidates(current):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            if candidate is DataConfig and part not in candidate.model_fields:
                return DataSetConfig
            if part in candidate.model_fields:
                return candidate.model_fields[part].annotation
            kind = candidate.model_fields.get("kind")
            if kind is not None and part in get_args(kind.annotation):
                return candidate
    return current


def _candidates(annotation: Any) -> list[Any]:
    """The classes inside Annotated, unions and tuples."""
    arguments = get_args(annotation)
    return [annotation] if not arguments else [found for argument in arguments for found in _candidates(argument)]


def _keys(annotation: Any) -> list[str]:
    for candidate in _candidates(annotation):
        if isinstance(candidate, type):
            if issubclass(candidate, BaseModel):
                return list(candidate.model_fields)
            if dataclasses.is_dataclass(candidate):
                return [field.name for field in dataclasses.fields(candidate)]
    return []

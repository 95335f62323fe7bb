"""What is wrong with a recipe, as one line a person can act on: pydantic finds it, and none of its words are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rlreason.config.data import DataConfig, DataSetConfig
from rlreason.errors import nearest

#: What a value must be: pydantic's type of error -> words that follow "must be".
KINDS: Mapping[str, str] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "dataclass_type", "model_attributes_type"), "a table"),
    "none_required": "left out",
}
#: Bounds: pydantic's type of error -> words, with the bound from its context.
BOUNDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda of: f"more than {of['gt']:g}",
    "greater_than_equal": lambda of: f"at least {of['ge']:g}",
    "less_than": lambda of: f"less than {of['lt']:g}",
    "less_than_equal": lambda of: f"at most {of['le']:g}",
    "multiple_of": lambda of: f"a multiple of {of['multiple_of']:g}",
    "string_too_short": lambda of: f"at least {_count(of['min_length'], 'character')} long",
    "string_too_long": lambda of: f"at most {_count(of['max_length'], 'character')} long",
    "too_short": lambda of: f"a list of at least {of['min_length']}, and it has {of['actual_length']}",
    "too_long": lambda of: f"a list of at most {of['max_length']}, and it has {of['actual_length']}",
}
#: Pattern of a field -> what it asks for, after "must be".
PATTERNS: Mapping[str, str] = {
    r"^[a-z0-9][a-z0-9_]*$": "small letters, digits and _, such as cold_start",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]*$": "letters, digits, '_', '.' and '-', beginning with a letter or digit",
    r"^[A-Za-z_][A-Za-z0-9_]*$": "the name of an environment variable, such as API_KEY",
    r"^https?://[^\s/]+\S*$": "a URL up to the version, such as http://localhost:8000/v1",
}
#: Parts of pydantic's places that name one branch of a union and no key.
_BRANCHES = ("str", "int", "float", "bool", "none", "literal", "function-", "tuple[", "list[", "dict[", "constrained-")


def explain(error: ValidationError, table: dict[str, Any], model: type[BaseModel]) -> str:
    """The first problem with its place, what is allowed and the nearest match; how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    same = [one for one in problems if _key(one["loc"]) == _key(first["loc"])]
    more = f" (and {len(problems) - len(same)} more)" if len(problems) > len(same) else ""
    location = first["loc"]
    place = _place(location, table)
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        allowed = _fields(model, location[:-1])
        unknown = str(location[-1])
        return f"unknown key {place}{nearest(unknown, allowed)}; allowed here: {', '.join(allowed)}{more}"
    if first["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"{place} is missing{more}"
    return f"{f'{place}: ' if place else ''}{_sentence(same)}{more}"


def _sentence(problems: Sequence[ErrorDetails]) -> str:
    """What is wrong with one value; several problems of it are those of the branches of a union."""
    first = problems[0]
    context, given = dict(first["ctx"]) if "ctx" in first else {}, first["input"]
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    if first["type"] in {"union_tag_not_found", "union_tag_invalid"}:
        kinds = [kind.strip(" '\"") for kind in str(context["expected_tags"]).split(",")] if "tag" in context else []
        tag = str(context["tag"]) if "tag" in context else None
        return f"no stage of kind {tag!r}{nearest(tag, kinds)}; kinds: {', '.join(kinds)}" if tag else "kind is missing"
    wanted = list(dict.fromkeys(_wanted(one) for one in problems))
    text = " or ".join(wanted)
    hint = ""
    if first["type"] == "literal_error":
        choices = _choices(context)
        hint = nearest(str(given), choices)
    return f"must be {text}, not {given!r}{hint}"


def _wanted(problem: ErrorDetails) -> str:
    """Words that follow "must be"."""
    kind, context = problem["type"], dict(problem["ctx"]) if "ctx" in problem else {}
    if kind in KINDS:
        return KINDS[kind]
    if kind in BOUNDS:
        return BOUNDS[kind](context)
    if kind in {"literal_error", "enum"}:
        choices = _choices(context)
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if kind == "string_pattern_mismatch":
        pattern = str(context["pattern"])
        return PATTERNS.get(pattern, f"written as {pattern}")
    return problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def _choices(context: Mapping[str, Any]) -> list[str]:
    """The words of a literal, of pydantic's "'auto', 'inline' or 'ray'"."""
    return [word.strip(" '\"") for word in str(context["expected"]).replace(" or ", ",").split(",") if word.strip()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and part.startswith(_BRANCHES)


def _key(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The place without the branches of unions at its end."""
    while len(location) > 1 and _is_branch(location[-1]):
        location = location[:-1]
    return location


def _place(location: tuple[int | str, ...], table: dict[str, Any]) -> str:
    """``('stage', 1, 'grpo', 'steps')`` -> ``stage.<name of stage 1>.steps``."""
    parts: list[str] = []
    skip_tag = False
    for part in _key(location):
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

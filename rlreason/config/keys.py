"""Every key of a recipe with its type, default and comment, from the one place where they stand: the schema's classes.

`rlreason keys`, `rlreason schema` and docs/recipe.md all come from here. A key's comment is the ``#:`` lines above its
field; the rest is what pydantic knows of it.

Write docs/recipe.md anew: ``python -m rlreason.config.keys > docs/recipe.md``.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from rlreason.config.recipe import Recipe
from rlreason.errors import UsageError, nearest
from rlreason.objective.presets import PRESETS

#: JSON schema's words for types -> ours.
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "table"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
#: Tables whose keys are the user's own names.
_NAMED = {"endpoint": "NAME", "data": "NAME", "reward": "NAME"}


#: Keys that mean the same in every table that has them without a comment of its own.
SHARED = {
    "kind": "What the stage does.",
    "model": 'What the stage begins with: "policy" or "student" for the model of that table, or the name of an earlier '
    "stage, whose model is trained on.",
    "problems": "How many problems.",
    "samples_per_problem": "Completions drawn of each problem.",
    "max_tokens": "Longest completion.",
    "temperature": "Divides the logits that completions are drawn from; 0 is greedy.",
    "top_p": "Draw from the most probable tokens that together have this probability.",
    "top_k": "Draw from the most probable tokens only, so many of them; 0: from all.",
    "batch_size": "Rows of one optimizer step.",
    "steps": "Optimizer steps.",
    "problems_per_step": "Problems that one step learns from.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. Example: ``Key(name="steps", type="whole number ≥ 1", default=None, comment="Optimizer steps.")``."""

    name: str
    type: str
    #: As TOML writes it; None: it has none and is needed; "": none and not needed.
    default: str | None
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table of a recipe. Example: ``Table(path="sampler", heading="[sampler]", about="…", keys=(…,))``."""

    #: What `rlreason keys` is asked for: "sampler", "stage.grpo", "stage.objective".
    path: str
    heading: str
    about: str
    keys: tuple[Key, ...]
    #: The table that has the same keys; "": none before it.
    same_as: str = ""


def comments_of(cls: type) -> dict[str, str]:
    """Field -> its ``#:`` comment, those of base classes included."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        if one.__module__.startswith("rlreason."):
            module = sys.modules[one.__module__]
            found |= _comments(Path(inspect.getfile(module))).get(one.__name__, {})
    return found


@cache
def _comments(path: Path) -> dict[str, dict[str, str]]:
    """Class -> field -> comment, of one source file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = found[node.name] = {}
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                above = field.lineno - 2
                block: list[str] = []
                while above >= 0 and lines[above].strip().startswith("#:"):
                    block.insert(0, lines[above].strip().removeprefix("#:").strip())
                    above -= 1
                if block:
                    fields[field.target.id] = " ".join(block).replace("``", "`")
    return found


@cache
def schema() -> dict[str, Any]:
    """JSON schema of a recipe, comments as descriptions: for editors of TOML files."""
    found = Recipe.model_json_schema()
    for name, cls in _classes().items():
        part = found if cls is Recipe else found["$defs"][name]
        comments = SHARED | comments_of(cls)
        part["description"] = _about(cls)
        for key, value in part.get("properties", {}).items():
            if key in comments:
                value["description"] = comments[key]
            value.pop("title", None)
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "rlreason recipe"
    _allow_presets(found["$defs"])
    return found


def _allow_presets(definitions: dict[str, Any]) -> None:
    """An objective is a preset's name too, or a table that begins with one."""
    names = {"enum": sorted(PRESETS), "type": "string"}
    objective = definitions["GrpoStage"]["properties"]["objective"]
    reference = objective.pop("$ref")
    objective["anyOf"] = [names, {"$ref": reference}]
    definitions["ObjectiveSpec"]["properties"] |= {
        "preset": {
            **names,
            "description": "The preset that the other keys differ from; default dapo.",
            "default": "dapo",
        }
    }


@cache
def _classes() -> dict[str, type]:
    """Every class of the schema by name."""
    found: dict[str, type] = {}
    waiting: list[Any] = [Recipe]
    while waiting:
        one = waiting.pop()
        waiting += get_args(one)
        if not isinstance(one, type) or one.__name__ in found:
            continue
        if issubclass(one, BaseModel):
            found[one.__name__] = one
            # What is excluded is written in another table: `reward_audit` in [reward].
            waiting += [field.annotation for field in one.model_fields.values() if not field.exclude]
            extra = inspect.get_annotations(one).get("__pydantic_extra__")
            waiting += [] if extra is None else list(get_args(_evaluated(one, extra)))
        elif is_dataclass(one) and one.__module__.startswith("rlreason."):
            found[one.__name__] = one
    return found


def _evaluated(cls: type, annotation: object) -> object:
    return eval(annotation, vars(sys.modules[cls.__module__])) if isinstance(annotation, str) else annotation


def _about(cls: type) -> str:
    """The first paragraph of the docstring."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def tables() -> list[Table]:
    """Every table of a recipe, in its order."""
    seen: dict[str, str] = {}
    return list(_tables("", schema(), seen))


def _tables(path: str, part: Mapping[str, Any], seen: dict[str, str]) -> Iterator[Table]:
    """The table at ``path``, then those inside it."""
    needed = part.get("required", ())
    inner: list[tuple[str, str]] = []
    keys: list[Key] = []
    for name, value in part.get("properties", {}).items():
        found = list(_inside(name, value))
        inner += found
        if not found or ("anyOf" in value and not _optional(value)):
            keys.append(_key(name, value, name in needed))
    extra = part.get("additionalProperties")
    if isinstance(extra, dict) and "$ref" in extra:
        inner.append((_NAMED.get(path, "NAME"), extra["$ref"]))
    yield Table(path=path, heading=_heading(path), about=str(part.get("description", "")), keys=tuple(keys))
    for name, reference in inner:
        where = f"{path}.{name}" if path else name
        if path.startswith("stage."):  # what stages share is told once
            where = f"stage.{name}"
        definition = reference.rpartition("/")[2]
        if definition in seen:
            if seen[definition] != where:
                yield Table(path=where, heading=_heading(where), about="", keys=(), same_as=seen[definition])
            continue
        seen[definition] = where
        yield from _tables(where, schema()["$defs"][definition], seen)


def _optional(value: Mapping[str, Any]) -> bool:
    """Whether it is a table or nothing."""
    return all("$ref" in one or one.get("type") == "null" for one in value["anyOf"])


def _inside(name: str, value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, reference) of the tables that a key holds."""
    if "$ref" in value:
        if not value["$ref"].endswith(("/JsonValue", "/AnyOf")):
            yield name, value["$ref"]
    elif "anyOf" in value:
        for one in value["anyOf"]:
            yield from _inside(name, one)
    elif isinstance(value.get("additionalProperties"), dict) and "$ref" in value["additionalProperties"]:
        reference = value["additionalProperties"]["$ref"]
        if not reference.endswith("/JsonValue"):
            yield f"{name}.{_NAMED.get(name, 'NAME')}", reference
    elif value.get("type") == "array" and "oneOf" in value.get("items", {}):
        kinds = {reference: kind for kind, reference in value["items"]["discriminator"]["mapping"].items()}
        for one in value["items"]["oneOf"]:
            yield f"{name}.{kinds[one['$ref']]}", one["$ref"]


def _heading(path: str) -> str:
    if not path:
        return "top of the file"
    first, _, rest = path.partition(".")
    if first == "stage":
        kinds = schema()["properties"]["stage"]["items"]["discriminator"]["mapping"]
        return f'[[stage]] kind = "{rest}"' if rest in kinds else f"[stage.{rest}]"
    return f"[{path}]"


def _key(name: str, value: Mapping[str, Any], needed: bool) -> Key:
    default = None if needed else _toml(value.get("default"))
    return Key(name=name, type=_type(value), default=default, comment=str(value.get("description", "")))


def _toml(value: object) -> str:
    if value is None or isinstance(value, dict):
        return ""
    return json.dumps(value, ensure_ascii=False)


def _type(value: Mapping[str, Any]) -> str:
    """A type in words, with what is allowed."""
    if "const" in value:
        return json.dumps(value["const"])
    if "enum" in value:
        return ", ".join(json.dumps(one) for one in value["enum"])
    if "anyOf" in value or "oneOf" in value:
        branches = [_type(one) for one in value.get("anyOf", value.get("oneOf", ())) if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(branches))
    if "$ref" in value:
        inner = schema()["$defs"][value["$ref"].rpartition("/")[2]]
        return "any value" if value["$ref"].endswith("/JsonValue") else _type(inner)
    if value.get("type") == "array":
        if "prefixItems" in value:
            return f"list of {', '.join(_type(one) for one in value['prefixItems'])}"
        items = value.get("items")
        inner_type = _type(items) if isinstance(items, dict) and items else ""
        return f"list of {inner_type}" if inner_type else "list"
    bounds = "".join(f" {sign} {value[key]:g}" for key, sign in _BOUNDS.items() if key in value)
    return TYPES.get(str(value.get("type")), "any value") + bounds


def asked_tables(name: str | None) -> list[Table]:
    """The tables that `rlreason keys NAME` prints: the one called so, and those inside it.

    Raises UsageError with the nearest name.
    """
    found = tables()
    if name is None:
        return found
    wanted = re.sub(r"[\[\]]", "", name)
    picked = [one for one in found if one.path == wanted or one.path.startswith(f"{wanted}.")]
    if not picked:
        paths = [one.path for one in found if one.path]
        raise UsageError(f"a recipe has no table {name!r}{nearest(wanted, paths)}; tables: {', '.join(paths)}")
    return picked


def as_text(found: list[Table], width: int = 100) -> str:
    """Tables for a terminal."""
    blocks = []
    for table in found:
        about = f"The keys of {_heading(table.same_as)}." if table.same_as else table.about
        lines = [table.heading, *textwrap.wrap(about, width, initial_indent="  ", subsequent_indent="  ")]
        for key in table.keys:
            default = ", needed" if key.default is None else f", default {key.default}" if key.default else ""
            lines.append(f"  {key.name}: {key.type}{default}")
            lines += textwrap.wrap(key.comment, width, initial_indent="      ", subsequent_indent="      ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def as_markdown() -> str:
    """docs/recipe.md."""
    lines = [
        "# Every key of a recipe",
        "",
        "Made from the schema by `python -m rlreason.config.keys > docs/recipe.md`. `rlreason keys TABLE` prints a",
        "part of it; `rlreason schema > recipe.schema.json` gives the same to editors of TOML files: taplo (Even",
        "Better TOML in VS Code) takes it by the line `#:schema ./recipe.schema.json` at the top of a recipe.",
        "",
        "A key without a default that is not needed is off, or the model's own. Any key can be set on the command",
        "line: `rlreason plan quickstart stage.grpo.steps=10`.",
    ]
    for table in tables():
        lines += ["", f"## {table.heading}", ""]
        if table.same_as:
            lines.append(f"The keys of {_heading(table.same_as)}.")
            continue
        lines += [table.about, ""] if table.about else []
        if table.keys:
            lines += ["| key | value | default | |", "|---|---|---|---|"]
        for key in table.keys:
            default = "needed" if key.default is None else f"`{key.default}`" if key.default else ""
            lines.append(f"| `{key.name}` | {_cell(key.type)} | {_cell(default)} | {_cell(key.comment)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(as_markdown())

"""Keys, JSON schema and docs/recipe.md are one source, and the messages about a recipe are sentences of ours."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rlreason.config import load, locate, shipped_recipes
from rlreason.config.errors import BOUNDS, KINDS, PATTERNS
from rlreason.config.keys import as_markdown, as_text, asked_tables, schema, tables
from rlreason.errors import UsageError

ROOT = Path(__file__).parent.parent


def test_docs_recipe_is_made_from_the_schema() -> None:
    made = as_markdown()
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == made, (
        "keys changed: python -m rlreason.config.keys > docs/recipe.md"
    )


def test_every_key_is_explained() -> None:
    assert not [f"{table.path}.{key.name}" for table in tables() for key in table.keys if not key.comment]


def test_each_key_has_a_sentence_of_its_own() -> None:
    """It says what this key is, without another key's row: no "likewise", no "as in", no half of a sentence."""
    for table in tables():
        comments = [key.comment for key in table.keys]
        assert len(set(comments)) == len(comments) or table.path == "stage.grpo", table.path
        for comment in comments:
            assert comment.endswith("."), (table.path, comment)
            assert not re.search(r"\blikewise\b|\bAs in\b|^\.\.\.|\bNone\b", comment), (table.path, comment)


def test_every_key_of_every_shipped_recipe_is_listed() -> None:
    known = {f"{table.path}.{key.name}".lstrip(".") for table in tables() for key in table.keys}
    for name in shipped_recipes():
        table = tomllib.loads(locate(name).read_text(encoding="utf-8"))
        for stage in table["stage"]:
            assert {
                f"stage.{stage['kind']}.{key}" for key in stage if key not in {"optimizer", "curriculum", "filters"}
            } <= known
        for key, value in table.items():
            if isinstance(value, dict) and key in {"sampler", "cluster", "trainer"}:
                assert {f"{key}.{inner}" for inner in value} <= known


def test_a_table_and_what_is_in_it() -> None:
    assert [one.path for one in asked_tables("[data]")][:2] == ["data", "data.columns"]
    (sampler,) = asked_tables("sampler")
    rows = {key.name: key for key in sampler.keys}
    assert rows["max_rows"].type == "whole number ≥ 1"
    assert rows["max_rows"].default == "512"
    assert rows["engine"].type == '"auto", "transformers", "vllm"'
    assert rows["max_length"].default == ""
    text = as_text(asked_tables("stage.grpo"))
    assert "problems_per_step: whole number ≥ 1, needed" in text
    with pytest.raises(UsageError, match="did you mean 'sampler'"):
        asked_tables("samplr")


def valid(table: dict[str, Any]) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    return [error.message for error in jsonschema.Draft202012Validator(schema()).iter_errors(table)]


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_schema_takes_what_the_loader_takes_and_refuses_what_it_refuses(name: str) -> None:
    table = tomllib.loads(locate(name).read_text(encoding="utf-8"))
    assert valid(table) == []
    assert valid({**table, "smapler": {}})
    assert valid({**table, "sampler": {"engine": "vlm"}})
    assert valid({**table, "sampler": {"max_rows": 0}})


def test_the_schema_knows_presets() -> None:
    table = tomllib.loads(locate("quickstart").read_text(encoding="utf-8"))
    grpo = next(stage for stage in table["stage"] if stage["kind"] == "grpo")
    for objective in ("rloo", {"preset": "rloo", "kl_coef": 0.1}, {"clip_high": 0.3}):
        grpo["objective"] = objective
        assert valid(table) == []
    for objective in ("rlo", {"clip_hgh": 0.3}):
        grpo["objective"] = objective
        assert valid(table)


#: pydantic's phrases, none of which a user should meet.
FOREIGN = re.compile(
    r"Input should|valid (string|integer|number|dictionary|tuple|list)|instance of|Field required|pattern|"
    r"unable to parse|discriminator|Extra inputs"
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stage.grpo.steps=abc", "stage.grpo.steps: must be a whole number, not 'abc'"),
        ("stage.grpo.steps=1.5", "stage.grpo.steps: must be a whole number, not 1.5"),
        ("stage.grpo.steps=0", "stage.grpo.steps: must be at least 1, not 0"),
        ("stage.grpo.optimizer.lr=0", "stage.grpo.optimizer.lr: must be more than 0 or auto, not 0"),
        ("stage.grpo.top_p=2", "stage.grpo.top_p: must be at most 1, not 2"),
        ("cluster.kind=rey", "cluster.kind: must be one of auto, inline, ray, not 'rey'; did you mean 'ray'?"),
        ("stage.grpo.name=Bad-Name", "must be small letters, digits and _, such as cold_start, not 'Bad-Name'"),
        ("policy=3", "policy: must be a table, not 3"),
        ("stage=3", "stage: must be a list, not 3"),
        ("sampler.canary=maybe", "sampler.canary: must be true or false, not 'maybe'"),
        ("stage.grpo.kind=gpro", "stage.grpo: no stage of kind 'gpro'; did you mean 'grpo'?"),
        ("reward.accuracy=x", "reward.accuracy: must be a number or a table, not 'x'"),
        ("endpoint.a.url=foo", "endpoint.a.url: must be a URL up to the version"),
        ("data.columns.prompt=3", "data.columns.prompt: must be text or a list, not 3"),
        ("name=a b", "name: must be letters, digits"),
        ("trainer.best_metric=''", "trainer.best_metric: must be at least 1 character long, not ''"),
        ("stage.grpo.objective.baseline=men", "objective.baseline: must be one of mean, leave_one_out"),
        ("sampler.max_row=3", "unknown key sampler.max_row; did you mean 'max_rows'?"),
    ],
)
def test_messages_are_plain_sentences(override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(locate("quickstart"), (override,))
    assert message in str(caught.value)
    assert not FOREIGN.search(str(caught.value))


def test_every_pattern_and_bound_of_the_schema_has_words() -> None:
    def inside(value: Any, name: str) -> list[str]:
        if isinstance(value, dict):
            own = [str(value[name])] if isinstance(value.get(name), str) else []
            return own + [found for one in value.values() for found in inside(one, name)]
        return [found for one in value for found in inside(one, name)] if isinstance(value, list) else []

    assert set(inside(schema(), "pattern")) <= set(PATTERNS)
    assert {"int_type", "float_parsing", "bool_parsing", "string_type", "list_type", "model_type"} <= set(KINDS)
    assert {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short"} <= set(BOUNDS)

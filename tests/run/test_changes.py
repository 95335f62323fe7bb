"""What of a recipe may be different when its run is taken up again, and that the docs say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlreason.config import (
    ClusterConfig,
    DataConfig,
    EndpointConfig,
    GrpoStage,
    Recipe,
    SamplerConfig,
    TrainerConfig,
    load,
    recipe_toml,
)
from rlreason.config.changes import FREE, OF_DRAWS, allowed_changes, differences
from rlreason.config.reward_audit import RewardAudit
from rlreason.errors import UsageError

RECIPE = """
name = "tiny"
[data]
train = "arithmetic"
[endpoint.big]
url = "http://localhost:8000/v1"
model = "m"
[reward]
accuracy = 1.0
"judges/a.py:judge" = 0.5
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
steps = 3
[[stage]]
kind = "grpo"
name = "rl"
steps = 3
problems_per_step = 4
max_tokens = 8
"""


def recipe(tmp_path: Path, *overrides: str, text: str = RECIPE) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load(path, overrides)


def test_a_default_that_is_written_out_is_no_difference(tmp_path: Path) -> None:
    first = recipe(tmp_path)
    assert differences(first, recipe(tmp_path, text=recipe_toml(first))) == []
    assert differences(first, recipe(tmp_path, "trainer.save_every=50", "stage.rl.objective.clip_low=0.2")) == []


def test_keys_that_change_no_result_may_change(tmp_path: Path) -> None:
    overrides = ("cluster.reward_workers=3", "endpoint.big.url=http://other/v1", "stage.rl.micro_batch_tokens=99")
    changes = allowed_changes(recipe(tmp_path), recipe(tmp_path, *overrides), "runs/a")
    assert list(map(str, changes.differences)) == [
        "endpoint.big.url: 'http://localhost:8000/v1' -> 'http://other/v1'",
        "cluster.reward_workers: 1 -> 3",
        "stage.rl.micro_batch_tokens: nothing -> 99",
    ]
    assert changes.extended == ()


def test_a_stage_may_be_given_more_steps_and_not_fewer(tmp_path: Path) -> None:
    more = allowed_changes(recipe(tmp_path), recipe(tmp_path, "stage.rl.steps=5"), "runs/a")
    assert (more.extended, str(more.differences[0])) == (("rl",), "stage.rl.steps: 3 -> 5")
    with pytest.raises(UsageError, match=r"begun with stage\.rl\.steps = 3, not 2: .* more steps, not fewer"):
        allowed_changes(recipe(tmp_path), recipe(tmp_path, "stage.rl.steps=2"), "runs/a")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=1", "seed = 0, not 1"),
        ("stage.rl.optimizer.lr=1e-5", "stage.rl.optimizer.lr = 1e-06, not 1e-05"),
        ("reward.accuracy=0.5", "reward.accuracy = 1.0, not 0.5"),
        ("reward.format=0.5", "reward.format = nothing, not 0.5"),
        ('reward."judges/a.py:judge"=1', 'reward."judges/a.py:judge" = 0.5, not 1.0'),
        ("cluster.reward_timeout=5", "cluster.reward_timeout = 60.0, not 5.0"),
        ("cluster.kind=inline", "cluster.kind = 'auto', not 'inline'"),
        ("sampler.max_length=64", "sampler.max_length = nothing, not 64"),
        ("endpoint.big.model=other", "endpoint.big.model = 'm', not 'other'"),
        ("trainer.checkpoint_dtype=bfloat16", "trainer.checkpoint_dtype = 'auto', not 'bfloat16'"),
        ("stage.cold.name=warm", "the stages cold, rl, and the recipe now has warm, rl"),
    ],
)
def test_others_are_refused_by_name_with_both_values(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        allowed_changes(recipe(tmp_path), recipe(tmp_path, override), "runs/a")
    assert str(caught.value).startswith(f"runs/a was begun with {words}")


DRAWS = (
    RECIPE
    + """
[[stage]]
kind = "reject"
name = "traces"
problems = 4
max_tokens = 8
filters = { repetition = 0.2 }
"""
)


def test_filters_of_a_reject_stage_may_change_until_it_is_done(tmp_path: Path) -> None:
    """They are a function of the draws, which are there already; without filters traces are written as they come."""
    wanted = {
        "stage.traces.filters.repetition=1": "stage.traces.filters.repetition: 0.2 -> 1.0",
        "stage.traces.filters.difficulty.above=0.1": "stage.traces.filters.difficulty.above: nothing -> 0.1",
        "stage.traces.keep_per_problem=3": "stage.traces.keep_per_problem: 1 -> 3",
        "stage.traces.keep_rejected=true": "stage.traces.keep_rejected: False -> True",
    }
    old = recipe(tmp_path, text=DRAWS)
    for override, told in wanted.items():
        new = recipe(tmp_path, override, text=DRAWS)
        assert told in map(str, allowed_changes(old, new, "runs/a", ["cold"]).differences)
        with pytest.raises(UsageError, match=r"begun with stage\.traces\..*which would change its results"):
            allowed_changes(old, new, "runs/a", ["cold", "traces"])
    bare = recipe(tmp_path, text=DRAWS.replace("filters = { repetition = 0.2 }", ""))
    for before, after in ((bare, old), (old, bare)):
        with pytest.raises(UsageError, match=r"begun with stage\.traces\.filters\.finished"):
            allowed_changes(before, after, "runs/a")
    capped = recipe(
        tmp_path, "stage.traces.keep_per_problem=3", text=DRAWS.replace("filters = { repetition = 0.2 }", "")
    )
    with pytest.raises(UsageError, match=r"begun with stage\.traces\.keep_per_problem = 1, not 3"):
        allowed_changes(bare, capped, "runs/a")
    for override in ("stage.traces.problems=5", "stage.traces.temperature=0.5"):
        with pytest.raises(UsageError, match="which would change its results"):
            allowed_changes(old, recipe(tmp_path, override, text=DRAWS), "runs/a")
    docs = (Path(__file__).parent.parent.parent / "docs" / "run_directory.md").read_text(encoding="utf-8")
    assert all(f"`stage.*.{key}`" in docs for key in OF_DRAWS)


def test_every_free_key_is_a_key_and_in_the_docs() -> None:
    tables = {
        "data": DataConfig,
        "trainer": TrainerConfig,
        "sampler": SamplerConfig,
        "cluster": ClusterConfig,
        "endpoint.*": EndpointConfig,
        "stage.*": GrpoStage,
        "reward": RewardAudit,
    }
    keys = {f"{table}.{key}" for table, schema in tables.items() for key in schema.model_fields}
    text = (Path(__file__).parents[2] / "docs" / "run_directory.md").read_text(encoding="utf-8")
    for key in FREE:
        assert key in keys | set(Recipe.model_fields) | {"logging.*", "health.*"}
        assert f"`{key}`" in text

"""Recipes: what is refused, and that each refusal names the place, what is allowed and the nearest match."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlreason.check import check
from rlreason.config import GrpoStage, Recipe, load, locate, shipped_recipes
from rlreason.errors import UsageError
from rlreason.plan.text import describe

RECIPE = """
name = "tiny"
[data]
train = "arithmetic"
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file


def test_overrides_reach_tables_and_stages(path: Path) -> None:
    recipe = load(path, ("seed=7", "stage.rl.objective.clip_high=0.3", "data.options.max_terms=4", "reward.format=0.1"))
    stage = recipe.stage[1]
    assert isinstance(stage, GrpoStage)
    assert (recipe.seed, stage.objective.clip_high) == (7, 0.3)
    assert recipe.data.options == {"max_terms": 4}
    assert recipe.reward["format"] == 0.1


def test_an_override_that_is_no_toml_is_text(path: Path) -> None:
    assert load(path, ("description=two words",)).description == "two words"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seeed=1", ["unknown key seeed", "did you mean 'seed'", "allowed here"]),
        ("stage.rl.smaples_per_problem=4", ["stage.rl.smaples_per_problem", "did you mean 'samples_per_problem'"]),
        ("stage.rl.objective.clip_hihg=1", ["stage.rl.objective.clip_hihg", "did you mean 'clip_high'"]),
        ("stage.cold.optimizer.lrr=1", ["stage.cold.optimizer.lrr", "did you mean 'lr'"]),
        ("data.optoins.a=1", ["data.optoins", "did you mean 'options'"]),
        ("stage.rl.samples_per_problem=1", ["stage.rl", "samples_per_problem = 1", "at least 2"]),
        ("stage.rl.objective.clip_high=0.1", ["clip_high (0.1)", "clip_low (0.2)"]),
        ("stage.rl.min_p=1", ["stage.rl.min_p", "less than 1"]),
        ("stage.rl.temperature=0", ["stage.rl.temperature", "more than 0"]),
        ("stage.rl.model=cald", ["'cald'", "did you mean 'cold'"]),
        ("stage.rl.kind=gppo", ["stage.rl", "'gppo'", "'grpo'"]),
        ("stage.cold.steps=many", ["stage.cold.steps", "whole number", "'many'"]),
        ("stage.r.steps=1", ["no stage 'r'", "cold, rl"]),
        ("stage.rl.optimizer.final_lr_ratio=0", ["final_lr_ratio = 0 changes nothing", '"linear" or "cosine"']),
        ("name", ["key=value"]),
        ("seed.x=1", ["seed"]),
    ],
)
def test_a_wrong_override_is_one_clear_line(path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(path, (override,))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_stage_that_needs_what_is_not_there(path: Path) -> None:
    path.write_text(RECIPE + '[[stage]]\nkind = "distill"\nname = "small"\nsteps = 1\n')
    with pytest.raises(UsageError, match="no \\[student\\] table"):
        load(path)
    with pytest.raises(UsageError, match="kind reject"):
        load(path, ("student.model_type=qwen3",))


def test_two_stages_of_one_name(path: Path) -> None:
    path.write_text(RECIPE.replace('"rl"', '"cold"'))
    with pytest.raises(UsageError, match="two stages are called 'cold'"):
        load(path)


def test_a_stage_named_like_a_table_is_refused(path: Path) -> None:
    # An eval stage would measure the untrained [student] where the stage was meant.
    with pytest.raises(UsageError, match="a stage can't be called 'student'"):
        load(path, ("stage.rl.name=student",))


def test_not_toml_and_not_there(path: Path) -> None:
    path.write_text("name = ")
    with pytest.raises(UsageError, match="not valid TOML"):
        load(path)
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        locate("quikstart")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward.acuracy=1.0", ["[reward]", "acuracy", "did you mean 'accuracy'"]),
        ("data.verifier=mth", ["data.verifier", "'mth'", "did you mean 'math'"]),
        ("data.train=problems.jsonl", ["problems.jsonl"]),
        ("data.options.max_trems=3", ["max_trems", "did you mean 'max_terms'"]),
    ],
)
def test_rewards_and_data_are_checked_without_a_model(path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        check(load(path, (override,)), path.parent)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_fit_one_screen_each(name: str) -> None:
    recipe = load(locate(name))
    assert isinstance(recipe, Recipe)
    assert recipe.name == name
    assert recipe.description
    assert (locate(name).parent / "README.md").is_file()


def test_plan_prints_the_objective(path: Path) -> None:
    text = describe(load(path), path)
    assert "clip(ρ, 0.8, 1.28)" in text
    assert "3 steps x 4 problems x 8 completions = 96 completions" in text


ENDPOINT = ("endpoint.big.url=http://localhost:8000/v1", "endpoint.big.model=qwen3-32b")
REJECT = '[[stage]]\nkind = "reject"\nname = "traces"\nmodel = "big"\nproblems = 4\nmax_tokens = 8\n'
DISTILL = '[[stage]]\nkind = "distill"\nname = "small"\nsteps = 1\n'
EVAL = '[[stage]]\nkind = "eval"\nname = "final"\nmodels = ["big", "rl"]\nmax_tokens = 8\n'


def test_an_endpoint_may_be_drawn_from(path: Path) -> None:
    path.write_text(RECIPE + REJECT + DISTILL + EVAL)
    recipe = load(path, (*ENDPOINT, "student.model_type=qwen3"))
    assert recipe.endpoint["big"].model == "qwen3-32b"
    assert recipe.endpoint["big"].api == "completions"
    with pytest.raises(UsageError, match=r"'small': teacher_kl = 0.5 .* endpoint 'big'.* use teacher_kl = 0"):
        load(path, (*ENDPOINT, "student.model_type=qwen3", "stage.small.teacher_kl=0.5"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((*ENDPOINT, "stage.rl.model=big"), ["'rl'", "'big' is an endpoint", "reject and eval"]),
        (("endpoint.rl.url=http://h/v1", "endpoint.rl.model=m"), ["'rl' has the name of a stage"]),
        (("endpoint.policy.url=http://h/v1", "endpoint.policy.model=m"), ["'policy' has the name of a table"]),
        (("endpoint.Big.url=http://h/v1", "endpoint.Big.model=m"), ["'Big'", "small letters"]),
        (("endpoint.big.url=localhost:8000", "endpoint.big.model=m"), ["endpoint.big.url", "localhost:8000"]),
        (("endpoint.big.url=http://h/v1",), ["endpoint.big.model is missing"]),
        ((*ENDPOINT, "endpoint.big.api_key=sk-1"), ["unknown key endpoint.big.api_key", "did you mean 'api_key_env'"]),
        (("trainer.save_evry=1",), ["trainer.save_evry", "did you mean 'save_every'"]),
        (("trainer.max_skipped_steps=0",), ["trainer.max_skipped_steps"]),
    ],
)
def test_endpoints_and_the_trainer_are_checked(path: Path, overrides: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    for word in words:
        assert word in str(caught.value)

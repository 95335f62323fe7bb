"""Keys and passwords: what counts as one, and where it must not be seen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from rlreason.config import Recipe, load, recipe_toml
from rlreason.config.changes import differences
from rlreason.errors import UsageError
from rlreason.rewards.mix import RewardMix
from rlreason.secrets import literal_secrets, mask, masked
from rlreason.tracking import check_secrets
from rlreason.types import Completion, Problem, Verdict

KEY = "sk-abcdef0123456789"
RECIPE = """
name = "judged"
[data]
train = "arithmetic"
[reward]
accuracy = 1.0
"judge.py:judge" = { weight = 0.5, api_key = %s }
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
steps = 1
"""
PROBLEM = Problem(id="p", prompt="3+5", verifier="math", reference="8")


def recipe(tmp_path: Path, value: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE % value)
    return load(path)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"rlreason run x judge.api_key={KEY}", "rlreason run x judge.api_key=***"),
        ('api_key = "hunter22"', 'api_key = "***"'),
        ("--password='correct horse'", "--password='*** horse'"),
        ("http://me:pw@host/v1", "http://***@host/v1"),
        ("Bearer hf_abcdefghijklmnopqrst said no", "Bearer *** said no"),
        ('{"token": "abcdef99"}', '{"token": "***"}'),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    assert mask(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        'api_key_env = "OPENAI_KEY"',
        "max_tokens = 4096",
        'api_key = { env = "K" }',
        "task-scheduler-0123456",
        "tokens: 512k",
    ],
)
def test_what_does_not_is_left_alone(text: str) -> None:
    assert mask(text) == text


def test_tables(tmp_path: Path) -> None:
    table = {"reward": {"a.py:f": {"weight": 1.0, "api_key": "x" * 9, "other": {"env": "K"}}}, "max_tokens": 5}
    assert list(literal_secrets(table)) == ['reward."a.py:f".api_key']
    assert masked(table) == {
        "reward": {"a.py:f": {"weight": 1.0, "api_key": "***", "other": {"env": "K"}}},
        "max_tokens": 5,
    }


def test_a_named_secret_is_read_where_the_reward_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judge.py").write_text(
        "def judge(problem, completion, *, api_key):\n"
        "    if completion.text == 'raise':\n"
        "        raise ValueError(f'no such key: {api_key}')\n"
        "    return float(len(api_key))\n"
    )
    found = recipe(tmp_path, '{ env = "JUDGE_KEY" }')
    assert 'env = "JUDGE_KEY"' in recipe_toml(found)
    term = found.reward["judge.py:judge"]
    mix = RewardMix.from_table({f"{tmp_path}/judge.py:judge": term})
    monkeypatch.setenv("JUDGE_KEY", "s3cret-value")
    assert mix(PROBLEM, Completion.from_text("8")).score == 0.5 * len("s3cret-value")
    broken = mix(PROBLEM, Completion.from_text("raise"))
    assert broken.verdict is Verdict.BROKEN
    assert "no such key: ***" in broken.detail
    assert "s3cret-value" not in repr(mix)


def test_a_variable_that_is_not_set_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(UsageError, match=r'reward."judge.py:judge".api_key: the environment has no variable JUDGE_KEY'):
        check_secrets(recipe(tmp_path, '{ env = "JUDGE_KEY" }'), print)
    said: list[str] = []
    check_secrets(recipe(tmp_path, f'"{KEY}"'), said.append)
    assert len(said) == 1
    assert 'write { env = "NAME" }' in said[0]
    assert KEY not in said[0]


def test_a_difference_of_recipes_shows_no_key(tmp_path: Path) -> None:
    (one,) = differences(recipe(tmp_path, f'"{KEY}"'), recipe(tmp_path, '"plain-password"'))
    assert str(one) == 'reward."judge.py:judge".api_key: *** -> ***'


def test_a_value_is_a_number_a_text_or_names_a_variable(tmp_path: Path) -> None:
    for wrong in ('{ env = "A", more = 1 }', "{ env = 3 }", '{ env = "not a name" }'):
        with pytest.raises(UsageError):
            recipe(tmp_path, wrong)


def test_the_display_writes_what_it_says_into_the_log(tmp_path: Path) -> None:
    from rlreason.display import ConsoleLog, RichDisplay

    screen = io.StringIO()
    display = RichDisplay(Console(file=screen, width=200), ConsoleLog(tmp_path / "console.log"))
    display.begin("final", "eval", 2)
    display.advance(1, {"accuracy/heldout": 0.5})
    display.end("grpo 50.0% [40.0%, 60.0%]")
    lines = (tmp_path / "console.log").read_text().splitlines()
    assert [line[20:].partition(" · ")[0] for line in lines] == [
        "final (eval, 2 models)",
        "final: grpo 50.0% [40.0%, 60.0%]",
    ]
    # The message has every model's accuracy; the last one's is not said again.
    assert "held-out" not in screen.getvalue()

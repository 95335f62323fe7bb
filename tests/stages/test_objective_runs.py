"""Small real runs: steps without a useful group under every treatment of truncated completions, DAPO's resampling
across a break, MaxRL with penalties, what `plan` says of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rlreason.config import load
from rlreason.errors import UsageError
from rlreason.plan.text import describe
from rlreason.sampler.recording import asked_of_vllm
from rlreason.types import SamplingParams

ROOT = Path(__file__).parents[2]
HEAD = """
name = "small"
[policy]
model_type = "qwen3"
[policy.model]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 8
[data]
train = "arithmetic"
[reward]
"judge.py:judge" = 1.0
[cluster]
threads = 1
reward_workers = 1
"""
STAGE = """[[stage]]
kind = "grpo"
name = "{name}"
model = "policy"
steps = {steps}
problems_per_step = 4
samples_per_problem = 6
max_tokens = 20
optimizer = {{ lr = 1e-3 }}
{more}
"""
#: Nothing tells completions of the first four problems apart; others earn by the length of their text.
NEVER_AT_FIRST = """
def judge(problem, completion):
    first = int(problem.id.rsplit("-", 1)[1]) < 4
    return 0.0 if first else float(len(completion.text) % 2)
"""
#: Half of the problems are never solved.
HALF = """
def judge(problem, completion):
    return 0.0 if int(problem.id.rsplit("-", 1)[1]) % 2 else float(sum(map(ord, completion.text)) % 2)
"""
#: Completions are worth different amounts, whatever they say.
SPREAD = """
def judge(problem, completion):
    return sum(map(ord, completion.text)) % 97 / 97
"""
BELOW_ZERO = """
def judge(problem, completion):
    return float(sum(map(ord, completion.text)) % 2) - 1.0
"""


def write(folder: Path, judge: str, *stages: dict[str, Any]) -> Path:
    (folder / "judge.py").write_text(judge, encoding="utf-8")
    recipe = folder / "small.toml"
    recipe.write_text(HEAD + "".join(STAGE.format(**one) for one in stages), encoding="utf-8")
    return recipe


def rlreason(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rlreason", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    (file,) = run.glob(f"stages/*-{stage}/metrics.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_every_treatment_of_truncated_completions_on_a_step_without_a_useful_group(tmp_path: Path) -> None:
    """``mask`` and ``mask_from_baseline`` ended such a step with a TypeError."""
    values = ("keep", "mask", "mask_from_baseline", "soft_penalty")
    stages = [{"name": one, "steps": 2, "more": f'objective = {{ overlong = "{one}" }}'} for one in values]
    rlreason("run", write(tmp_path, NEVER_AT_FIRST, *stages), "--out", tmp_path / "run")
    for value in values:
        first, second = metrics(tmp_path / "run", value)
        assert first["groups/zero_variance"] == 4.0
        if value != "soft_penalty":  # which tells completions of different lengths apart
            assert first["groups/kept"] == 0.0
            assert "loss" not in first
        assert second["policy_version"] == 2


def state_of(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All numbers of a run's metrics but times, and its weights."""
    rows = [
        {key: value for key, value in row.items() if key != "time" and "second" not in key}
        for row in metrics(run, "rl")
    ]
    (weights,) = run.glob("stages/*-rl/checkpoint/model.safetensors")
    return rows, load_file(weights)


def test_resampling_fills_the_batch_counts_and_goes_on_where_it_was(tmp_path: Path) -> None:
    recipe = write(tmp_path, HALF, {"name": "rl", "steps": 3, "more": "resample = 4"})
    rlreason("run", recipe, "--out", tmp_path / "whole")
    rows, weights = state_of(tmp_path / "whole")
    assert max(row["resample/rounds"] for row in rows) >= 1
    for row in rows:
        assert row["groups/drawn"] == 4 * (1 + row["resample/rounds"])
        if row["resample/rounds"] < 4:
            assert row["groups/kept"] == 4.0
    rlreason("run", recipe, "--out", tmp_path / "part", "stage.rl.steps=1")
    rlreason("resume", tmp_path / "part", "stage.rl.steps=3")
    again, found = state_of(tmp_path / "part")
    assert again == rows
    assert weights.keys() == found.keys()
    assert all(found[name].equal(one) for name, one in weights.items())
    # Every problem is drawn once: a step begins behind what the steps before it used.
    position = json.loads(next((tmp_path / "part").glob("stages/*-rl/state/**/progress.json")).read_text("utf-8"))
    assert json.dumps(position).count(f'"problems_used": {int(sum(row["groups/drawn"] for row in rows))}') == 1


def test_adaptive_entropy_goes_on_where_it_was(tmp_path: Path) -> None:
    """The coefficient begins to act after a step with little entropy, and is in the state."""
    more = "objective = { entropy_coef = 0.02, entropy_target = 9.0, entropy_coef_delta = 0.01 }"
    recipe = write(tmp_path, SPREAD, {"name": "rl", "steps": 3, "more": more})
    rlreason("run", recipe, "--out", tmp_path / "whole")
    rows, weights = state_of(tmp_path / "whole")
    assert [row["entropy/coef"] for row in rows] == pytest.approx([0.0, 0.03, 0.04])
    rlreason("run", recipe, "--out", tmp_path / "part", "stage.rl.steps=2")
    rlreason("resume", tmp_path / "part", "stage.rl.steps=3")
    again, found = state_of(tmp_path / "part")
    assert again == rows
    assert all(found[name].equal(one) for name, one in weights.items())


def test_maxrl_with_penalties_ends_with_the_reason(tmp_path: Path) -> None:
    recipe = write(tmp_path, BELOW_ZERO, {"name": "rl", "steps": 2, "more": 'objective = "maxrl"'})
    said = " ".join(rlreason("run", recipe, "--out", tmp_path / "run", code=2).split())
    assert "stage.rl.objective: MaxRL" in said
    assert "defined for rewards of 0 and more" in said


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("", "on-policy, the ratio is 1 and a clip never acts"),
        ("updates_per_step = 2", "the first with ratio 1, the others off-policy"),
        ("staleness = 1", "no clip acts: REINFORCE weighted by truncated importance sampling"),
        (
            'staleness = 1\nobjective = { old = "sampler", correction = "none" }',
            "the ratio is to the sampler's log-probabilities, and the clip acts",
        ),
        ('objective = { old = "sampler", correction = "none" }', "ρ = π/π_sampler"),
        ("", "completions with advantage 0: not computed, in every denominator"),
        ("filter_zero_variance = false", "completions with advantage 0: computed"),
        (
            "objective = { kl_coef = 0.01 }",
            "completions with advantage 0: computed, for the KL or the entropy in the loss",
        ),
        ("resample = 3", "up to 3 more rounds of 4 problems a step, until 4 groups have correct and wrong completions"),
    ],
)
def test_the_plan_says_what_is_optimised(tmp_path: Path, more: str, says: str) -> None:
    path = write(tmp_path, HALF, {"name": "rl", "steps": 3, "more": more})
    text = describe(load(path), path)
    assert says in text
    assert ("on-policy" in text) is ("staleness" not in more and "sampler" not in more and "updates" not in more)


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("drop_zero_variance = false", "filter_zero_variance"),
        ("resample = 1\nstaleness = 1", "use one of them"),
        ('objective = { ratio = "sequence" }', 'write ratio = "sequence_mean"'),
        ('objective = { preset = "gspo", correction_level = "geometric" }', 'correction_level = "sequence_mean"'),
        ('objective = { old = "sampler" }', 'Use correction = "none"'),
        ('staleness = 1\nobjective = { correction = "none" }', 'old = "sampler"'),
    ],
)
def test_old_names_and_contradictions_are_refused_with_the_cure(tmp_path: Path, more: str, reason: str) -> None:
    path = write(tmp_path, HALF, {"name": "rl", "steps": 3, "more": more})
    assert reason in " ".join(rlreason("plan", path, code=2).split())


def test_truncated_draws_and_centering_train_without_a_mismatch(tmp_path: Path) -> None:
    """The trainer's log-probabilities are over what each token was drawn between: they differ by rounding."""
    mores = {
        "nucleus": "top_p = 0.8",
        "cut": 'top_k = 4\nmin_p = 0.05\nobjective = { centering = "exact" }',
        "whole": 'objective = { preset = "dppo_kl", centering = "exact" }',
        "most": 'objective = { centering = "top_k", centering_top_k = 3 }',
        "single": 'objective = "flash_reinforce"',
        "apart": 'objective = "gdpo"',
    }
    stages = [{"name": name, "steps": 2, "more": more} for name, more in mores.items()]
    recipe = write(tmp_path, SPREAD, *stages)
    rlreason("run", recipe, "--out", tmp_path / "run", "stage.single.samples_per_problem=1")
    for name, more in mores.items():
        rows = metrics(tmp_path / "run", name)
        assert all(row["mismatch/max"] < 1e-4 for row in rows), name
        assert all(row["update/moved"] > 0.0 for row in rows), name
        assert all(("centering/size" in row) is ("centering" in more) for row in rows), name
        if "centering" in more:  # on-policy there is no drift to take out
            assert all(row["centering/size"] < 1e-3 for row in rows), name


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("updates_per_step = 2\nobjective = { centering = 'exact' }", "which nobody keeps"),
        ("objective = { rewards = 'apart', scale = 'none' }", "as GRPO does"),
    ],
)
def test_what_centering_and_parts_forbid_is_refused(tmp_path: Path, more: str, says: str) -> None:
    recipe = write(tmp_path, HALF, {"name": "rl", "steps": 1, "more": more})
    assert says in " ".join(rlreason("plan", recipe, code=2).split())


def test_what_vllm_cannot_tell_is_refused() -> None:
    """It names at most 512 tokens of a position."""
    assert asked_of_vllm(SamplingParams(record="")) == 0
    assert asked_of_vllm(SamplingParams(record="ids", top_p=0.8, top_k=512)) == 512
    assert asked_of_vllm(SamplingParams(record="logprobs", record_top=20)) == 20
    for params in (SamplingParams(record="ids", top_p=0.8), SamplingParams(record="ids", top_k=513)):
        with pytest.raises(UsageError, match="training needs top_k from 1 to 512"):
            asked_of_vllm(params)
    with pytest.raises(UsageError, match=r'objective\.centering = "exact": vLLM gives at most 512'):
        asked_of_vllm(SamplingParams(record="logprobs"))

"""Whole runs on real vLLM workers: synchronous ones repeat exactly, asynchronous ones are replayed exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

RECIPE = """
name = "async"
[policy]
model_type = "qwen3_moe"
[policy.model]
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 32
intermediate_size = 64
moe_intermediate_size = 32
num_experts = 4
num_experts_per_tok = 2
max_position_embeddings = 256
initializer_range = 0.1
[data]
train = "arithmetic"
options = { min_terms = 2, max_terms = 3, max_total = 9, negatives = false }
[sampler]
engine = "ENGINE"
max_rows = 24
kv_cache_gib = 0.0625
[cluster]
kind = "KIND"
rollout_workers = WORKERS
threads = 1
[[stage]]
kind = "sft"
name = "cold_start"
model = "policy"
demonstrations = 200
steps = 40
batch_size = 32
optimizer = { lr = 1e-2 }
"""
#: What the GRPO stages share.
GRPO = """
[[stage]]
kind = "grpo"
problems_per_step = 8
samples_per_problem = 4
max_tokens = 48
eval_problems = 10
optimizer = { lr = 1e-3 }
"""
RECIPE += (
    f'{GRPO}name = "in_turn"\nsteps = 3\neval_every = 2\n'
    f'{GRPO}name = "ahead"\nsteps = 5\neval_every = 2\nstaleness = 1\n'
    f'{GRPO}name = "far_ahead"\nsteps = 5\nstaleness = 2\nin_flight_updates = false\n'
)
#: Metrics that measure time.
CLOCKS = ("time", "seconds", "tokens_per_second", "delivery/seconds")


def rlreason(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlreason", *arguments], capture_output=True, text=True, timeout=600, check=False
    )


def run(recipe: Path, out: Path, *more: str) -> Path:
    done = rlreason("run", str(recipe), "--out", str(out), *more)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def metrics(run_dir: Path, stage: str, *but: str) -> list[Mapping[str, object]]:
    """The stage's metrics without those that measure time, and without ``but``."""
    (path,) = (run_dir / "stages").glob(f"*-{stage}/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {key: value for key, value in row.items() if key not in (*CLOCKS, *but) and not key.startswith("seconds/")}
        for row in rows
    ]


def of_worker(schedule: str, worker: int) -> list[str]:
    return [line for line in schedule.splitlines() if json.loads(line)["worker"] == worker]


def column(rows: list[Mapping[str, object]], key: str) -> list[float]:
    """The key's values, of the rows that have it: a step may pass without a delivery."""
    return [float(str(row[key])) for row in rows if key in row]


@pytest.mark.parametrize(("engine", "workers"), [pytest.param("vllm", 2, marks=pytest.mark.slow), ("transformers", 2)])
def test_runs_repeat(engine: str, workers: int, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    if engine == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
    text = RECIPE.replace("ENGINE", engine).replace("KIND", "ray").replace("WORKERS", str(workers))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text, encoding="utf-8")
    first = run(recipe, tmp_path / "first")
    second = run(recipe, tmp_path / "second", "--replay", str(first))
    for stage in ("cold_start", "in_turn"):
        assert metrics(first, stage) == metrics(second, stage)
    for stage in ("ahead", "far_ahead"):  # which step's line counts a delivery is a matter of time there
        assert metrics(first, stage, "delivery/canary") == metrics(second, stage, "delivery/canary")
    in_turn, ahead, far = (metrics(first, stage) for stage in ("in_turn", "ahead", "far_ahead"))
    assert column(in_turn, "staleness/max") == [0.0] * 3
    assert max(column(in_turn, "mismatch/max")) < 5e-5
    assert max(column(ahead, "staleness/max")) == 1.0
    assert 1.0 <= max(column(far, "staleness/max")) <= 2.0
    assert max(column(ahead, "delivery/canary")) < 5e-5
    versions = [row["policy_version"] for row in ahead]
    assert versions == [1, 2, 3, 4, 5]
    schedules = [next((folder / "stages").glob("*-ahead/schedule.jsonl")).read_text() for folder in (first, second)]
    by_worker = [[of_worker(text, worker) for worker in (0, 1)] for text in schedules]
    assert by_worker[0] == by_worker[1]
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["stages"][1]["sampler"] == f"{engine} x 2 over Ray"


def test_a_replay_needs_a_run_of_the_same_recipe(tmp_path: Path) -> None:
    text = RECIPE.replace("ENGINE", "transformers").replace("KIND", "inline").replace("WORKERS", "1")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text.replace("steps = 40", "steps = 1"), encoding="utf-8")
    first = run(recipe, tmp_path / "first")
    other = rlreason("run", str(recipe), "seed=1", "--out", str(tmp_path / "x"), "--replay", str(first))
    assert other.returncode == 2
    assert "that run had another recipe" in " ".join(other.stderr.split())
    none = rlreason("run", str(recipe), "--out", str(tmp_path / "x"), "--replay", str(tmp_path / "nothing"))
    assert none.returncode == 2
    assert "no run directory" in " ".join(none.stderr.split())
    again = run(recipe, tmp_path / "again", "--replay", str(first))
    assert metrics(first, "ahead", "delivery/canary") == metrics(again, "ahead", "delivery/canary")

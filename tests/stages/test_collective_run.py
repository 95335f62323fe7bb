"""A whole run with a sharded trainer whose first rank broadcasts the weights, every delivery proved."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

RECIPE = """
name = "transport"
seed = 3
[policy]
model_type = "qwen3"
[policy.model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 32
max_position_embeddings = 128
initializer_range = 0.2
[trainer]
ranks = 2
[data]
train = "arithmetic"
[reward]
accuracy = 1.0
overlong = { weight = 0.5, max_tokens = 12, buffer = 8 }
[sampler]
engine = "transformers"
transport = "collective"
[cluster]
kind = "ray"
rollout_workers = 2
cpus_per_worker = 0.5
threads = 1
[[stage]]
kind = "grpo"
name = "learn"
steps = 2
problems_per_step = 4
samples_per_problem = 4
max_tokens = 12
optimizer = { lr = 1e-3 }
[[stage]]
kind = "grpo"
name = "ahead"
model = "learn"
steps = 2
staleness = 1
problems_per_step = 4
samples_per_problem = 4
max_tokens = 12
optimizer = { lr = 1e-3 }
"""


def test_a_sharded_trainer_sends_by_itself_through_a_run(tmp_path: Path) -> None:
    """In turn, and ahead of the trainer, which then sends while it learns."""
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "rlreason", "run", str(recipe), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("01-learn", "02-ahead"):
        lines = (out / "stages" / stage / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == [0, 1]
        proved = [row["delivery/canary"] for row in rows if "delivery/canary" in row]
        assert proved
        assert max(proved) < 5e-5
        assert not any(row["workers/replaced"] for row in rows)

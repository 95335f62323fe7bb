"""A whole run with a sharded trainer whose weights are broadcast: what it measures is what host buckets give."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

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
transport = "TRANSPORT"
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
CLOCKS = ("time", "tokens_per_second", "delivery/seconds")


def metrics(folder: Path, transport: str) -> dict[str, list[dict[str, Any]]]:
    """Of each stage, without clocks."""
    recipe = folder / f"{transport}.toml"
    recipe.write_text(RECIPE.replace("TRANSPORT", transport))
    out = folder / transport
    command = [sys.executable, "-m", "rlreason", "run", str(recipe), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for stage in ("learn", "ahead"):
        (path,) = out.rglob(f"{stage}/metrics.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[stage] = [
            {key: value for key, value in row.items() if key not in CLOCKS and not key.startswith("seconds")}
            for row in rows
        ]
    return found


def test_a_run_is_the_same_by_either_transport(tmp_path: Path) -> None:
    host, collective = (metrics(tmp_path, transport) for transport in ("host", "collective"))
    assert collective["learn"] == host["learn"]
    assert len(host["ahead"]) == len(collective["ahead"]) == 2
    assert max(row["delivery/canary"] for row in collective["learn"] if "delivery/canary" in row) < 5e-5
    assert [row["policy_version"] for row in collective["ahead"]] == [row["policy_version"] for row in host["ahead"]]
    assert not any(row["workers/replaced"] for rows in collective.values() for row in rows)

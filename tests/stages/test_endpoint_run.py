"""A server that is drawn from, end to end: rejection sampling and evaluation, killed half-way, resumed, same result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlreason.config import PolicyConfig
from rlreason.policy.policies import fresh_policy

pytest.importorskip("vllm", reason="vLLM is not installed")
from servers import vllm_server

ROOT = Path(__file__).parent.parent.parent
MODEL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
RECIPE = """
name = "served"
[data]
train = "train.jsonl"
heldout = "heldout.jsonl"
verifier = "thirds.py:thirds"
[endpoint.server]
url = "{url}"
model = "tiny"
tokenizer = "{folder}"
concurrency = 4
[[stage]]
kind = "reject"
name = "traces"
model = "server"
problems = 40
samples_per_problem = 2
max_tokens = 24
[[stage]]
kind = "eval"
name = "final"
models = ["server"]
problems = 60
samples_per_problem = 2
temperature = 0.8
max_tokens = 24
"""


#: A model with random weights solves nothing; this verifier calls about every third of its texts right.
THIRDS = """
from rlreason.rewards.registry import verifier

@verifier("thirds")
def thirds(problem, completion):
    return sum(map(ord, completion.text)) % 3 == 0
"""


def rlreason(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rlreason", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(run: Path) -> list[str]:
    """Rollouts, traces and evaluations with every completion; not the clocks of single rewards."""
    found = [(run / "eval" / "final-server.json").read_text()]
    for path in sorted([*run.glob("stages/*/rollouts.jsonl"), *run.glob("stages/*/traces.jsonl")]):
        found.append(path.read_text())
    for line in (run / "eval" / "final-server.completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        for one in row["completions"]:
            del one["reward"]["seconds"]
        found.append(json.dumps(row))
    return found


def test_a_server_is_evaluated_killed_half_way_and_resumed_with_the_same_result(tmp_path: Path) -> None:
    policy = fresh_policy(PolicyConfig(model_type="qwen3", model=MODEL), "0123456789+-=;", (), 0, torch.device("cpu"))
    with vllm_server(policy, tmp_path) as (url, folder):
        (tmp_path / "thirds.py").write_text(THIRDS)
        for first, name in ((100, "train"), (200, "heldout")):
            rows = (
                json.dumps({"prompt": f"{number}+1=", "answer": str(number + 1)}) for number in range(first, first + 60)
            )
            (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
        (tmp_path / "recipe.toml").write_text(RECIPE.format(url=url, folder=folder))
        whole = rlreason(tmp_path, "run", "recipe.toml", "--out", "whole")
        output, _ = whole.communicate(timeout=300)
        assert whole.returncode == 0, output
        killed, journal = rlreason(tmp_path, "run", "recipe.toml", "--out", "killed"), None
        while journal is None or journal.read_bytes().count(b"\n") < 20:
            found = list((tmp_path / "killed").glob("stages/*-final/drawn.journal"))
            journal = found[0] if found else None
            assert killed.poll() is None, killed.communicate()[0]
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
        kept = journal.read_bytes()
        assert 20 <= kept.count(b"\n") < 60
        resumed = rlreason(tmp_path, "resume", "killed", "endpoint.server.concurrency=8")  # may change: where, not what
        while resumed.poll() is None and len(journal.read_bytes() if journal.exists() else kept) <= len(kept):
            time.sleep(0.005)
        output, _ = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, output
        assert not journal.exists()
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    report = json.loads((tmp_path / "whole" / "eval" / "final-server.json").read_text())
    assert report["accuracy"]["count"] == 60
    assert report["mean_tokens"] > 1.0

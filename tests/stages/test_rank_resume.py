"""A whole run whose rank is killed: it goes on bit for bit on two ranks, and says so where it goes on without."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

pytest.importorskip("ray")

from rlreason.cluster.actors import ActorsDied
from rlreason.config import load
from rlreason.job import JobOptions, run_job
from rlreason.trainer.protocol import StepStats
from rlreason.trainer.ray_trainer import RayTrainer

RECIPE = """
name = "killed"
seed = 3
[policy]
model_type = "qwen3_moe"
[policy.model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
moe_intermediate_size = 16
num_experts = 5
num_experts_per_tok = 2
max_position_embeddings = 128
initializer_range = 0.2
[trainer]
ranks = 2
save_every = 1
[data]
train = "arithmetic"
[reward]
accuracy = 1.0
overlong = { weight = 0.5, max_tokens = 12, buffer = 8 }
[sampler]
engine = "transformers"
[cluster]
threads = 1
[[stage]]
kind = "grpo"
name = "learn"
steps = 4
problems_per_step = 4
samples_per_problem = 4
max_tokens = 12
optimizer = { lr = 1e-3 }
"""
KILLED_AT = 2


def run(folder: Path, *overrides: str, resume: bool = False) -> str:
    """What was on the screen."""
    path = folder / "recipe.toml" if resume else folder.parent / "recipe.toml"
    screen = io.StringIO()
    options = JobOptions(folder=folder, command="test", resume=resume)
    run_job(load(path, overrides), path, options, Console(file=screen, width=400))
    return screen.getvalue()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "stages" / "01-learn" / "checkpoint" / "model.safetensors")


def changes(folder: Path) -> list[str]:
    return [one["what"] for one in json.loads((folder / "manifest.json").read_text())["changes"]]


def test_a_killed_rank_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    run(tmp_path / "whole")
    step = RayTrainer.step

    def deadly(self: RayTrainer, number: int) -> StepStats:
        if number == KILLED_AT:
            os.kill(self._ranks.homes[1].process, signal.SIGKILL)
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(RayTrainer, "step", deadly)
        with pytest.raises(ActorsDied, match="trainer rank 1"):
            run(tmp_path / "killed")
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    screen = run(tmp_path / "killed", resume=True)
    assert f"going on from its state of step {KILLED_AT}" in screen
    assert "rounded in another order" not in screen
    assert changes(tmp_path / "killed") == []
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(one, found[name]) for name, one in expected.items())
    screen = run(tmp_path / "alone", "trainer.ranks=0", resume=True)
    said = "learn: its state of step 2 was written by 2 ranks and goes on with one process (trainer.ranks = 0)"
    assert said in screen
    assert any(one.startswith(said) for one in changes(tmp_path / "alone"))
    other = weights(tmp_path / "alone")
    apart = max(float((one - other[name]).abs().max()) for name, one in expected.items())
    assert 0 < apart < 1e-3, "two of AdamW's steps of 1e-3, turned by the rounding of small gradients"

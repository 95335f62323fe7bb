"""LoRA through whole runs: the reference of a KL term is the model with its adapter off, a stage may train all weights
before one that trains an adapter, and GRPO learns with one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

pytest.importorskip("peft", reason="peft is not installed")

from rlreason.check import check
from rlreason.config import GrpoStage, SftStage, load
from rlreason.config.load import locate
from rlreason.job import JobOptions, run_job
from rlreason.plan.budget import Budgets, _changes
from rlreason.sizing.gpus import GPUS

SMALL = """
name = "adapted"
seed = 1
[policy]
model_type = "qwen3_moe"
[policy.model]
hidden_size = 32
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
moe_intermediate_size = 16
num_experts = 4
num_experts_per_tok = 2
max_position_embeddings = 128
initializer_range = 0.2
[trainer]
lora = { rank = 4, alpha = 8.0, experts = true }
[data]
train = "arithmetic"
[reward]
accuracy = 1.0
overlong = { weight = 0.5, max_tokens = 12, buffer = 8 }
[cluster]
threads = 1
reward_workers = 1
[[stage]]
kind = "sft"
name = "cold_start"
model = "policy"
lora = false
demonstrations = 8
steps = 2
batch_size = 8
optimizer = { lr = 1e-3 }
[[stage]]
kind = "grpo"
name = "learn"
steps = 3
problems_per_step = 4
samples_per_problem = 6
max_tokens = 12
optimizer = { lr = 1e-2 }
objective = { kl_coef = 0.1, kl_in = "WHERE" }
"""


def run(recipe: Path, out: Path, *overrides: str) -> None:
    options = JobOptions(folder=out, command="test")
    run_job(load(recipe, overrides), recipe, options, Console(file=io.StringIO()))


def rows(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "stages" / stage / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("where", ["loss", "reward"])
def test_the_reference_is_the_model_with_its_adapter_off(where: str, tmp_path: Path) -> None:
    """Exactly: an adapter that has not learnt yet says what the cold start's weights say, bit for bit."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL.replace("WHERE", where), encoding="utf-8")
    run(recipe, tmp_path / "out")
    key = {"loss": "kl/reference", "reward": "kl/penalty"}[where]
    found = [row[key] for row in rows(tmp_path / "out", "02-learn")]
    assert found[0] == 0.0
    assert min(found[1:]) > 1e-6
    cold, learnt = (tmp_path / "out" / "stages" / stage / "checkpoint" for stage in ("01-cold_start", "02-learn"))
    assert not (cold / "adapter").exists()
    before, after = (load_file(folder / "model.safetensors") for folder in (cold, learnt))
    # What has no adapter is what the stage of all weights left.
    frozen = [name for name in before if "norm" in name or "embed" in name or "mlp.gate.weight" in name]
    assert len(frozen) > 6
    for name, one in before.items():
        assert torch.equal(one, after[name]) is (name in frozen or name == "lm_head.weight"), name
    assert {name.split("lora_")[1][0] for name in load_file(learnt / "adapter" / "adapter_model.safetensors")} == {
        "A",
        "B",
    }


def test_plan_knows_which_stage_trains_an_adapter(tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL.replace("WHERE", "loss"), encoding="utf-8")
    checked = check(load(recipe, ()), tmp_path)
    budgets = Budgets(checked.recipe, checked.data, GPUS["h100"])
    cold, learn = checked.recipe.stage
    assert isinstance(cold, SftStage)
    assert isinstance(learn, GrpoStage)
    setups = [budgets.setup(stage) for stage in (cold, learn)]
    assert [setup.lora and setup.lora.rank for setup in setups] == [None, 4]
    proposed = [{name for names, _ in _changes(budgets, cold, setups[0]) for name in names}]
    proposed.append({name for names, _ in _changes(budgets, learn, setups[1]) for name in names})
    assert "stage.cold_start.lora=true" in proposed[0]
    assert not any("lora" in name for name in proposed[1])


@pytest.mark.slow
def test_grpo_learns_with_an_adapter(tmp_path: Path) -> None:
    """The quickstart's policy, whose cold start trains all weights: an adapter raises its accuracy."""
    overrides = (
        "trainer.lora.rank=16", "trainer.lora.alpha=32", "trainer.lora.experts=true",
        "stage.cold_start.lora=false", "stage.grpo.steps=60", "stage.grpo.optimizer.lr=3e-3",
    )  # fmt: skip
    path = locate("quickstart")
    recipe = load(path, overrides)
    recipe = recipe.model_copy(update={"stage": recipe.stage[:2]})
    run_job(recipe, path, JobOptions(folder=tmp_path / "out", command="test"), Console(file=io.StringIO()))
    scores = [row["accuracy/heldout"] for row in rows(tmp_path / "out", "02-grpo") if "accuracy/heldout" in row]
    before = [row["accuracy/heldout"] for row in rows(tmp_path / "out", "01-cold_start") if "accuracy/heldout" in row]
    assert scores[-1] > before[-1] + 0.1

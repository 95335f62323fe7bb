"""Small real runs of a mixture of experts: replay and what is recorded of it, across a break, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlreason.config import OpdStage, load
from rlreason.errors import UsageError
from rlreason.plan.experts import expert_lines
from rlreason.plan.text import describe
from rlreason.policy.policies import fresh_policy
from rlreason.tasks.procedural import make_task

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "moe"
[policy]
model_type = "qwen3_moe"
[policy.model]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 32
moe_intermediate_size = 16
num_experts = 4
num_experts_per_tok = 2
router_aux_loss_coef = 0.01
[data]
train = "arithmetic"
[reward]
"judge.py:judge" = 1.0
[cluster]
threads = 1
reward_workers = 1
[trainer]
save_every = 1
[[stage]]
kind = "sft"
name = "warm"
steps = 4
batch_size = 8
router_warmup_steps = 2
optimizer = { lr = 1e-2 }
[[stage]]
kind = "grpo"
name = "rl"
steps = 3
problems_per_step = 4
samples_per_problem = 4
max_tokens = 16
optimizer = { lr = 1e-2 }
"""
#: The same without experts.
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 32,
}  # fmt: skip
JUDGE = """
def judge(problem, completion):
    return float(sum(map(ord, completion.text)) % 2)
"""


def rlreason(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rlreason", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "judge.py").write_text(JUDGE, encoding="utf-8")
    file = tmp_path / "moe.toml"
    file.write_text(RECIPE, encoding="utf-8")
    return file


def lines(run: Path, stage: str, name: str = "metrics") -> list[dict[str, Any]]:
    (file,) = run.glob(f"stages/*-{stage}/{name}.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "time" and "second" not in key} for row in rows]


def weights(run: Path, stage: str) -> dict[str, Any]:
    (file,) = run.glob(f"stages/*-{stage}/checkpoint/model.safetensors")
    return dict(load_file(file))


def test_a_replayed_run_says_where_tokens_went_and_goes_on_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    replay = ["stage.rl.routing_replay=rollout", "stage.rl.updates_per_step=2"]
    rlreason("run", recipe, "--out", tmp_path / "whole", *replay)
    for row in lines(tmp_path / "whole", "rl", "experts"):
        assert len(row["agreement"]) == len(row["entropy"]) == 2
        assert all(len(load) == 4 and sum(load) == pytest.approx(1.0, abs=1e-5) for load in row["load"])
    rows = lines(tmp_path / "whole", "rl")
    # The second update's routers have moved away from the sampler's; what they compute has not.
    assert all(0.5 < row["experts/agreement"] < 1.0 for row in rows)
    for row, layers in zip(*(lines(tmp_path / "whole", "warm", name) for name in ("metrics", "experts")), strict=True):
        assert "experts/max_violation_worst" in row
        shares = layers["balance_share"]  # of a coefficient of 0.01
        assert row["experts/balance_share"] == pytest.approx(sum(shares) / 2)
        assert 0.0 < min(shares) < max(shares) < 1.0
        assert row["experts/balance_share_worst"] == max(shares)
    assert not any("experts/balance_share" in row for row in rows)  # RL has no such loss
    assert "its share of the gradient at the layer" in (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert "Experts: where the tokens went" in (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    rlreason("run", recipe, "--out", tmp_path / "part", *replay, "stage.rl.steps=1")
    rlreason("resume", tmp_path / "part", "stage.rl.steps=3")
    assert lines(tmp_path / "part", "rl") == rows
    assert lines(tmp_path / "part", "rl", "experts") == lines(tmp_path / "whole", "rl", "experts")
    found, again = weights(tmp_path / "whole", "rl"), weights(tmp_path / "part", "rl")
    assert all(one.equal(again[name]) for name, one in found.items())


def test_frozen_routers_stay_and_a_warm_up_moves_nothing_else(recipe: Path, tmp_path: Path) -> None:
    one_step = "stage.rl.steps=1"
    rlreason("run", recipe, "--out", tmp_path / "two", "stage.warm.steps=2", "stage.rl.freeze_router=true", one_step)
    rlreason("run", recipe, "--out", tmp_path / "one", "stage.warm.steps=1", one_step)
    first, second = weights(tmp_path / "one", "warm"), weights(tmp_path / "two", "warm")
    gates = {name for name in first if "mlp.gate." in name}
    assert len(gates) == 2
    assert {name for name, one in first.items() if not one.equal(second[name])} == gates
    trained = weights(tmp_path / "two", "rl")
    assert {name for name, one in second.items() if one.equal(trained[name])} == gates


def test_the_plan_says_what_becomes_of_the_routers(recipe: Path) -> None:
    said = describe(load(recipe), recipe)
    warm = (
        "experts: load-balancing loss x the model's own coefficient, if it has one; only the routers learn in the first"
    )
    assert f"{warm} 2 steps" in said
    assert "no load-balancing loss; the routers learn; tokens go where the trainer's own routers say" in said
    said = describe(load(recipe, ["stage.rl.routing_replay=rollout", "stage.rl.freeze_router=true"]), recipe)
    assert "the routers stay as they are; tokens go where the sampler sent them (R3); the sampler reports" in said
    said = describe(load(recipe, ["trainer.router_aux_loss=0.5", "stage.warm.router_warmup_steps=0"]), recipe)
    assert "experts: load-balancing loss x 0.5; routers compute in the model's own dtype\n" in said
    said = describe(load(recipe, ["trainer.router_dtype=float32"]), recipe)
    assert said.count("; routers compute in float32\n") == 2
    assert "own dtype" not in said


def test_the_plan_knows_the_experts_of_a_loaded_model(recipe: Path, tmp_path: Path) -> None:
    """Its config says that it has some, whatever the recipe calls it."""
    of = load(recipe)
    task = make_task("arithmetic", {}, 0)
    fresh_policy(of.policy, task.alphabet, (), 0, torch.device("cpu")).save(tmp_path / "moe")
    dense = of.policy.model_copy(update={"model_type": "qwen3", "model": SHAPE})
    fresh_policy(dense, task.alphabet, (), 0, torch.device("cpu")).save(tmp_path / "dense")
    text = "".join(f"{line}\n" for line in recipe.read_text(encoding="utf-8").splitlines() if "expert" not in line)
    loaded = recipe.with_name("loaded.toml")
    loaded.write_text(re.sub(r"\[policy\.model\][^[]*|model_type.*\n|router_.*\n", "", text), encoding="utf-8")
    for folder, words in (("moe", "no load-balancing loss; the routers learn"), ("dense", "")):
        said = describe(load(loaded, [f"policy.path={tmp_path / folder}"]), loaded)
        assert words in said
        assert ("experts:" in said) == bool(words)


def test_the_plan_refuses_folders_that_a_run_refuses(recipe: Path, tmp_path: Path) -> None:
    of = load(recipe)
    task = make_task("arithmetic", {}, 0)
    fresh_policy(of.policy, task.alphabet, (), 0, torch.device("cpu")).save(tmp_path / "moe")
    path = f"policy.path={tmp_path / 'moe'}"
    describe(load(recipe, [path]), recipe)
    with pytest.raises(UsageError, match="has num_experts = 4, but the recipe expects 8"):
        describe(load(recipe, [path, "policy.model.num_experts=8"]), recipe)
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "moe" / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UsageError, match=r"is quantised \(gptq;"):
        describe(load(recipe, [path]), recipe)
    deepseek = {"policy.model_type": "deepseek_v3", "policy.model.qk_rope_head_dim": 8, "trainer.router_aux_loss": 0.1}
    with pytest.raises(UsageError, match="no load-balancing loss for DeepseekV3ForCausalLM"):
        describe(load(recipe, [f"{key}={value}" for key, value in deepseek.items()]), recipe)


def test_what_can_not_be_is_refused_before_the_run(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="updates_per_step = 1 has no later one"):
        load(recipe, ["stage.rl.routing_replay=old"])
    adapter = ["trainer.lora.rank=2", "trainer.lora.alpha=4"]
    with pytest.raises(UsageError, match=r"(?s)stage 'warm': router_warmup_steps.*lora = false in the stage"):
        load(recipe, adapter)
    load(recipe, [*adapter, "stage.warm.lora=false"])
    dense = recipe.read_text(encoding="utf-8").replace("qwen3_moe", "qwen3")
    names = ("expert", "moe_", "aux")
    dense = "\n".join(line for line in dense.splitlines() if not any(name in line for name in names))
    recipe.write_text(dense, encoding="utf-8")
    for change, words in (
        ("trainer.router_aux_loss=0.1", "trainer.router_aux_loss = 0.1, and no model of the run has experts"),
        ("trainer.router_dtype=float32", 'trainer.router_dtype = "float32", and no model of the run has experts'),
        ("stage.rl.freeze_router=true", r"stage.rl.freeze_router is of a mixture of experts, and \[policy\] has none"),
        ("stage.rl.routing_replay=rollout", "stage.rl.routing_replay is of a mixture"),
        ("stage.warm.router_warmup_steps=1", "stage.warm.router_warmup_steps is of a mixture"),
    ):
        with pytest.raises(UsageError, match=words):
            describe(load(recipe, ["stage.warm.router_warmup_steps=0", change]), recipe)
    out = ["--out", tmp_path / "run"]
    assert "stage.warm.router_warmup_steps is of a mixture of experts, and [policy] has none" in rlreason(
        "run", recipe, *out, code=2
    )
    changes = ["stage.warm.router_warmup_steps=0", "stage.rl.routing_replay=rollout"]
    assert "stage.rl.routing_replay is of a mixture of experts" in rlreason("run", recipe, *out, *changes, code=2)
    assert not (tmp_path / "run").exists()


def test_routers_that_are_not_found_are_refused_by_name(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = load(recipe, ["trainer.router_dtype=float32"])
    describe(wide, recipe)
    monkeypatch.setattr("rlreason.wide_routers.routers_in", lambda _: [])
    words = (
        r'trainer\.router_dtype = "float32": the routers of \[policy\] \(qwen3_moe\) can\'t be followed, as of its 2'
    )
    with pytest.raises(UsageError, match=words):
        describe(wide, recipe)
    describe(load(recipe), recipe)


def test_a_run_with_routers_in_float32_goes_on_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    """In bfloat16; deliveries are proved by the canary, and checkpoints are bfloat16."""
    wide = ("trainer.router_dtype=float32", "policy.dtype=bfloat16", "stage.warm.steps=1", "stage.rl.steps=2")
    rlreason("run", recipe, "--out", tmp_path / "whole", *wide, "stage.warm.router_warmup_steps=0")
    found = weights(tmp_path / "whole", "rl")
    assert {one.dtype for one in found.values()} == {torch.bfloat16}
    rlreason("run", recipe, "--out", tmp_path / "part", *wide, "stage.warm.router_warmup_steps=0", "stage.rl.steps=1")
    rlreason("resume", tmp_path / "part", "stage.rl.steps=2")
    again = weights(tmp_path / "part", "rl")
    assert all(one.equal(again[name]) for name, one in found.items())


#: Routers with a correction bias.
GLM = ("policy.model_type=glm4_moe", "policy.model.n_routed_experts=4", "policy.model.n_group=1")
GLM = (*GLM, "policy.model.topk_group=1", "policy.model.first_k_dense_replace=0", "trainer.router_bias_update=0.01")


@pytest.fixture
def biased(recipe: Path) -> Path:
    """A recipe of a model whose routers have one."""
    names = ("num_experts = ", "router_aux", "router_warmup")
    rows = [row for row in recipe.read_text(encoding="utf-8").splitlines() if not row.startswith(names)]
    recipe.write_text("\n".join(rows), encoding="utf-8")
    return recipe


def test_a_run_balances_by_the_bias_in_every_stage_and_goes_on_bit_for_bit(biased: Path, tmp_path: Path) -> None:
    """Deliveries are proved by the canary, and the bias of a step of a stage is a sum of steps of 0.01."""
    short = (*GLM, "stage.warm.steps=2", "stage.rl.steps=2")
    rlreason("run", biased, "--out", tmp_path / "whole", *short)
    key = "model.layers.{}.mlp.gate.e_score_correction_bias"
    seen = []
    for stage in ("warm", "rl"):
        found = torch.stack([weights(tmp_path / "whole", stage)[key.format(layer)] for layer in range(2)])
        assert found.dtype == torch.float32
        assert found.any()
        assert torch.allclose(found / 0.01, (found / 0.01).round(), atol=1e-4)
        seen.append(found)
    assert not torch.equal(*seen)
    assert all("experts/max_violation" in row for row in lines(tmp_path / "whole", "rl"))
    rlreason("run", biased, "--out", tmp_path / "part", *short, "stage.rl.steps=1")
    rlreason("resume", tmp_path / "part", "stage.rl.steps=2")
    again = weights(tmp_path / "part", "rl")
    assert all(one.equal(again[name]) for name, one in weights(tmp_path / "whole", "rl").items())


def test_the_plan_says_and_refuses_steps_of_the_bias(biased: Path, tmp_path: Path) -> None:
    said = describe(load(biased, GLM), biased)
    steps = "each step moves the routers' bias by 0.01 towards experts with less than the mean load"
    assert f"if it has one; {steps}; routers compute in the model's own dtype\n" in said
    assert f"experts: no load-balancing loss; {steps}; the routers learn;" in said
    assert "moves the routers' bias" not in describe(load(biased, [*GLM[:-1]]), biased)
    opd = OpdStage(kind="opd", name="opd", steps=1, problems_per_step=1, max_tokens=8)
    own = "routers compute in the model's own dtype"
    assert expert_lines(opd, load(biased, GLM), sparse=True) == [f"experts: {steps}; {own}"]
    assert not expert_lines(opd, load(biased, GLM), sparse=False)
    assert expert_lines(opd, load(biased, GLM[:-1]), sparse=True) == [f"experts: {own}"]
    key = r"trainer\.router_bias_update = 0\.01"
    qwen, dense = ("policy.model_type=qwen3_moe", "policy.model.num_experts=4"), ("policy.model_type=qwen3",)
    for changes, words in (
        ((*GLM, "stage.rl.freeze_router=true"), rf"{key} changes which .* and stage\.rl\.freeze_router leaves"),
        ((*GLM, "trainer.lora.rank=2"), rf"stage\.warm: {key} changes the model itself, of which trainer\.lora"),
        ((*GLM, "trainer.lora.rank=2", "stage.warm.lora=false"), rf"stage\.rl: {key} changes the model itself"),
        ((*qwen, GLM[-1]), rf"{key}: the routers of \[policy\] \(qwen3_moe\) have no correction bias"),
    ):
        with pytest.raises(UsageError, match=words):
            describe(load(biased, changes), biased)
    with pytest.raises(UsageError, match="router_bias_update"):
        load(biased, ["trainer.router_bias_update=-0.1"])
    out = ["--out", tmp_path / "run"]
    assert "have no correction bias" in rlreason("run", biased, *out, *qwen, GLM[-1], code=2)
    text = "\n".join(row for row in biased.read_text(encoding="utf-8").splitlines() if "expert" not in row)
    biased.write_text(text.replace("moe_intermediate_size = 16\n", ""), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"{key}, and no model of the run has experts: leave it out"):
        describe(load(biased, (*dense, GLM[-1])), biased)
    assert not (tmp_path / "run").exists()

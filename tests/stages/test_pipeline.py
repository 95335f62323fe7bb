"""The whole chain for real, very small: every stage runs, a killed run goes on, and ends as the uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SHAPE = """hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 64
tie_word_embeddings = true
"""
RECIPE = f"""
name = "micro"
seed = 1
[policy]
model_type = "qwen3_moe"
[policy.model]
{SHAPE}
moe_intermediate_size = 32
num_experts = 4
num_experts_per_tok = 2
[student]
model_type = "qwen3"
[student.model]
{SHAPE}
[data]
train = "arithmetic"
options = {{ min_terms = 2, max_terms = 3, max_total = 9, negatives = false }}
[reward]
accuracy = 1.0
format = 0.1
[cluster]
threads = 1
[[stage]]
kind = "sft"
name = "cold_start"
model = "policy"
demonstrations = 200
steps = 60
batch_size = 32
eval_every = 30
eval_problems = 20
optimizer = {{ lr = 1e-2 }}
[[stage]]
kind = "grpo"
name = "grpo"
steps = 4
problems_per_step = 8
samples_per_problem = 4
max_tokens = 32
updates_per_step = 2
diagnose_every = 2
eval_every = 2
eval_problems = 20
objective = {{ kl_coef = 0.01 }}
optimizer = {{ lr = 1e-3 }}
[[stage]]
kind = "reject"
name = "traces"
problems = 300
samples_per_problem = 2
max_tokens = 32
[[stage]]
kind = "distill"
name = "distilled"
steps = 5
batch_size = 8
teacher_kl = 0.5
optimizer = {{ lr = 1e-2 }}
[[stage]]
kind = "eval"
name = "final"
models = ["cold_start", "grpo", "distilled"]
problems = 40
max_tokens = 32
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "micro.toml").write_text(RECIPE)
    return subprocess.Popen(
        [sys.executable, "-m", "rlreason", "run", "micro.toml", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def manifest(run: Path) -> dict:
    return json.loads((run / "manifest.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, "--out", "run")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "report: " in output
    return folder / "run"


def test_every_stage_leaves_what_the_contract_says(uninterrupted: Path) -> None:
    entries = manifest(uninterrupted)["stages"]
    assert [entry["status"] for entry in entries] == ["done"] * 5
    assert [entry["parents"] for entry in entries] == [
        ["policy"], ["cold_start"], ["grpo"], ["student", "traces"], ["cold_start", "grpo", "distilled"],
    ]  # fmt: skip
    lines = [json.loads(line) for line in (uninterrupted / "stages/02-grpo/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line["policy_version"] for line in lines] == [1, 2, 3, 4]
    assert [("accuracy/heldout" in line) for line in lines] == [False, True, False, True]
    trained = [line for line in lines if "loss" in line]
    assert trained
    for line in trained:
        assert line["mismatch/max"] < 1e-4  # the sampler drew with the trainer's weights
        assert line["kl/reference"] >= -1e-6
    doctor = [json.loads(line) for line in (uninterrupted / "stages/02-grpo/mismatch.jsonl").read_text().splitlines()]
    assert [(line["step"], line["completions"], line["advice"]["cause"]) for line in doctor] == [
        (1, 32, "none"), (3, 32, "none"),
    ]  # fmt: skip
    report = json.loads((uninterrupted / "eval/final-distilled.json").read_text())
    assert report["accuracy"]["count"] == 40
    assert report["accuracy"]["low"] <= report["accuracy"]["value"] <= report["accuracy"]["high"]
    assert (uninterrupted / "report.html").stat().st_size > 10_000


def test_a_checkpoint_is_a_plain_hugging_face_folder(uninterrupted: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = uninterrupted / "stages/02-grpo/checkpoint"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen3_moe"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3+5="}], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]


def test_traces_are_verified_and_from_training_problems(uninterrupted: Path) -> None:
    rows = [json.loads(line) for line in (uninterrupted / "stages/03-traces/traces.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        assert row["problem_id"].startswith("arithmetic-train-")
        answer = row["response"].rpartition("<answer>")[2].partition("</answer>")[0]
        assert int(answer) == eval(row["prompt"].rstrip("="))


@pytest.mark.parametrize("stage", ["cold_start", "grpo"])
def test_kill_and_resume_equals_the_uninterrupted_run(uninterrupted: Path, tmp_path: Path, stage: str) -> None:
    process = start(tmp_path, "--out", "run")
    run = tmp_path / "run"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (run / "manifest.json").exists():
            status = {entry["name"]: entry["status"] for entry in manifest(run)["stages"]}
            if status[stage] == "done":
                break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {entry["name"]: entry for entry in manifest(run)["stages"]}
    assert before[stage]["status"] == "done"
    finished = [name for name, entry in before.items() if entry["status"] == "done"]
    assert "final" not in finished
    resumed = start(tmp_path, "--out", "run", "--resume")
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    after = {entry["name"]: entry for entry in manifest(run)["stages"]}
    for name in finished:
        assert after[name] == before[name], f"{name} was redone"
        assert f"{name} (" not in output
    whole = {entry["name"]: entry for entry in manifest(uninterrupted)["stages"]}
    for name in ("cold_start", "grpo", "distilled"):
        assert after[name]["sha256"] == whole[name]["sha256"], f"{name} differs from the uninterrupted run"
    for model in ("cold_start", "grpo", "distilled"):
        file = f"eval/final-{model}.json"
        assert (run / file).read_text() == (uninterrupted / file).read_text()


def test_a_second_start_in_the_same_folder_is_refused(uninterrupted: Path) -> None:
    process = start(uninterrupted.parent, "--out", "run")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--resume" in output

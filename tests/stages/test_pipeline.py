"""The whole chain for real, very small: every stage runs, a killed run goes on, and ends as the uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, PlainSerializer
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.run.interrupt import Interrupted
from rlreason.stages import drawing, evaluate  # noqa: F401  (bound to the real function before a test patches it)

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
[trainer]
save_every = 2
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
        [sys.executable, "-m", "rlreason", *arguments],
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
    process = start(folder, "run", "micro.toml", "--out", "run")
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


#: Metrics that measure time.
CLOCKS = ("time", "seconds", "tokens_per_second", "delivery/seconds")


def lines(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCKS and not k.startswith("seconds/")} for row in rows]


def assert_equal_runs(run: Path, whole: Path) -> None:
    """Weights, metrics, rollouts, traces, diagnoses and evaluations, bit for bit; no line lost or doubled."""
    ours, theirs = ({entry["name"]: entry for entry in manifest(one)["stages"]} for one in (run, whole))
    for name, entry in theirs.items():
        for key in ("sha256", "sampled_tokens", "trained_tokens", "status", "parameters"):
            assert ours[name][key] == entry[key], (name, key)
    for path in sorted((whole / "stages").glob("*/*.jsonl")):
        assert lines(run / path.relative_to(whole)) == lines(path), path.name
    for path in sorted((whole / "eval").iterdir()):
        if path.suffix == ".json":
            assert (run / "eval" / path.name).read_text() == path.read_text()


def count(run: Path, pattern: str) -> int:
    """Lines of a stage's file; 0 where there is none yet."""
    return sum(path.read_bytes().count(b"\n") for path in run.glob(f"stages/{pattern}"))


#: Where two runs are ended, once in a stage, one end after the other: when a file of the stage has so many lines.
#: save_every is 2.
ENDS = {
    "early": [
        ("*-grpo/metrics.jsonl", 1),  # before its first state
        ("*-traces/drawn.journal", 20),  # in a chunk
        ("*-final/drawn.journal", 5),  # by problem
    ],
    "late": [
        ("*-cold_start/metrics.jsonl", 31),  # between two states
        ("*-grpo/metrics.jsonl", 3),
        ("*-traces/metrics.jsonl", 1),  # the second chunk
        ("*-distilled/metrics.jsonl", 3),
        ("*-final/metrics.jsonl", 1),  # the second model
    ],
}


@pytest.mark.parametrize(
    ("number", "ends"),
    [  # each of the ten places once; the other signal there is slow
        pytest.param(signal.SIGKILL, "early", id="KILL-early"),
        pytest.param(signal.SIGTERM, "late", id="TERM-late"),
        pytest.param(signal.SIGKILL, "late", id="KILL-late", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "early", id="TERM-early", marks=pytest.mark.slow),
    ],
)
def test_a_run_ended_anywhere_goes_on_as_if_nothing_had_happened(
    uninterrupted: Path, tmp_path: Path, ends: str, number: signal.Signals
) -> None:
    process, run = start(tmp_path, "run", "micro.toml", "--out", "run"), tmp_path / "run"
    done: dict[str, dict] = {}
    unfinished: list[str] = []
    for pattern, enough in ENDS[ends]:
        stage = pattern.partition("/")[0].removeprefix("*-")
        while count(run, pattern) < enough and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(number)
        output, _ = process.communicate(timeout=300)
        assert process.returncode in (-number, 128 + number), output
        entries = {entry["name"]: entry for entry in manifest(run)["stages"]}
        if number is signal.SIGTERM:
            assert process.returncode == 143
            assert f"interrupted by SIGTERM in stage {stage}" in " ".join(output.split())
            assert "rlreason resume run" in " ".join(output.split())
            assert entries[stage]["status"] == "interrupted"
            if stage in ("cold_start", "grpo", "distilled"):  # what was trained is in a state, whatever save_every says
                newest = sorted((run / "stages").glob(f"*-{stage}/state/step-*"))[-1]
                assert int(newest.name.removeprefix("step-")) >= enough - 1
        done |= {name: entry for name, entry in entries.items() if entry["status"] == "done"}
        unfinished += [stage] if stage not in done else []
        process = start(tmp_path, "resume", "run")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    after = {entry["name"]: entry for entry in manifest(run)["stages"]}
    assert {name: after[name] for name in done} == done, "a finished stage was done again"
    assert [name for name, entry in after.items() if entry["resumed"]] == unfinished
    assert_equal_runs(run, uninterrupted)


def test_a_signal_that_comes_while_a_line_is_written_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pydantic says that serialising failed; the run was told to end."""

    class Line(BaseModel):
        value: Annotated[int, PlainSerializer(lambda value: signal.raise_signal(signal.SIGTERM))] = 0

    stage = '[[stage]]\nkind = "eval"\nname = "final"\nmodels = ["policy"]\nproblems = 4\nmax_tokens = 8\n'
    (tmp_path / "recipe.toml").write_text(RECIPE.partition("[[stage]]")[0] + stage)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "as_line", lambda group: Line().model_dump_json().encode())
        with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
            CliRunner().invoke(app, ["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")])
    assert manifest(tmp_path / "run")["stages"][0]["status"] == "interrupted"
    assert not (tmp_path / "run" / "error.log").exists()
    resumed = CliRunner().invoke(app, ["resume", str(tmp_path / "run")])
    assert resumed.exit_code == 0, resumed.output


def test_a_second_start_in_the_same_folder_is_refused(uninterrupted: Path) -> None:
    process = start(uninterrupted.parent, "run", "micro.toml", "--out", "run")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--resume" in output

"""Named data, written demonstrations and the curriculum in real runs: what is asked, and the same after a break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHAPE = """hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 64
tie_word_embeddings = true
"""
RECIPE = f"""
name = "sets"
[policy]
model_type = "qwen3"
tokenizer = {{ kind = "bpe", vocab_size = 300 }}
[policy.model]
{SHAPE}
[trainer]
save_every = 1
[cluster]
threads = 1
[data.chats]
path = "chats.jsonl"
[data.sums]
path = "sums.jsonl"
verifier = "judge.py:judge"
[data.test]
path = "test.jsonl"
verifier = "judge.py:judge"
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
data = {{ chats = 0.5, sums = 0.5 }}
steps = 2
batch_size = 4
[[stage]]
kind = "grpo"
name = "rl"
data = "sums"
heldout = "test"
steps = STEPS
problems_per_step = 2
samples_per_problem = 2
max_tokens = 4
eval_every = 4
eval_problems = 2
curriculum = {{ skip_solved_after = 1, retry_after = 4 }}
[[stage]]
kind = "eval"
name = "final"
models = ["rl"]
data = "test"
problems = 3
max_tokens = 4
"""
#: Even problems are always solved, odd ones by every second answer or so.
JUDGE = """
def judge(problem, completion):
    return int(problem.prompt) % 2 == 0 or sum(completion.token_ids) % 2 == 0
"""


def rlreason(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "rlreason", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sets")
    (place / "judge.py").write_text(JUDGE)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>x</think>\nwell, hello"}]
    (place / "chats.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(3)))
    for name, numbers in (("sums", range(6)), ("test", range(10, 13))):
        rows = [{"id": str(i), "prompt": str(i), "answer": "1", "solution": "s"} for i in numbers]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for steps in (3, 7):
        (place / f"of{steps}.toml").write_text(RECIPE.replace("STEPS", str(steps)))
    rlreason(place, "run", "of7.toml", "--out", "whole")
    rlreason(place, "run", "of3.toml", "--out", "taken_up")
    rlreason(place, "resume", "taken_up", "stage.rl.steps=7")
    return place


def metrics(run: Path) -> list[dict]:
    (path,) = run.glob("stages/*-rl/metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def asked(run: Path) -> list[tuple[int, str]]:
    (path,) = run.glob("stages/*-rl/rollouts.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["step"], row["problem_id"]) for row in rows if row["sample"] == 0]


def test_what_is_solved_is_passed_over(folder: Path) -> None:
    rows = asked(folder / "whole")
    assert len(rows) == 14
    for even in "024":
        steps = [step for step, problem in rows if problem == even]
        assert all(later - earlier >= 4 for earlier, later in pairwise(steps))
    assert sum(line["curriculum/passed_over"] for line in metrics(folder / "whole")) > 0


def test_a_stage_with_a_curriculum_goes_on_bit_for_bit(folder: Path) -> None:
    whole, again = (json.loads((folder / run / "manifest.json").read_text()) for run in ("whole", "taken_up"))
    assert asked(folder / "whole") == asked(folder / "taken_up")
    assert [stage["sha256"] for stage in whole["stages"]] == [stage["sha256"] for stage in again["stages"]]


def test_the_manifest_says_each_set(folder: Path) -> None:
    found = json.loads((folder / "whole" / "manifest.json").read_text())["data"]
    assert list(found) == ["chats", "sums", "test"]
    assert [entry["size"] for entry in found.values()] == [3, 6, 3]
    assert len({entry["fingerprint"] for entry in found.values()}) == 3

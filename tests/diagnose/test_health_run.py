"""Recipes of two steps that go wrong, as a user runs them: exit code, screen, manifest, report."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
REWARDS = """
def always(problem, completion):
    return completion.answer

def some(problem, completion):
    if int(completion.token_ids.sum()) % 5 == 0:
        raise RuntimeError("one in five")
    return float(len(completion.token_ids) % 3)

def equal(problem, completion):
    return 0.5

def some_only(problem, completion):
    if int(completion.token_ids.sum()) % 5 == 0:
        raise RuntimeError("one in five")
    return 1.0

def spread(problem, completion):
    return float(int(completion.token_ids.sum()) % 3)
"""
MODEL = """
name = "micro"
seed = 1
[policy]
model_type = "qwen3"
[policy.model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 64
tie_word_embeddings = true
[data]
train = "arithmetic"
options = { min_terms = 2, max_terms = 3, max_total = 9, negatives = false }
[cluster]
threads = 1
"""
SFT = """
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
steps = 2
demonstrations = 16
batch_size = 8
"""
GRPO = """
[[stage]]
kind = "grpo"
name = "rl"
steps = 2
problems_per_step = 4
samples_per_problem = 4
max_tokens = 12
eval_every = 1
eval_problems = 8
optimizer = { lr = 1e-3 }
"""
EVAL = """
[[stage]]
kind = "eval"
name = "final"
models = ["policy"]
problems = 8
max_tokens = 12
"""


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    code: int
    said: str
    folder: Path

    @property
    def manifest(self) -> Any:
        return json.loads((self.folder / "manifest.json").read_text())

    @property
    def report(self) -> str:
        return (self.folder / "report.html").read_text()

    def rows(self, stage: str, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        (path,) = (self.folder / "stages").glob(f"*-{stage}/{name}")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def warned(self) -> dict[str, str]:
        return {one["rule"]: one["text"] for one in self.manifest["warnings"]}


def command(folder: Path, *arguments: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-m", "rlreason", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "2000"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Ended(code=done.returncode, said=done.stdout + done.stderr, folder=folder / "run")


def run(folder: Path, recipe: str, *overrides: str) -> Ended:
    (folder / "bad.py").write_text(REWARDS)
    (folder / "r.toml").write_text(recipe)
    return command(folder, "run", "r.toml", "--out", "run", *overrides)


def reward(name: str) -> str:
    return f'[reward]\n"bad.py:{name}" = 1.0\n'


def with_file(folder: Path, verifier: str) -> str:
    """The model on problems of a file, which name their verifier."""
    for name, first in (("train", 0), ("heldout", 60)):
        rows = [{"prompt": f"{number}+1=", "answer": str(number + 1)} for number in range(first, first + 60)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = '[policy.tokenizer]\nkind = "bpe"\nvocab_size = 300\n'
    data = f'[data]\ntrain = "train.jsonl"\nheldout = "heldout.jsonl"\nverifier = "bad.py:{verifier}"\n'
    return MODEL.replace(MODEL[MODEL.index("[data]") : MODEL.index("[cluster]")], tokenizer + data)


def test_a_reward_that_always_raises_stops_at_the_first_step(tmp_path: Path) -> None:
    ended = run(tmp_path, MODEL + reward("always") + GRPO)
    assert ended.code == 1, ended.said
    place = "AttributeError: 'Completion' object has no attribute 'answer' (bad.py:3 in always)"
    assert f"stopped: stage rl, step 0: every verdict is BROKEN. The first: bad.py:always: {place}" in ended.said
    assert "✓" not in ended.said
    assert not (ended.folder / "error.log").exists()  # it is not our traceback that helps
    (stage,) = ended.manifest["stages"]
    assert stage["status"] == "failed"
    assert place in stage["error"]
    assert "bad.py:3 in always" in ended.report
    (row,) = ended.rows("rl")
    assert row["verdict/broken"] == 1.0
    assert not {"reward/mean", "accuracy/train"} & row.keys()
    assert ended.rows("rl", "rollouts.jsonl")[0]["detail"].endswith("(bad.py:3 in always)")

    # the reward is mended: the stage goes on with the step that stopped it, and nothing of it is there twice
    (tmp_path / "bad.py").write_text(REWARDS.replace("completion.answer", "float(len(completion.token_ids) % 3)"))
    again = command(tmp_path, "resume", "run", "--accept-changes")
    assert again.code == 0, again.said
    assert [row["step"] for row in again.rows("rl")] == [0, 1]
    assert again.manifest["stages"][0]["status"] == "done"


def test_a_reward_that_raises_now_and_then_is_warned_of(tmp_path: Path) -> None:
    """Held-out accuracy is the verifier's, whatever the reward says and however often it breaks."""
    ended = run(tmp_path, MODEL + reward("some") + GRPO + EVAL)
    assert ended.code == 0, ended.said
    text = ended.warned()["no_verdict"]
    assert "(bad.py:7 in some)" in text
    assert f": {text}" in ended.said
    assert [one["rule"] for one in ended.manifest["warnings"]].count("no_verdict") == 1
    assert ended.report.index('id="warnings"') < ended.report.index('id="chain"')
    assert "(bad.py:7 in some)" in ended.report[ended.report.index('id="warnings"') :][:4000]
    for row in ended.rows("rl"):
        assert "accuracy/train" not in row  # no verifier in [reward]
        # a policy of random weights that draws 12 characters answers nothing
        assert (row["accuracy/heldout"], row["heldout/broken"], row["heldout/verified"]) == (0.0, 0.0, 8.0)
    measured = json.loads((ended.folder / "eval" / "final-policy.json").read_text())
    assert (measured["accuracy"]["value"], measured["accuracy"]["count"], measured["broken"]) == (0.0, 8, 0.0)
    assert measured["verdicts"] == {"unparsed": 8}
    # what is trained on is what is written
    first = [row for row in ended.rows("rl", "rollouts.jsonl") if row["step"] == 0]
    assert {row["advantage"] is None for row in first if row["verdict"] == "broken"} == {True}


def test_advantages_that_are_written_are_those_trained_on(tmp_path: Path) -> None:
    """lite_ppo divides by the deviation of all rewards of a step, also where one group of four is written."""
    ended = run(tmp_path, MODEL + reward("spread") + GRPO, "stage.rl.objective=lite_ppo", "stage.rl.logged_groups=1")
    assert ended.code == 0, ended.said
    metrics = ended.rows("rl")[0]
    rows = [row for row in ended.rows("rl", "rollouts.jsonl") if row["step"] == 0]
    scores = [row["score"] for row in rows]
    assert len(scores) == 4
    assert len(set(scores)) > 1
    deviation = metrics["reward/std"] * math.sqrt(16 / 15) + 1e-6  # the metric is that of a population
    wanted = [(score - sum(scores) / 4) / deviation for score in scores]
    assert [row["advantage"] for row in rows] == pytest.approx(wanted, rel=1e-5)
    of_one_group = statistics.stdev(scores) + 1e-6
    assert [row["advantage"] for row in rows] != pytest.approx([one * deviation / of_one_group for one in wanted])


def test_a_verifier_that_breaks_now_and_then_is_beside_the_accuracy(tmp_path: Path) -> None:
    recipe = with_file(tmp_path, "some_only") + EVAL
    ended = run(tmp_path, recipe, "stage.final.problems=60", "stage.final.temperature=1.0")
    assert ended.code == 0, ended.said
    measured = json.loads((ended.folder / "eval" / "final-policy.json").read_text())
    broken = measured["verdicts"]["broken"]
    assert 0 < broken < 60
    assert measured["accuracy"]["value"] == 1.0
    assert measured["accuracy"]["count"] == 60 - broken
    assert measured["broken"] == pytest.approx(broken / 60)
    assert f"policy 100.0% [{measured['accuracy']['low']:.1%}, 100.0%]; {broken / 60:.1%} broken" in ended.said
    assert "had a check that broke" in ended.report


def test_a_verifier_that_always_breaks_stops_an_evaluation(tmp_path: Path) -> None:
    recipe = with_file(tmp_path, "always") + EVAL
    ended = run(tmp_path, recipe)
    assert ended.code == 1, ended.said
    assert "stopped: stage final, step 0: every verdict is BROKEN" in ended.said
    assert "(bad.py:3 in always)" in ended.said
    assert not list((ended.folder / "eval").glob("*.json"))
    assert "✓" not in ended.said


def test_no_useful_group_ever_is_no_success(tmp_path: Path) -> None:
    ended = run(tmp_path, MODEL + reward("equal") + GRPO)
    assert ended.code == 1, ended.said
    assert "stopped: stage rl: 0 tokens were trained: 8 of its 8 groups had equal rewards (mean 0.5)" in ended.said
    assert "✓" not in ended.said
    assert ended.manifest["stages"][0]["status"] == "failed"
    assert not list((ended.folder / "stages").glob("*/checkpoint"))
    assert "0 tokens were trained" in ended.report
    assert "groups_kept" in ended.warned()
    # going on changes nothing: there is no step left, and nothing was learnt
    again = command(tmp_path, "resume", "run")
    assert again.code == 1
    assert "0 tokens were trained" in again.said
    assert again.manifest["warnings"] == ended.manifest["warnings"]


def test_a_learning_rate_that_overflows(tmp_path: Path) -> None:
    ended = run(tmp_path, MODEL + reward("some") + GRPO, "stage.rl.optimizer.lr=1e39")
    assert ended.code == 1, ended.said
    assert "weights that are not finite" in ended.said
    assert "✓" not in ended.said
    assert ended.manifest["stages"][0]["status"] == "failed"
    assert "weights that are not finite" in ended.report


def test_a_loss_that_is_nan(tmp_path: Path) -> None:
    """A model whose head overflows: every gradient is NaN, every step is skipped, and that is no success."""
    made = run(tmp_path, MODEL + SFT)
    assert made.code == 0, made.said
    (checkpoint,) = (made.folder / "stages").glob("*/checkpoint")
    model = tmp_path / "overflowing"
    shutil.copytree(checkpoint, model)
    (weights,) = model.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["model.norm.weight"].fill_(3e38)
    save_file(tensors, weights, metadata={"format": "pt"})
    shutil.rmtree(made.folder)
    table = MODEL[MODEL.index("[policy]") : MODEL.index("[data]")]
    ended = run(tmp_path, MODEL.replace(table, f'[policy]\npath = "{model}"\n') + SFT)
    assert ended.code == 1, ended.said
    assert "stopped: stage cold: all of its 2 steps were skipped" in ended.said
    assert "skipped" in ended.warned()
    assert "✓" not in ended.said
    assert not list((ended.folder / "stages").glob("*/checkpoint"))

"""Stages whose length is said in epochs: every row is learnt so often, and the schedule ends with the stage."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlreason.check import check
from rlreason.config import SftStage, load
from rlreason.errors import UsageError
from rlreason.job import JobOptions, run_job
from rlreason.plan.text import describe
from rlreason.stages import sft

SHAPE = """hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 64
tie_word_embeddings = true
"""
RECIPE = f"""
name = "epochs"
seed = 1
[policy]
model_type = "qwen3"
[policy.model]
{SHAPE}
[student]
model_type = "qwen3"
[student.model]
{SHAPE}
[data]
train = "arithmetic"
options = {{ min_terms = 2, max_terms = 2, max_total = 9, negatives = false }}
[cluster]
threads = 1
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
demonstrations = 150
epochs = 8.6
batch_size = 32
optimizer = {{ lr = 1e-2, schedule = "cosine" }}
[[stage]]
kind = "reject"
name = "traces"
problems = 24
samples_per_problem = 3
keep_per_problem = 2
max_tokens = 32
[[stage]]
kind = "distill"
name = "learns"
epochs = 1.5
batch_size = 2
optimizer = {{ lr = 1e-2, schedule = "linear" }}
"""


def run(path: Path, out: Path, *, resume: bool = False, overrides: Sequence[str] = ()) -> str:
    screen = io.StringIO()
    options = JobOptions(folder=out, command="test", resume=resume)
    run_job(load(path, overrides), path, options, Console(file=screen, width=200))
    return screen.getvalue()


def metrics(out: Path, name: str) -> list[dict[str, float]]:
    (path,) = out.glob(f"stages/*-{name}/metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("epochs", "rows", "batch", "steps"),
    [(1, 64, 32, 2), (1, 65, 32, 3), (2, 65, 32, 5), (0.1, 30, 3, 1), (0.3, 10, 3, 1), (0.01, 10, 64, 1)],
)
def test_steps_are_rounded_up(epochs: float, rows: int, batch: int, steps: int) -> None:
    """65 rows twice are 130, in batches of 32 five; 0.1 * 30 is 3 and not a little more."""
    stage = SftStage(kind="sft", name="one", epochs=epochs, batch_size=batch)
    assert stage.counted(rows).steps == steps
    assert SftStage(kind="sft", name="one", steps=7).counted(rows).steps == 7


def test_one_of_both_is_said() -> None:
    with pytest.raises(ValueError, match=r"steps = … or epochs = …"):
        SftStage(kind="sft", name="one")
    with pytest.raises(ValueError, match=r"steps or epochs, not both"):
        SftStage(kind="sft", name="one", steps=1, epochs=1)


def test_a_run_learns_every_row_so_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(RECIPE, encoding="utf-8")
    learnt: dict[str, Counter[int]] = {}
    train = sft.SupervisedWork.train

    def counted(self: sft.SupervisedWork, step: int, commit: Any) -> dict[str, float]:
        own = learnt.setdefault(self.stage.name, Counter())
        own.update(id(sample) for sample in self.samples(step))
        return train(self, step, commit)

    monkeypatch.setattr(sft.SupervisedWork, "train", counted)
    said = run(path, out)
    # 8.6 epochs of 150 rows are 1,290 rows: 40.3 batches of 32.
    cold = metrics(out, "cold")
    assert len(cold) == 41
    assert "cold: 150 rows, learnt 8.7 times in 41 steps" in said
    # 1,312 rows in those batches: each of the 150 eight times, 112 a ninth time.
    assert Counter(learnt["cold"].values()) == {8: 38, 9: 112}
    (path_of_traces,) = out.glob("stages/*-traces/traces.jsonl")
    kept = len(path_of_traces.read_text(encoding="utf-8").splitlines())
    assert kept > 5
    steps = -(-3 * kept // 4)  # 1.5 * kept / 2, rounded up
    learns = metrics(out, "learns")
    assert len(learns) == steps
    assert f"learns: {kept} rows, learnt" in said
    # The schedules know the length: a tenth at the last step, cosine and linear.
    assert cold[-1]["lr"] == pytest.approx(1e-3)
    assert learns[-1]["lr"] == pytest.approx(1e-3)
    assert cold[-2]["lr"] > 1.001e-3
    again = 2 * steps - kept
    assert Counter(learnt["learns"].values()) == {1: kept - again, 2: again}

    # More of them go on where the stage ended.
    more = run(path, out, resume=True, overrides=["stage.learns.epochs=3"])
    assert len(metrics(out, "learns")) == -(-3 * kept // 2) > steps
    assert f"learns: {kept} rows, learnt" in more
    with pytest.raises(UsageError, match=r"given more epochs, not fewer"):
        run(path, out, resume=True, overrides=["stage.learns.epochs=2"])


def test_a_plan_counts_what_it_can(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    text = describe(load(path), path)
    assert "8.6 epochs of 150 rows" in text
    assert "41 steps x 32 rows" in text
    assert "1.5 epochs of at most 48 rows" in text
    assert "36 steps x 2 rows" in text


def test_epochs_of_what_never_ends_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("demonstrations = 150\n", ""), encoding="utf-8")
    with pytest.raises(UsageError, match=r"stage\.cold\.epochs: .* never runs out"):
        check(load(path), tmp_path)

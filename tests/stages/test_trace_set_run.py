"""A reject stage that makes a set: the same bytes after it was killed; benchmarks' questions are learnt in no case."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlreason.config import load
from rlreason.inputs import RecipeFiles
from rlreason.job import JobOptions, run_job
from rlreason.recipe_data import RecipeData
from rlreason.stages import reject
from rlreason.traces.sets import check_set

SHAPE = """hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 64
tie_word_embeddings = true
"""
RECIPE = f"""
name = "set"
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
options = {{ min_terms = 2, max_terms = 3, max_total = 9, negatives = false }}
[cluster]
threads = 1
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
demonstrations = 200
steps = 40
batch_size = 32
optimizer = {{ lr = 1e-2 }}
[[stage]]
kind = "reject"
name = "traces"
problems = 24
samples_per_problem = 2
max_tokens = 32
keep_rejected = true
filters = {{ language = 0, decontaminate = {{ n = 10, against = ["BENCH"] }} }}
[[stage]]
kind = "distill"
name = "learns"
which = "all"
steps = 1
batch_size = 8
"""
FILES = ("draws.jsonl", "traces.jsonl", "traces_rejected.jsonl", "card.json", "README.md")


def run(path: Path, out: Path, *, resume: bool = False) -> str:
    screen = io.StringIO()
    options = JobOptions(folder=out, command="test", resume=resume)
    run_job(load(path), path, options, Console(file=screen, width=200))
    return screen.getvalue()


def stage_of(out: Path, name: str) -> Path:
    (found,) = out.glob(f"stages/*-{name}")
    return found


def test_killed_and_gone_on_with_it_is_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, bench = tmp_path / "recipe.toml", tmp_path / "bench.jsonl"
    path.write_text(RECIPE.replace("BENCH", str(bench)), encoding="utf-8")
    recipe = load(path)
    data = RecipeData(recipe=recipe, base=tmp_path, files=RecipeFiles(base=tmp_path)).read()
    leaked = data.of("traces").train(0, 1)[0].prompt
    bench.write_text(json.dumps({"problem": leaked}) + "\n", encoding="utf-8")
    monkeypatch.setattr(reject, "CHUNK", 8)
    said = run(path, tmp_path / "whole")
    record = reject._record_chunk

    def breaks(chunk: int, *rest: Any) -> None:
        if chunk == 1:
            raise OSError("the machine is gone")
        record(chunk, *rest)

    monkeypatch.setattr(reject, "_record_chunk", breaks)
    with pytest.raises(OSError, match="the machine is gone"):
        run(path, tmp_path / "broken")
    monkeypatch.setattr(reject, "_record_chunk", record)
    run(path, tmp_path / "broken", resume=True)
    whole, broken = (stage_of(tmp_path / name, "traces") for name in ("whole", "broken"))
    for file in FILES:
        assert (whole / file).read_bytes() == (broken / file).read_bytes(), file
    assert len((whole / "draws.jsonl").read_text().splitlines()) == 48
    card = json.loads((whole / "card.json").read_text())
    assert card["rows"]["drawn"] == 48 == card["rows"]["kept"] + sum(card["stopped"].values())
    assert card["rows"]["kept"] > 0
    asked = [json.loads(line)["prompt"] for line in (whole / "draws.jsonl").read_text().splitlines()]
    assert asked.count(leaked) >= 2
    kept = [json.loads(line)["prompt"] for line in (whole / "traces.jsonl").read_text().splitlines()]
    assert leaked not in kept
    assert check_set(whole).faults == ()
    # The unfiltered arm takes all draws but those.
    assert f"learns: {asked.count(leaked)} draw(s) left out, whose problems share words with a benchmark" in said

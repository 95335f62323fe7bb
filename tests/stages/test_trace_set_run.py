"""A reject stage that makes a set: the same bytes after it was killed; benchmarks' questions are learnt in no case."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlreason.config import load
from rlreason.errors import HealthStop
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
    # The last line of metrics is what the filters left, each problem once; those before say nothing of it.
    ids = {json.loads(line)["problem_id"] for line in (whole / "traces.jsonl").read_text().splitlines()}
    *chunks, last = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [("kept" in one, one["problems"]) for one in chunks] == [(False, 8), (False, 16), (False, 24)]
    assert (last["kept"], last["distinct/drawn"], last["distinct/kept"]) == (len(kept), 24, len(ids))
    assert {name: last[f"stopped/{name}"] for name in card["stopped"]} == card["stopped"]
    assert f"traces: 48 rows of 24 distinct problems, {len(kept)} of {len(ids)} kept" in said
    # The unfiltered arm takes all draws but those.
    assert f"learns: {asked.count(leaked)} draw(s) left out, whose problems share words with a benchmark" in said


def test_filters_that_take_everything_are_changed_on_the_way(tmp_path: Path) -> None:
    """Nothing is drawn anew, and a stage without filters says how many problems it drew and kept, too."""
    bench, path, out = tmp_path / "bench.jsonl", tmp_path / "recipe.toml", tmp_path / "out"
    bench.write_text('{"problem": "What is that?"}\n', encoding="utf-8")
    text = RECIPE.replace("BENCH", str(bench)).replace("language = 0,", 'language = 0, format = "boxed",')
    path.write_text(text[: text.index('[[stage]]\nkind = "distill"')], encoding="utf-8")
    with pytest.raises(HealthStop, match=r"stage traces: no trace was kept: of 48 completions the filter format"):
        run(path, out)
    before = (stage_of(out, "traces") / "draws.jsonl").read_bytes()
    assert not (stage_of(out, "traces") / "card.json").exists()
    recipe = load(out / "recipe.toml", ("stage.traces.filters.format=tags", "stage.traces.keep_per_problem=2"))
    screen = io.StringIO()
    run_job(recipe, out / "recipe.toml", JobOptions(folder=out, command="test", resume=True), Console(file=screen))
    assert (stage_of(out, "traces") / "draws.jsonl").read_bytes() == before
    card = json.loads((stage_of(out, "traces") / "card.json").read_text())
    assert card["rows"]["kept"] > 0
    assert (card["filters"]["format"], card["keep_per_problem"]) == ("tags", 2)
    facts = (out / "report.html").read_text(encoding="utf-8")
    assert "distinct problems with a trace" in facts

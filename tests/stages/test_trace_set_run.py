"""A reject stage that makes a set: the same bytes after it was killed; benchmarks' questions are learnt in no case."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from rlreason.config import DistillStage, load
from rlreason.data.prompts import PromptFormat, end_of_turn_id
from rlreason.errors import HealthStop, UsageError
from rlreason.inputs import RecipeFiles
from rlreason.job import JobOptions, run_job
from rlreason.policy.policies import fresh_tokenizer
from rlreason.recipe_data import RecipeData
from rlreason.run import atomic
from rlreason.stages import reject
from rlreason.stages.distill import trace_samples
from rlreason.stages.reject import read_traces
from rlreason.traces.rows import TraceRow
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
    # The unfiltered arm takes all draws but those; what it reads is what the manifest says.
    entry = next(one for one in json.loads((tmp_path / "whole/manifest.json").read_text())["stages"]
                 if one["name"] == "learns")  # fmt: skip
    made = {one["name"]: one["sha256"] for one in entry["made_from"]}
    assert made["traces"] == atomic.file_sha256(whole / "draws.jsonl")
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


def test_a_trace_that_was_cut_off_is_learnt_without_an_end(tmp_path: Path) -> None:
    """Of a set, of all draws, and of a stage that wrote no reason (which kept finished ones alone)."""
    (tmp_path / "bench.jsonl").write_text('{"problem": "What is that?"}\n', encoding="utf-8")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("BENCH", str(tmp_path / "bench.jsonl")), encoding="utf-8")
    recipe = load(path)
    rows = [
        TraceRow(id=f"r{at}", problem_id=f"p{at}", prompt=f"{at}+1=", response="<think>1+1=2", finish_reason=reason)
        for at, reason in enumerate(("stop", "length", "unknown", "length"))
    ]  # type: ignore[arg-type]
    for name in ("draws.jsonl", "traces.jsonl"):
        (tmp_path / name).write_text("\n".join(row.as_line() for row in rows), encoding="utf-8")
    tokenizer = fresh_tokenizer(recipe.policy, "0123456789+=abcdefghijklmnopqrstuvwxyz", ())
    end = end_of_turn_id(tokenizer)
    student: Any = SimpleNamespace(tokenizer=tokenizer, architecture={"max_position_embeddings": None})
    context: Any = SimpleNamespace(recipe=recipe, prompt_format=PromptFormat(), run=None)
    learns = recipe.stage[2]
    assert isinstance(learns, DistillStage)
    for which in ("all", "kept"):
        stage = learns.model_copy(update={"which": which})
        ids = [sample.token_ids.tolist() for sample in trace_samples(stage, context, student, tmp_path)]
        assert [one[-1] == end for one in ids] == [True, False, True, False]
        assert ids[0][-2] == ids[1][-1] == tokenizer.encode("2", add_special_tokens=False)[-1]
    bare = {"problem_id": "p", "prompt": "1+1=", "messages": [], "response": "<think>2"}
    (tmp_path / "traces.jsonl").write_text(json.dumps(bare) + "\n", encoding="utf-8")
    assert [one.ended for one in read_traces(tmp_path)] == [True]


def test_a_row_that_is_no_trace_is_refused_before_the_run(tmp_path: Path) -> None:
    bad = '{"prompt": "1+1=", "response": "<think>1</think>2"}\n'
    good = '{"problem_id": "p", "prompt": "1+1=", "response": "<think>1</think>2"}\n\n'
    path, rows = tmp_path / "recipe.toml", tmp_path / "set" / "traces.jsonl"
    rows.parent.mkdir()
    text = RECIPE[: RECIPE.index('[[stage]]\nkind = "reject"')]
    stage = RECIPE[RECIPE.index('[[stage]]\nkind = "distill"') :].replace(
        'which = "all"', f'trace_set = "{rows.parent}"'
    )
    path.write_text(text + stage, encoding="utf-8")
    for lines, words in (
        (good + bad, r"traces\.jsonl, line 3: problem_id: Field required: no row of traces; .*traces import FILE"),
        (good + "7\n", r"line 3: the line: Input should be an object"),
        (good + '{"problem_id": "p", ', r"line 3: the line: Invalid JSON"),
    ):
        rows.write_text(lines, encoding="utf-8")
        with pytest.raises(UsageError, match=rf"stage\.learns\.trace_set: .*{words}"):
            run(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    rows.write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds no trace that could be learnt: nothing was kept there"):
        list(trace_samples(*_empty(path, rows.parent)))


def _empty(path: Path, folder: Path) -> tuple[Any, Any, Any, Path]:
    recipe = load(path)
    student = SimpleNamespace(
        tokenizer=fresh_tokenizer(recipe.policy, "0123456789+=abcdefghijklmnopqrstuvwxyz", ()),
        architecture={"max_position_embeddings": None},
    )
    return recipe.stage[1], SimpleNamespace(recipe=recipe, prompt_format=PromptFormat(), run=None), student, folder

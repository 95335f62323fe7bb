"""The R1 chains at laptop size, whole: every stage of the shipped recipes, a step or two each, on data whose answers
are all right, so that there is something to keep."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlreason.config import load, locate
from rlreason.job import JobOptions, run_job

ROWS = [{"id": str(at), "prompt": f"{at}+1=", "answer": str(at + 1), "solution": "one more"} for at in range(40)]
#: Right whatever is said; and a score that tells completions apart.
JUDGE = """
def right(problem, completion):
    return 1.0


def spread(problem, completion):
    return sum(map(ord, completion.text)) % 7 / 7
"""
BPE = "{kind='bpe',vocab_size=300}"
SHAPE = (
    "={hidden_size=16,intermediate_size=32,num_hidden_layers=1,num_attention_heads=2,num_key_value_heads=1,head_dim=8"
)
MOE = SHAPE + ",moe_intermediate_size=16,num_experts=4,num_experts_per_tok=2}"
SMALL = {
    "steps": 2,
    "reference_every": 1,
    "batch_size": 4,
    "demonstrations": 8,
    "first_problem": 0,
    "problems_per_step": 2,
    "samples_per_problem": 4,
    "problems": 4,
    "max_tokens": 24,
    "eval_every": 0,
}


def run(name: str, folder: Path, sets: tuple[str, ...]) -> Any:
    """The manifest of the recipe's run, its models and stages made small."""
    (folder / "judge.py").write_text(JUDGE, encoding="utf-8")
    for number, one in enumerate(sets):
        rows = [row | {"prompt": f"{number}:{row['prompt']}"} for row in ROWS]
        (folder / f"{one}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    overrides = [f"policy.model{MOE}", f"student.model{SHAPE}}}", f"policy.tokenizer={BPE}", f"student.tokenizer={BPE}"]
    for one in sets:
        keys = {"path": f"{folder}/{one}.jsonl", "verifier": f"{folder}/judge.py:right", "split": 0.2}
        overrides += [f"data.{one}.{key}={value}" for key, value in keys.items()] + [f"data.{one}.options={{}}"]
    overrides.append(f'reward={{"{folder}/judge.py:spread"=1.0,accuracy=1.0}}')
    recipe = load(locate(name), tuple(overrides))
    for stage in recipe.stage:
        values = stage.model_dump()
        small = SMALL | ({"problems": 8, "max_tokens": 100} if stage.kind == "reject" else {})  # some end by chance
        overrides += [f"stage.{stage.name}.{key}={value}" for key, value in small.items() if values.get(key)]
        if "filters" in values:
            overrides.append(f"stage.{stage.name}.filters={{format='none'}}")
    options = JobOptions(folder=folder / "run", command=f"rlreason run {name}")
    run_job(load(locate(name), tuple(overrides)), locate(name), options, Console(file=io.StringIO()))
    return json.loads((folder / "run" / "manifest.json").read_text(encoding="utf-8"))


def page_of(folder: Path) -> str:
    return (folder / "run" / "report.html").read_text(encoding="utf-8")


def made(manifest: Any, name: str) -> set[tuple[str, str]]:
    (stage,) = [one for one in manifest["stages"] if one["name"] == name]
    assert all(one["sha256"] for one in stage["made_from"])
    return {(one["kind"], one["name"]) for one in stage["made_from"]}


@pytest.mark.filterwarnings("ignore")
def test_r1_mini_runs_whole(tmp_path: Path) -> None:
    manifest = run("r1_mini", tmp_path, ("math", "general"))
    assert {stage["status"] for stage in manifest["stages"]} == {"done"}
    assert all(stage["sha256"] for stage in manifest["stages"])
    assert made(manifest, "sft_again") == {("model", "policy"), ("traces", "traces"), ("data", "general")}
    assert made(manifest, "distilled") == {("model", "student"), ("traces", "traces"), ("data", "general")}
    assert ("model", "sft_again") in made(manifest, "rl_all")
    page = page_of(tmp_path)
    assert page.count('<tr><th scope="row">rl_all</th>') >= 2  # a line of the ledger, and one of the lineage
    assert 'class="lineage-graph"' in page


@pytest.mark.filterwarnings("ignore")
def test_r1_v4_mini_runs_whole(tmp_path: Path) -> None:
    manifest = run("r1_v4_mini", tmp_path, ("math", "code"))
    assert {stage["status"] for stage in manifest["stages"]} == {"done"}
    teachers = {("model", "rl_math"), ("model", "rl_code")}
    assert teachers | {("model", "student_start")} <= made(manifest, "merged")
    (merged,) = [one for one in manifest["stages"] if one["name"] == "merged"]
    assert merged["work"]["scored_tokens"] == merged["trained_tokens"]  # each token by one teacher

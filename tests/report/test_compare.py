"""What the report shows beside the steps: other axes, two runs, compressed rollouts, paths, ages; and no secrets."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rlreason import report
from rlreason.errors import UsageError
from rlreason.report import compare, page
from rlreason.report.read import read_run
from rlreason.report.rollouts import read_rollouts

KEY = "sk-abcdef0123456789"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_axes_are_sums_up_to_the_end_of_each_step(run_dir: Path) -> None:
    path = next(run_dir.glob("stages/*-grpo/metrics.jsonl"))
    rows = [{"step": step, "tokens": 10 * (step + 1), "seconds": 0.5, "loss": 1.0} for step in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = next(stage for stage in read_run(run_dir).stages if stage.name == "grpo")
    assert page.stage_data(stage)["axes"] == {"tokens": [10, 30, 60, 100], "time": [0.5, 1, 1.5, 2]}
    del rows[1]["tokens"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = next(stage for stage in read_run(run_dir).stages if stage.name == "grpo")
    assert page.stage_data(stage)["axes"] == {"time": [0.5, 1, 1.5, 2]}, (
        "an axis with a gap would be wrong from there on"
    )


def test_thinned_steps_keep_their_sums(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_STEPS", 2)
    path = next(run_dir.glob("stages/*-grpo/metrics.jsonl"))
    path.write_text("".join(json.dumps({"step": s, "tokens": 1, "seconds": 1, "loss": 1}) + "\n" for s in range(9)))
    data = page.stage_data(next(stage for stage in read_run(run_dir).stages if stage.name == "grpo"))
    assert data["steps"] == [0, 5, 8]
    assert data["axes"]["tokens"] == [1, 6, 9]


def test_compressed_rollouts_are_read_also_while_they_are_written(run_dir: Path) -> None:
    path = next(run_dir.glob("stages/*-grpo/rollouts.jsonl"))
    before = [one for one in read_rollouts(read_run(run_dir)) if one.stage == "grpo"]
    lines = path.read_bytes().splitlines(keepends=True)
    members = [gzip.compress(b"".join(lines[start : start + 8])) for start in range(0, len(lines), 8)]
    packed = path.with_name("rollouts.jsonl.gz")
    packed.write_bytes(b"".join(members))
    path.unlink()
    after = [one for one in read_rollouts(read_run(run_dir)) if one.stage == "grpo"]
    assert [one.groups for one in after] == [one.groups for one in before]
    packed.write_bytes(b"".join(members)[:-10])
    torn = next(one for one in read_rollouts(read_run(run_dir)) if one.stage == "grpo")
    assert before[0].total - 8 <= torn.total < before[0].total
    assert torn.torn == 1
    # Compression was switched on in the middle of the stage: both files count.
    path.write_bytes(b"".join(lines[:8]))
    packed.write_bytes(b"".join(members[1:]))
    both = next(one for one in read_rollouts(read_run(run_dir)) if one.stage == "grpo")
    assert (both.total, both.groups) == (before[0].total, before[0].groups)


def test_rendered_prompts_and_lone_failures_are_marked(run_dir: Path) -> None:
    path = next(run_dir.glob("stages/*-grpo/rollouts.jsonl"))
    row = json.loads(path.read_text().splitlines()[0])
    row |= {
        "group_id": "lone",
        "rendered_prompt": "<|user|>3+5<|assistant|>",
        "logged_for": "failure",
        "verdict": "broken",
    }
    path.write_text(json.dumps(row) + "\n")
    found = next(one for one in read_rollouts(read_run(run_dir)) if one.stage == "grpo").groups
    assert [(group["rendered"], group["partial"]) for group in found] == [("<|user|>3+5<|assistant|>", True)]


def test_lineage_names_the_path_of_a_loaded_model(run_dir: Path) -> None:
    assert "from a new policy" in report.build(run_dir).read_text()
    recipe = run_dir / "recipe.toml"
    recipe.write_text('[policy]\npath = "models/SmolLM2"\n' + recipe.read_text().replace("[policy]", "[policy_shape]"))
    text = report.build(run_dir).read_text()
    assert "from models/SmolLM2" in text
    assert "a new policy" not in text


def test_no_secret_is_on_the_page(run_dir: Path) -> None:
    with (run_dir / "recipe.toml").open("a") as file:
        file.write(f'\n[judge]\napi_key = "{KEY}"\npassword = "hunter22"\nother = {{ env = "JUDGE_KEY" }}\n')
    change(run_dir / "manifest.json", '"command": "', f'"command": "rlreason run --judge.api_key={KEY} ')
    path = next(run_dir.glob("stages/*-grpo/rollouts.jsonl"))
    row = json.loads(path.read_text().splitlines()[0]) | {"detail": f"HTTP 401: {KEY} is not valid"}
    path.write_text(json.dumps(row) + "\n")
    text = report.build(run_dir).read_text()
    assert KEY not in text
    assert "hunter22" not in text
    assert "JUDGE_KEY" in text
    assert "HTTP 401: ***" in text


def test_gpu_hours(run_dir: Path) -> None:
    assert "GPU-hours" not in report.build(run_dir).read_text()
    manifest = json.loads((run_dir / "manifest.json").read_text())
    manifest["hardware"]["gpus"] = ["H100"] * 8
    manifest["totals"]["seconds"] = 7200
    for stage in manifest["stages"]:
        stage["seconds"] = 7200 / len(manifest["stages"])
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    assert page.gpu_hours(read_run(run_dir)) == "16.00"


def test_two_runs_on_one_page(fake: ModuleType, run_dir: Path, tmp_path: Path) -> None:
    other = fake.write_fake_run(tmp_path / "other", "done", 100)
    change(other / "recipe.toml", "steps = 70", "steps = 80")
    (path,) = (other / "eval").glob("*grpo.json")
    row: dict[str, Any] = json.loads(path.read_text())
    row["accuracy"] = {"value": 0.5, "low": 0.45, "high": 0.55, "count": 500}
    path.write_text(json.dumps(row))
    out = report.build_comparison(run_dir, other, tmp_path / "deep" / "two.html")
    first, second = read_run(run_dir), read_run(other)
    assert compare.differences(first, second) == [("stage.grpo.steps", "70", "80")]
    pair = next(one for one in compare.pairs(first, second) if one.model == "grpo")
    assert pair.first is not None
    assert pair.gain is not None
    assert pair.gain.value == pytest.approx(0.5 - pair.first.accuracy.value)
    assert pair.gain.high < 0
    text = out.read_text()
    assert f"{os.fspath(run_dir)}" in text
    assert "stage.grpo.steps" in text
    assert [stage["name"] for stage in compare.stages(first, second)] == [
        "cold_start",
        "grpo",
        "traces",
        "student",
        "student_control",
    ]


def test_a_comparison_says_what_is_wrong(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"manifest\.json is missing"):
        report.build_comparison(run_dir, tmp_path, tmp_path / "x.html")
    with pytest.raises(UsageError, match="is a folder"):
        report.build_comparison(run_dir, run_dir, tmp_path)

"""The command line as a user meets it: exit codes and one-line messages, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def rlreason(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlreason", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write_rows(path: Path, rows: list[str]) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


ROWS = [json.dumps({"id": str(i), "prompt": f"{i}+1=", "answer": str(i + 1), "solution": "easy"}) for i in range(30)]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["stage.grpo.smaples_per_problem=8"], ["smaples_per_problem", "did you mean 'samples_per_problem'"]),
        (["data.train=nowhere.jsonl", "data.heldout=nowhere.jsonl"], ["nowhere.jsonl"]),
        (["data.train=broken.jsonl", "data.heldout=broken.jsonl"], ["broken.jsonl", "17"]),
        (["data.verifier=mathh"], ["'mathh'", "did you mean 'math'"]),
        (["stage.grpo.samples_per_problem=1"], ["samples_per_problem = 1", "at least 2"]),
        (["stage.grpo.objective=gpso"], ["stage.grpo.objective", "did you mean 'gspo'", "reinforce_pp"]),
        (["stage.grpo.objective.clip_hgh=0.3"], ["stage.grpo.objective.clip_hgh", "did you mean 'clip_high'"]),
        (["stage.grpo.objective.ratio=on_policy"], ["stage.grpo.objective", "can never act"]),
    ],
)
def test_bad_input_is_one_line_and_exit_2_before_any_model(
    tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    write_rows(tmp_path / "broken.jsonl", [*ROWS[:16], '{"id": "16", "prompt": ', *ROWS[17:]])
    write_rows(tmp_path / "fine.jsonl", ROWS)
    files = ["data.train=fine.jsonl", "data.heldout=fine.jsonl", "data.columns.solution=solution"]
    arguments = [*files, "data.answer_after=", 'data.columns.answer="answer"', *overrides]
    done = rlreason("run", "gsm8k_tiny", *arguments, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert not (tmp_path / "out").exists()


def test_unknown_recipe_and_command(tmp_path: Path) -> None:
    done = rlreason("run", "quikstart", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'quickstart'" in done.stderr
    assert rlreason("trian", cwd=tmp_path).returncode == 2
    assert rlreason("run", "quickstart", "--resume", cwd=tmp_path).returncode == 2


def test_score_honours_its_contract(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "response": "<think>6*7</think><answer>42</answer>", "reference": "42"},
        {"id": 2, "response": "so \\boxed{\\frac{1}{2}}", "reference": ["0.5", "1/2"]},
        {"id": "c", "response": "<answer>41</answer>", "reference": "42"},
        {"id": "d", "response": "I do not know", "reference": "42"},
    ]
    write_rows(tmp_path / "in.jsonl", [json.dumps(row) for row in rows])
    done = rlreason("score", "--verifier", "math", "--input", "in.jsonl", "--output", "out.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in out] == ["a", 2, "c", "d"]
    assert [row["verdict"] for row in out] == ["correct", "correct", "wrong", "unparsed"]
    assert [row["score"] for row in out] == [1.0, 1.0, 0.0, 0.0]
    assert out[0]["extracted"] == "42"
    assert set(out[0]) == {"id", "verdict", "score", "extracted", "seconds", "detail"}


def test_score_names_the_bad_row_and_the_verifier(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ['{"id": 1, "response": "x", "reference": "1"}', "{"])
    done = rlreason("score", "--verifier", "math", "--input", "in.jsonl", "--output", "o.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "in.jsonl" in done.stderr
    assert "2" in done.stderr
    done = rlreason("score", "--verifier", "maths", "--input", "in.jsonl", "--output", "o.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'math'" in done.stderr
    assert not (tmp_path / "o.jsonl").exists()


def test_recipes_plan_and_doctor(tmp_path: Path) -> None:
    assert "quickstart" in rlreason("recipes", cwd=tmp_path).stdout
    assert rlreason("recipes", "copy", "quickstart", "mine.toml", cwd=tmp_path).returncode == 0
    plan = rlreason("plan", "mine.toml", "seed=5", cwd=tmp_path)
    assert "seed 5" in plan.stdout
    assert "clip(ρ" in plan.stdout
    assert rlreason("recipes", "copy", "quickstart", "mine.toml", cwd=tmp_path).returncode == 2
    assert "Python" in rlreason("doctor", cwd=tmp_path).stdout


def test_report_of_what_is_no_run(tmp_path: Path) -> None:
    done = rlreason("report", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 2
    assert "manifest.json" in done.stderr

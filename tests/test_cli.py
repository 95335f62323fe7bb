"""The command line as a user meets it: exit codes and one-line messages, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}


def rlreason(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlreason", *arguments],
        cwd=cwd,
        env=ENVIRONMENT | environment,
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


def test_version_help_and_completion(tmp_path: Path) -> None:
    from rlreason import __version__

    assert rlreason("--version", cwd=tmp_path).stdout == f"rlreason {__version__}\n"
    assert "--install-completion" in rlreason("--help", cwd=tmp_path).stdout
    shown = rlreason("eval", "--help", cwd=tmp_path).stdout
    for name in ("heldout", "arithmetic", "countdown", "gsm8k", "math500"):
        assert name in shown
        assert name in rlreason("suites", cwd=tmp_path).stdout


def test_a_recipe_goes_through_a_pipe_as_it_is(tmp_path: Path) -> None:
    """It was wrapped at the terminal's 80 columns, which is invalid TOML."""
    done = rlreason("recipes", "show", "quickstart", cwd=tmp_path, COLUMNS="40")
    assert done.stdout == (ROOT / "recipes" / "quickstart" / "recipe.toml").read_text(encoding="utf-8")
    assert rlreason("recipes", "list", cwd=tmp_path, COLUMNS="40").stdout == rlreason("recipes", cwd=tmp_path).stdout


def test_names_are_no_markup(tmp_path: Path) -> None:
    done = rlreason("recipes", "copy", "quickstart", "weird [name].toml", cwd=tmp_path)
    assert done.stdout == "wrote weird [name].toml: rlreason run 'weird [name].toml'\n"


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "ascii"])
def test_a_terminal_without_our_characters_ends_no_command(tmp_path: Path, encoding: str) -> None:
    code = "from rlreason.terminal import ends, say; ends(lambda: say('\u2713 done'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"? done\n")


def test_a_reader_that_goes_away_ends_no_work(tmp_path: Path) -> None:
    """As `rlreason run … | head -1`: the work goes on to its end."""
    code = (
        "from rlreason.terminal import ends, say\n"
        "def work():\n"
        "    for n in range(20000): say(f'line {n}')\n"
        "    open('done', 'w').close()\n"
        "ends(work)"
    )
    done = subprocess.run(
        f'{sys.executable} -c "$CODE" | head -1; exit ${{PIPESTATUS[0]}}',
        shell=True,
        executable="/bin/bash",
        cwd=tmp_path,
        env=ENVIRONMENT | {"CODE": code},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "line 0\n", "")
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "quickstart", "--out", "afile"], "afile"),
        (["run", "quickstart", "--out", "afile/inside"], "afile"),
        (["run", "quickstart", "--out", "/proc/foo"], "/proc/foo"),
        (["recipes", "copy", "quickstart", "nowhere/mine.toml"], "nowhere/mine.toml"),
        (["report", "afile"], "afile"),
        (["plan", "."], "no recipe '.'"),
    ],
)
def test_paths_that_cannot_be_are_exit_2_in_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "afile").write_text("x")
    done = rlreason(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be played by root only")
def test_no_right_to_write_is_exit_2(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    code = (
        "import os, sys; os.setgid(65534); os.setuid(65534); sys.argv = ['rlreason', 'run', 'quickstart'];"
        "from rlreason.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    if "Permission denied" not in done.stderr:
        pytest.skip(f"this checkout can't be read by another user: {done.stderr[-200:]}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: runs")


def test_ctrl_c_says_something(tmp_path: Path) -> None:
    """Also outside a run: typer takes KeyboardInterrupt for itself and says nothing."""
    code = (
        "import os, signal, typer; from rlreason.terminal import ends\n"
        "app = typer.Typer()\n"
        "@app.command()\n"
        "def work(): os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "ends(app)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "interrupted by SIGINT\n")


def test_the_base_install_says_what_eval_needs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\nfind = util.find_spec\n"
        "lost = ('torch', 'transformers')\n"
        "util.find_spec = lambda name, package=None: None if name in lost else find(name, package)\n"
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = rlreason("eval", "model", "--suite", "arithmetic", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: evaluating needs torch, transformers: pip install 'rlreason[train]'\n"


def test_keys_and_schema(tmp_path: Path) -> None:
    assert "max_rows: whole number" in rlreason("keys", "sampler", cwd=tmp_path).stdout
    assert rlreason("keys", "samplr", cwd=tmp_path).returncode == 2
    assert json.loads(rlreason("schema", cwd=tmp_path, COLUMNS="40").stdout)["title"] == "rlreason recipe"

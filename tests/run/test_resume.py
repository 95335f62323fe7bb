"""`rlreason resume` as a user meets it, in processes of its own: one small finished run, copied, moved and changed."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from rlreason import job

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "tiny"
[data]
train = "sums.jsonl"
heldout = "sums.jsonl"
allow_overlap = true
[reward]
accuracy = 1.0
"judge.py:judge" = 0.1
[policy]
model_type = "qwen3"
tokenizer = { kind = "bpe", vocab_size = 300 }
[policy.model]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
head_dim = 8
[cluster]
threads = 1
[[stage]]
kind = "sft"
name = "cold"
steps = 3
batch_size = 4
[[stage]]
kind = "grpo"
name = "rl"
steps = 2
problems_per_step = 2
samples_per_problem = 2
max_tokens = 8
"""
ROWS = [{"id": str(i), "prompt": f"{i}+1=", "answer": str(i + 1), "solution": "easy"} for i in range(30)]
#: Tells completions apart, so that there is something to learn from them.
JUDGE = "def judge(problem, completion):\n    return sum(map(ord, completion.text)) % 7 / 7\n"
LONG = "stage.cold.steps=100000"


@dataclass(frozen=True)
class Project:
    """A recipe with its files, and its run."""

    folder: Path
    run: Path

    def manifest(self) -> dict[str, object]:
        content = json.loads((self.run / "manifest.json").read_text())
        assert isinstance(content, dict)
        return content


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}


def rlreason(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlreason", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def write_project(folder: Path) -> None:
    folder.mkdir()
    (folder / "tiny.toml").write_text(RECIPE)
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "judge.py").write_text(JUDGE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("resume") / "project"
    write_project(folder)
    done = rlreason("run", "tiny.toml", "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return Project(folder, folder / "run")


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """The finished run in a folder of this test's; its project stays where it was."""
    shutil.copytree(finished.run, tmp_path / "copy")
    return Project(finished.folder, tmp_path / "copy")


def metrics(run: Path, stage: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "stages" / stage / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_is_refused_anew_and_gone_on_with_by_its_recipe(finished: Project) -> None:
    done = rlreason("run", "tiny.toml", "--out", "run", cwd=finished.folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "run is not empty: add --resume" in done.stderr
    before = (finished.run / "recipe.toml").read_text()
    done = rlreason("run", "tiny.toml", "--resume", "--out", "run", cwd=finished.folder)
    assert done.returncode == 0, done.stderr
    assert "cold" not in done.stdout
    assert (finished.run / "recipe.toml").read_text() == before
    assert finished.manifest()["changes"] == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.cold.steps=2", "stage.cold.steps = 3, not 2: a stage may be given more steps, not fewer"),
        ("seed=7", "seed = 0, not 7"),
        ("data.train=arithmetic", "data.train ="),
    ],
)
def test_what_would_change_results_is_one_line_and_exit_2(finished: Project, override: str, words: str) -> None:
    before = (finished.run / "manifest.json").read_bytes()
    done = rlreason("resume", finished.run, override, cwd=finished.folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert words in done.stderr
    assert (finished.run / "manifest.json").read_bytes() == before


def test_moved_without_its_project_and_given_more_steps(tmp_path: Path) -> None:
    write_project(tmp_path / "project")
    done = rlreason("run", "project/tiny.toml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "project")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "run").rename(tmp_path / "far" / "moved")
    first = metrics(tmp_path / "far" / "moved", "01-cold")
    done = rlreason("resume", "../moved", "stage.cold.steps=5", cwd=tmp_path / "far" / "away")
    assert done.returncode == 0, done.stderr
    assert "cold: going on from its state of step 3" in done.stdout
    assert "done anew, as they descend from cold: rl" in done.stdout
    project = Project(tmp_path, tmp_path / "far" / "moved")
    again = metrics(project.run, "01-cold")
    assert [line["step"] for line in again] == [0, 1, 2, 3, 4]
    assert again[:3] == first
    rl = metrics(project.run, "02-rl")
    assert [line["step"] for line in rl] == [0, 1]
    assert all(0.0 <= float(str(line["reward/judge.py:judge"])) <= 1.0 for line in rl)
    changes = project.manifest()["changes"]
    assert isinstance(changes, list)
    assert [change["what"] for change in changes] == ["stage.cold.steps: 3 -> 5"]
    assert "steps = 5" in (project.run / "recipe.toml").read_text()
    # From its copies the same recipe begins anew, too.
    plan = rlreason("plan", "../moved/recipe.toml", cwd=tmp_path / "far" / "away")
    assert plan.returncode == 0, plan.stderr
    assert "30 problems" in plan.stdout


@pytest.mark.parametrize(
    ("file", "addition"), [("sums.jsonl", "\n"), pytest.param("judge.py", "# stricter\n", marks=pytest.mark.slow)]
)
def test_changed_data_and_reward_code(finished: Project, copied: Project, file: str, addition: str) -> None:
    path = finished.folder / file
    before = path.read_bytes()
    try:
        path.write_bytes(before + addition.encode())
        done = rlreason("resume", copied.run, cwd=copied.run.parent)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: {path} changed since")
        assert len(re.findall(r"\b[0-9a-f]{64}\b", done.stderr)) == 2
        done = rlreason("resume", copied.run, "--accept-changes", cwd=copied.run.parent)
        assert done.returncode == 0, done.stderr
        changes = copied.manifest()["changes"]
        assert isinstance(changes, list)
        assert str(path) in changes[0]["what"]
        # It is as it is now that it must be from here on.
        assert rlreason("resume", copied.run, cwd=copied.run.parent).returncode == 0
    finally:
        path.write_bytes(before)


class Running:
    """A long run in the background, waited for until it has saved a state."""

    def __init__(self, project: Path) -> None:
        command = [sys.executable, "-m", "rlreason", "run", "tiny.toml", "--out", "run", LONG, "trainer.save_every=5"]
        self.run = project / "run"
        self.process = subprocess.Popen(
            command, cwd=project, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while not list(self.run.glob("stages/01-cold/state/step-*")) and self.process.poll() is None:
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        error = self.process.communicate()[1]
        return self.process.returncode, error


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_second_process_is_refused_and_a_signal_saves(tmp_path: Path, number: signal.Signals, code: int) -> None:
    write_project(tmp_path / "project")
    running = Running(tmp_path / "project")
    try:
        for command in ("resume run", "run tiny.toml --out run", "run tiny.toml --resume --out run"):
            refused = rlreason(*command.split(), cwd=tmp_path / "project")
            assert refused.returncode == 2
            assert f"run is in use by process {running.process.pid} on " in refused.stderr
    finally:
        returned, error = running.end(number)
    assert returned == code, error
    expected = f"interrupted by {number.name} in stage cold; its state is saved: go on with `rlreason resume run`"
    assert error.strip().splitlines()[-1] == expected
    manifest = json.loads((running.run / "manifest.json").read_text())
    assert manifest["stages"][0]["status"] == "interrupted"
    assert (running.run / "report.html").is_file()
    lines = metrics(running.run, "01-cold")
    states = sorted(path.name for path in (running.run / "stages" / "01-cold" / "state").iterdir())
    assert int(states[-1].removeprefix("step-")) <= len(lines)
    assert not list(running.run.rglob(".*.tmp"))


def test_a_failure_leaves_its_traceback(tmp_path: Path) -> None:
    write_project(tmp_path / "project")
    (tmp_path / "project" / "run").mkdir()
    done = rlreason(
        "run", "tiny.toml", "--out", "run", "stage.cold.optimizer.betas=[2.0,0.9]", cwd=tmp_path / "project"
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("failed: ")
    assert last.endswith("(traceback in run/error.log; go on with `rlreason resume run`)")
    assert "Traceback (most recent call last)" in (tmp_path / "project" / "run" / "error.log").read_text()


def test_an_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    done = rlreason("run", "quickstart", "--out", "file", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "file is a file: --out names a folder" in done.stderr


def test_resume_of_what_is_no_run(tmp_path: Path) -> None:
    done = rlreason("resume", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "is no run directory: can't read manifest.json" in done.stderr


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 5, 4, 10, 0, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "datetime", Clock)
    names = [job.new_folder("tiny").name for _ in range(3)]
    assert names == ["tiny-20260504-100000", "tiny-20260504-100000-2", "tiny-20260504-100000-3"]

"""Real trackers across two processes of one run, and W&B with its service killed in the middle."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from rlreason.run import manifest, sinks
from rlreason.run.directory import RunDirectory, now
from rlreason.run.manifest import StageEntry
from rlreason.run.sinks import TrackedRun, Trackers
from rlreason.run.trackers import Wandb
from rlreason.types import StepReport

RECIPE = """
name = "tiny"
[policy]
model_type = "qwen3"
dtype = "float32"
[policy.model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
max_position_embeddings = 128
[data]
train = "arithmetic"
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
steps = 3
batch_size = 4
[logging]
trackers = ["wandb", "trackio"]
"""


def rlreason(tmp_path: Path, *arguments: str) -> str:
    environment = {**os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    command = [sys.executable, "-m", "rlreason", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_resumed_run_goes_on_under_the_same_id_and_name(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("trackio")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    out = tmp_path / "out"
    said = rlreason(tmp_path, "run", str(tmp_path / "recipe.toml"), "--out", str(out))
    said += rlreason(tmp_path, "resume", str(out), "stage.cold.steps=5")
    assert "no more of this run" not in said
    (first, second) = sorted(out.glob("wandb/offline-run-*/run-*.wandb"))
    assert first.name == second.name == f"run-{json.loads((out / 'trackers.json').read_text())['wandb']}.wandb"
    (store,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(store) as rows:
        found = [
            (name, step)
            for name, step, text in rows.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step")
            if "cold/loss" in json.loads(text)
        ]
    assert found == [("out", step) for step in range(5)]


@pytest.fixture
def left_behind() -> Iterator[None]:
    """Its service is gone: without this, W&B writes a traceback when the tests end."""
    yield
    import wandb

    with contextlib.suppress(ConnectionError):
        wandb.teardown()


def test_a_killed_service_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_behind: None) -> None:
    """And no import: W&B has its service note those of some packages."""
    noted = "catboost"
    (tmp_path / f"{noted}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 5.0)
    record = manifest.fresh("rlreason run x", seed=0, created=now(), gpus=[])
    record.stages = [StageEntry(name="rl", kind="grpo")]
    run = RunDirectory.create(tmp_path / "run", "", record)
    said: list[str] = []
    about = TrackedRun(project="p", name="n", root=run.root, folder=None, entity=None, config={}, resumed=False)
    told = Trackers.start({"wandb": Wandb()}, about, said.append)

    def steps(first: int, last: int) -> None:
        for step in range(first, last):
            report = StepReport(stage="rl", kind="grpo", step=step, policy_version=step, scalars={})
            told.step(run, report, {"loss": 1.0})
        told.stage_done(run, "rl")

    monkeypatch.setattr(sinks, "FLUSH_SECONDS", 60.0)
    steps(0, 3)
    assert said == []
    services = [one for one in psutil.Process().children(recursive=True) if "wandb" in " ".join(one.cmdline())]
    assert services
    for one in services:
        one.kill()
    monkeypatch.setattr(sinks, "FLUSH_SECONDS", 5.0)
    began = time.monotonic()
    steps(3, 50)
    told.close(run, failed=False)
    assert len(said) == 1, said
    assert said[0].startswith("warning: wandb gets no more of this run")
    importlib.import_module(noted)
    monkeypatch.delitem(sys.modules, noted)
    assert time.monotonic() - began < 60, "far beyond what stages and runs wait"

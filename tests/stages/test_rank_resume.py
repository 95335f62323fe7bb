"""Whole runs of two ranks that broadcast their weights to rollout workers: a killed worker is replaced, a killed rank
ends the run, which goes on bit for bit on two ranks, and says so where it goes on without."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")

from rlreason.cli import main  # noqa: E402
from rlreason.sampler.handles import Call, RayHandle  # noqa: E402
from rlreason.trainer.protocol import StepStats  # noqa: E402
from rlreason.trainer.ray_trainer import RayTrainer  # noqa: E402

KILL = Path(__file__).parents[2] / "bench" / "resume" / "kill.py"
RECIPE = """
name = "killed"
seed = 3
[policy]
model_type = "qwen3_moe"
[policy.model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 32
moe_intermediate_size = 32
num_experts = 5
num_experts_per_tok = 2
max_position_embeddings = 128
initializer_range = 0.2
[trainer]
ranks = 2
save_every = 1
[data]
train = "arithmetic"
[reward]
accuracy = 1.0
overlong = { weight = 0.5, max_tokens = 12, buffer = 8 }
[sampler]
engine = "transformers"
transport = "collective"
[cluster]
kind = "ray"
rollout_workers = 1
cpus_per_worker = 0.5
threads = 1
[[stage]]
kind = "grpo"
name = "learn"
steps = 4
problems_per_step = 4
samples_per_problem = 4
max_tokens = 12
optimizer = { lr = 1e-3 }
[[stage]]
kind = "grpo"
name = "ahead"
model = "learn"
steps = 2
staleness = 1
problems_per_step = 4
samples_per_problem = 4
max_tokens = 12
optimizer = { lr = 1e-3 }
"""
#: The step whose drawing loses a worker, and the one that loses a rank when it changes the weights.
WORKER_KILLED_AT, RANK_KILLED_AT = 1, 2


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[None]:
    """For all runs, each of which ends what it started in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        ray.init("local", num_cpus=4, object_store_memory=128 << 20, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@dataclass(slots=True)
class Terminal:
    """The command line in this process, which has the one Ray."""

    capsys: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def __call__(self, *arguments: object) -> tuple[int, str]:
        """(exit code, what was on the screen); no actor of the run is left."""
        self.patch.setattr("sys.argv", ["rlreason", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        deadline = time.monotonic() + 30
        while actors() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert actors() == []
        assert isinstance(ended.value.code, int)
        return ended.value.code, " ".join("".join(self.capsys.readouterr()).split())


@pytest.fixture
def rlreason(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(capsys, monkeypatch)


def actors() -> list[str]:
    """Ranks and workers that run now."""
    titles = []
    for child in psutil.Process().children(recursive=True):
        try:
            titles.append(" ".join(child.cmdline()))
        except psutil.Error:
            continue
    return [one for one in titles if one.startswith(("ray::Rank", "ray::RolloutWorker"))]


def kill_a_worker(patch: pytest.MonkeyPatch) -> list[int]:
    """Its process, once it has been killed: as it begins to draw for the step."""
    call, drawings, killed = RayHandle.call, 0, []

    def deadly(self: RayHandle, method: str, *arguments: object) -> Call:
        nonlocal drawings
        found = call(self, method, *arguments)
        drawings += method == "advance" and bool(arguments[0])
        if drawings > WORKER_KILLED_AT and not killed:
            killed.append(ray.get(self.process).number)
            os.kill(killed[0], signal.SIGKILL)
        return found

    patch.setattr(RayHandle, "call", deadly)
    return killed


def kill_a_rank(patch: pytest.MonkeyPatch) -> None:
    step = RayTrainer.step

    def deadly(self: RayTrainer, number: int) -> StepStats:
        if number == RANK_KILLED_AT:
            os.kill(self._ranks.homes[1].process.number, signal.SIGKILL)
        return step(self, number)

    patch.setattr(RayTrainer, "step", deadly)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "stages" / "01-learn" / "checkpoint" / "model.safetensors")


def rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    lines = (folder / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def changes(folder: Path) -> list[str]:
    return [one["what"] for one in json.loads((folder / "manifest.json").read_text())["changes"]]


def differing(one: Path, other: Path) -> list[str]:
    """Keys of metrics and rollouts that are not equal bit for bit; clocks and the count of killed workers aside."""
    spec = importlib.util.spec_from_file_location("kill", KILL)
    assert spec is not None
    assert spec.loader is not None
    kill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill)
    found: list[str] = []
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        found += kill._differing(*(kill.lines(folder / "stages" / "01-learn" / name) for folder in (one, other)))
    return found


def test_a_killed_worker_and_a_killed_rank_cost_nothing(
    rlreason: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    whole, killed, alone = (tmp_path / name for name in ("whole", "killed", "alone"))
    with monkeypatch.context() as patch:
        worker = kill_a_worker(patch)
        code, said = rlreason("run", recipe, "--out", whole)
        assert (code, len(worker)) == (0, 1), said
    assert [row["workers/replaced"] for row in rows(whole, "01-learn")] == [0, 1, 0, 0]
    for stage, steps in (("01-learn", 4), ("02-ahead", 2)):
        assert [row["step"] for row in rows(whole, stage)] == list(range(steps))
        proved = [row["delivery/canary"] for row in rows(whole, stage) if "delivery/canary" in row]
        assert proved
        assert max(proved) < 5e-5

    with monkeypatch.context() as patch:
        kill_a_rank(patch)
        code, said = rlreason("run", recipe, "--out", killed)
        assert code == 1
        assert "trainer rank 1: its process died" in said, said
    shutil.copytree(killed, alone)
    code, said = rlreason("resume", killed)
    assert code == 0, said
    assert f"going on from its state of step {RANK_KILLED_AT}" in said
    assert "rounded in another order" not in said
    assert changes(killed) == []
    expected, found = weights(whole), weights(killed)
    assert all(torch.equal(one, found[name]) for name, one in expected.items())
    assert differing(whole, killed) == []

    code, said = rlreason("resume", alone, "trainer.ranks=0")
    assert code == 0, said
    expected_line = "learn: its state of step 2 was written by 2 ranks and goes on with one process (trainer.ranks = 0)"
    assert expected_line in said
    assert any(one.startswith(expected_line) for one in changes(alone))
    other = weights(alone)
    apart = max(float((one - other[name]).abs().max()) for name, one in expected.items())
    assert 0 < apart < 1e-3, "two of AdamW's steps of 1e-3, turned by the rounding of small gradients"

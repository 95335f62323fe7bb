"""The script of docs/cluster_slurm.md as it is, with `srun` and `scontrol` that do their part on one host."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="Ray is not installed")

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "cluster" / "slurm.sbatch"
RECIPE = """
name = "job"
seed = 3
[policy]
model_type = "qwen3"
model = { hidden_size = 32, num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 1, head_dim = 16, \
intermediate_size = 32, max_position_embeddings = 64 }
[data]
train = "arithmetic"
[sampler]
engine = "transformers"
[cluster]
kind = "ray"
rollout_workers = 2
spread = true
threads = 1
[trainer]
save_every = 0
[[stage]]
kind = "grpo"
name = "grpo"
steps = 4
problems_per_step = 2
samples_per_problem = 2
max_tokens = 8
optimizer = { lr = 1e-3 }
"""
#: Node names -> nothing; a Ray of each "node" has one CPU, so that two workers need both.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
[[ $1 == ray ]] && set -- "$@" --num-cpus=1 --object-store-memory=100000000 --disable-usage-stats
[[ "$*" == *--head* ]] && set -- "$@" --include-dashboard=false
exec "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in
show) printf 'node-1\\nnode-2\\n' ;;
requeue) echo "$2" >> "$REQUEUED" ;;
esac
"""


def test_the_script_is_a_script() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    text = SCRIPT.read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == "1"  # one Ray a node
    assert asked["signal"].startswith("B:TERM@")  # the script alone: it ends the run, and Ray after it
    assert re.search(r"^#SBATCH --requeue$", text, re.MULTILINE)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Ray's own; its name must be short, as Ray puts sockets into it."""
    path = Path(tempfile.mkdtemp(prefix="rl"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.slow
def test_a_job_is_interrupted_requeued_and_gone_on_with(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    out, requeued = tmp_path / "runs" / "job", tmp_path / "requeued"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),  # its token is made there
        "RAY_TMPDIR": str(folder),
        "SLURM_JOB_NAME": "job",
        "SLURM_JOB_ID": str(1000 + os.getpid() % 8000),
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "RECIPE": str(tmp_path / "recipe.toml"),
        "RUN": str(out),
        "REQUEUED": str(requeued),
        "JOB_MARK": str(tmp_path),
    }

    def job() -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", SCRIPT], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    first = job()
    metrics = out / "stages" / "01-grpo" / "metrics.jsonl"
    while not metrics.exists() or not metrics.read_text():  # a step is done
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 143, said
    assert requeued.read_text().split() == [environment["SLURM_JOB_ID"]]
    assert (tmp_path / ".ray" / "auth_token").stat().st_size
    assert left(environment["JOB_MARK"]) == []
    second = job()
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert requeued.read_text().split() == [environment["SLURM_JOB_ID"]]  # not once more
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [0, 1, 2, 3]
    assert json.loads((out / "manifest.json").read_text())["stages"][0]["status"] == "done"
    assert left(environment["JOB_MARK"]) == []


def left(mark: str) -> list[str]:
    """Processes of the job that are still there a while after its end."""
    deadline = time.monotonic() + 30
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("JOB_MARK") == mark:
                    found.append(process.name())
            except psutil.Error:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)

"""The RayJob of docs/cluster_kuberay.md: it is YAML, its counts agree, and rlreason takes the commands in it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from rlreason.cli import app
from rlreason.cluster.plan import plan_places
from rlreason.config import load
from rlreason.config.load import locate

FILE = Path(__file__).parents[2] / "docs" / "examples" / "cluster" / "rayjob.yaml"


@pytest.fixture
def spec() -> dict[str, Any]:
    found = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayJob")
    inner: dict[str, Any] = found["spec"]
    return inner


def commands(spec: dict[str, Any]) -> list[list[str]]:
    """What the entry point's shell runs."""
    shell, flag, script = shlex.split(spec["entrypoint"])
    assert (shell, flag) == ("bash", "-c")
    subprocess.run(["bash", "-n", "-c", script], check=True)
    return [shlex.split(one) for one in re.findall(r"exec (rlreason [^;]+);", script)]


def test_the_entry_point_is_a_run_that_may_be_begun_or_gone_on_with(spec: dict[str, Any]) -> None:
    resume, run = commands(spec)
    assert resume[:2] == ["rlreason", "resume"]
    out = run[run.index("--out") + 1]
    assert resume[2] == out
    assert f"[ -f {out}/manifest.json ]" in spec["entrypoint"]
    mounts = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert Path(out).parent.as_posix() in [one["mountPath"] for one in mounts]


def test_the_pods_are_as_many_as_the_run_needs(spec: dict[str, Any]) -> None:
    import ray

    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["enableInTreeAutoscaling"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    of_a_pod = int(container["resources"]["limits"]["nvidia.com/gpu"])
    _, run = commands(spec)
    overrides = tuple(one for one in run[3:] if "=" in one)
    plan = plan_places(load(locate(run[2]), overrides), gpus=0.0, cores=16)  # as it is before a pod is up
    wanted = sum(one.count * one.bundle["GPU"] for one in plan.needs)
    assert wanted == group["maxReplicas"] * of_a_pod == 64
    assert all(of_a_pod % one.bundle["GPU"] == 0 for one in plan.needs)


def test_the_run_is_one_that_can_be_planned(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        first = 0 if part == "train" else 500
        rows = [{"prompt": f"{i}?", "answer": str(i), "solution": f"#### {i}"} for i in range(first, first + 400)]
        (tmp_path / f"gsm8k_{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, run = commands(spec)
    done = CliRunner().invoke(app, ["plan", run[2], *(one for one in run[3:] if "=" in one)])
    assert done.exit_code == 0, done.output
    assert "12 workers" in done.output


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Its name must be short: Ray puts sockets into it."""
    path = Path(tempfile.mkdtemp(prefix="rl"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.slow
def test_a_run_is_handed_in_as_a_job(ray_folder: Path, tmp_path: Path) -> None:
    """`ray job submit` against a Ray on this host: joined by itself, logs and names as anywhere, exit code and all."""
    pytest.importorskip("aiohttp_cors", reason="ray job submit needs ray[default]")
    from test_slurm import RECIPE

    (tmp_path / "recipe.toml").write_text(RECIPE)
    programs = Path(sys.executable).parent
    environment = {
        **{key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"},
        "RAY_TMPDIR": str(ray_folder),
        "RAY_AUTH_MODE": "disabled",
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    options = "--port=0 --num-cpus=3 --dashboard-port=18265 --disable-usage-stats --object-store-memory=100000000"
    head = subprocess.Popen(
        [programs / "ray", "start", "--head", "--block", *options.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    out = tmp_path / "out"
    run = ["rlreason", "run", str(tmp_path / "recipe.toml"), "--out", str(out)]
    submit = [programs / "ray", "job", "submit", "--address", "http://127.0.0.1:18265", "--", *run]
    try:
        for _ in range(60):
            done = subprocess.run(submit, env=environment, capture_output=True, text=True, check=False)
            if "Failed to connect" not in done.stderr + done.stdout:
                break
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "succeeded" in done.stdout + done.stderr
        assert [one["status"] for one in json.loads((out / "manifest.json").read_text())["stages"]] == ["done"]
        assert {path.name for path in (out / "logs").iterdir()} == {"rollout-worker-0.log", "rollout-worker-1.log"}
        failing = [*submit[:-3], "no-such-recipe"]
        failed = subprocess.run(failing, env=environment, capture_output=True, text=True, check=False)
        assert failed.returncode == 1
    finally:
        head.terminate()
        head.wait(60)

"""The Triton kernels without a GPU: run in Triton's interpreter against the torch path, and compiled for Hopper.

The tests themselves lie in ``kernels/``. ``TRITON_INTERPRET`` is read when Triton is imported, so each file runs in a
process of its own; on a machine with a GPU ``pytest tests/objective/kernels/<file>`` runs it there, compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FILES = ("group_advantage.py", "policy_loss.py", "linear_head.py", "dispatched.py", "stage_path.py")
KERNELS = {"one_launch_kernel", "measure_kernel", "finish_kernel", "_token_kernel", "_reduce_kernel", "row_kernel"}

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed (extra dev; its wheels are for Linux)"
)


def start(arguments: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    paths = [str(HERE.parents[1]), str(HERE), str(HERE / "kernels")]
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment},
        )


def pytest_of(file: str, *more: str) -> list[str]:
    return ["-m", "pytest", "-q", "-c", os.devnull, "--import-mode=importlib", "-p", "no:cacheprovider",
            str(HERE / "kernels" / file), *more]  # fmt: skip


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def interpreted(logs: Path) -> Iterator[Mapping[str, subprocess.Popen[bytes]]]:
    """All files at once: they share nothing."""
    running = {file: start(pytest_of(file), logs / file, TRITON_INTERPRET="1") for file in FILES}
    yield running
    for process in running.values():
        process.kill()
        process.wait()


@pytest.mark.parametrize("file", FILES)
def test_as_the_torch_path_in_the_interpreter(
    file: str, interpreted: Mapping[str, subprocess.Popen[bytes]], logs: Path
) -> None:
    code = interpreted[file].wait(timeout=900)
    said = (logs / file).read_text(encoding="utf-8")
    assert code == 0, said
    assert " passed" in said
    assert "skipped" not in said


def test_every_kernel_compiles_for_hopper(logs: Path) -> None:
    log = logs / "compiled"
    process = start([str(HERE / "kernels" / "compile_for_hopper.py")], log, TRITON_CACHE_DIR=str(logs / "cache"))
    code = process.wait(timeout=600)
    said = log.read_text(encoding="utf-8")
    assert code == 0, said
    builds = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert {build["kernel"] for build in builds} == KERNELS
    assert sum(build["kernel"] == "row_kernel" for build in builds) == 4
    for build in builds:
        assert build["target"].startswith(".target sm_90"), build
        assert build["binary_bytes"] > 0
        assert not build["atomics"], build
        assert build["stack"] == 0, build
        assert build["registers"] * build["warps"] * 32 <= 65_536, build
    wide = [build["float64"] for build in builds if build["kernel"] == "_token_kernel"]
    assert wide == [False, False, False, True]  # a float64 number leaks into float32 code in none; the last is float64

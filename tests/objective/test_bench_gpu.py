"""What of bench/gpu/objective.py needs no GPU: it agrees with float64 before it measures, and refuses to guess."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "gpu" / "objective.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=ROOT)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu_is_a_clear_line() -> None:
    done = bench()
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA device here")


def test_too_few_rounds_are_refused() -> None:
    done = bench("--rounds", "3")
    assert done.returncode == 2
    assert "--rounds must be at least 30" in done.stderr


def test_smoke(tmp_path: Path) -> None:
    done = bench("--smoke", "--out", str(tmp_path / "deep" / "result.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "deep" / "result.json").read_text(encoding="utf-8"))
    assert result["smoke"] is True
    assert {table["kernel"] for table in result["tables"]} == set(result["gates"]) == {"K1", "K2", "K3"}
    for table in result["tables"]:
        assert {"torch path", "torch eager"} <= {row["way"] for row in table["ways"]}
        assert all(row["ms_median"] > 0 for row in table["ways"])
    assert all(max(row["distances"]) < 5e-2 for rows in result["gates"].values() for row in rows)
    away = {
        (tuple(table["size"]), row["way"]): max(row["distances"])
        for table in result["tables"]
        if table["kernel"] == "K1"
        for row in table["ways"]
    }
    # Where every score is 10,000 or 10,001, the variance that RL-Kernel takes in one pass cancels; and groups of 2,048
    # are measured as any others.
    assert away[(64, 8, 0), "one pass, float32"] < 1e-4
    assert away[(64, 8, 10_000), "one pass, float32"] > 10.0
    assert away[(64, 8, 10_000), "torch path"] < 1e-6
    assert away[(4096, 2048, 0), "torch path"] < 1e-6


def test_the_gate_has_a_canary() -> None:
    code = (
        "import sys; sys.path.insert(0, 'bench/gpu')\n"
        "import objective, torch\n"
        "from dataclasses import replace\n"
        "kernel = objective.KERNELS[1]\n"
        "off = lambda inputs: tuple(value * 1.1 for value in kernel.exact(inputs))\n"
        "objective.gate(replace(kernel, exact=off), torch.device('cpu'), False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "nothing was measured" in done.stderr

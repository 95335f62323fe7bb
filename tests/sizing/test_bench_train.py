"""What of bench/gpu/train.py needs no GPU: it runs, its memory is what is planned, and its gate can fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
GPU = ROOT / "bench" / "gpu"


def bench(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(GPU / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=ROOT)


def case(shape: str, *, gate: bool) -> str:
    return json.dumps({"shape": shape, "device": "cpu", "seconds": 1, "gate": gate})


def test_a_case_runs_on_a_cpu_with_the_gate_before_it(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "train.json"
    done = bench("train.py", "--shape", "tiny", "--device", "cpu", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert found["gate"]["float32"] < 1e-6
    assert 0 < found["gate"]["bfloat16"] <= 2 * found["gate"]["bfloat16 on the CPU"]
    assert found["planned_bytes"] == pytest.approx(found["peak_bytes"], rel=0.1)
    assert found["tokens"] == 2 * found["micro_batch"]["tokens"]
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / min(found["seconds"]))
    assert "| tiny |" in done.stdout


def test_a_shard_is_measured_as_planned() -> None:
    done = bench("train_case.py", case("tiny-full", gate=False))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["planned"]["gathered"] > 0
    assert found["planned_bytes"] == pytest.approx(found["peak_bytes"], rel=0.1)


def test_the_gate_has_a_canary() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(GPU)!r})\n"
        "import torch, train_case\n"
        "of = train_case.Steps.gradients\n"
        "factors = iter([1.0, 1.001, 1.0, 1.0])\n"  # the second one is the device's, in float32
        "def off(self):\n"
        "    factor = next(factors)\n"
        "    return [factor * one for one in of(self)]\n"
        "train_case.Steps.gradients = off\n"
        "train_case.gate(train_case.SHAPES['7b-full'], torch.device('cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "gradients in float32 are 1.0e-03 from float32's" in done.stderr
    assert "nothing was measured" in done.stderr


def test_what_plan_says_fits_an_h200() -> None:
    done = bench("train.py", "--plan")
    assert done.returncode == 0, done.stderr
    sizes = {line.split(":")[0]: float(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines()}
    assert set(sizes) == {"30b-a3b-lora", "7b-full", "32b-lora"}
    assert all(size < 141 for size in sizes.values())


def test_usage() -> None:
    done = bench("train.py", "--shape", "huge")
    assert done.returncode == 2
    assert "--shape knows 30b-a3b-lora" in done.stderr
    if not torch.cuda.is_available():
        done = bench("train.py")
        assert done.returncode == 1
        assert done.stderr.startswith("no CUDA device here")

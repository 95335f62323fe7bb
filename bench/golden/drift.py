"""Where plain GRPO drifts, and which remedy holds: a sampler that is quantised or stale, as a simulated fault.

    python bench/golden/drift.py run --out bench/golden/drift.json      # all faults, remedies, seeds 0 1 2
    python bench/golden/drift.py table bench/golden/drift.json          # the table for docs/mismatch.md

The task is that of the golden curves, with ``--steps`` GRPO steps of one update each, all from one cold start. The
trainer computes in float32. The engine that draws is spoiled: its whole model in bfloat16, its matrices rounded to int8
or int4 by rows, or its weights those of four versions ago. It says so to nobody, as a wrong set-up would, so deliveries
are not proved. Greedy evaluations are drawn with the trainer's own weights. A remedy holds where its held-out accuracy
at the end is that of the same remedy with a sound sampler.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import tomli_w
import torch
from bands import HELDOUT, student
from torch import Tensor

from rlreason.run.manifest import describe_hardware, git_commit, installed_packages
from rlreason.sampler import worker
from rlreason.sampler.jobs import EngineSpec, Job, Progress
from rlreason.sampler.transformers_engine import TransformersEngine

HERE = Path(__file__).resolve().parent
FAULTS = ("none", "bfloat16", "int8", "int4", "stale 4")
PLAIN = {"correction": "none", "scale": "group_std", "clip": "none"}
REMEDIES: Mapping[str, dict[str, Any]] = {
    "plain": PLAIN,
    "tis": PLAIN | {"correction": "tis"},
    "mis": PLAIN | {"correction": "mis", "correction_low": 0.5, "correction_high": 2.0},
    "centering": PLAIN | {"centering": "exact"},
    "tis_centering": PLAIN | {"correction": "tis", "centering": "exact"},
    "dppo_tv": {"preset": "dppo_tv"},
}
FAULT = "RLREASON_BENCH_FAULT"


class Spoiled(TransformersEngine):
    """Draws with other weights than it was given; at temperature 0 with the right ones."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._sound = TransformersEngine(spec)
        self._fault = os.environ[FAULT]
        self._given: deque[dict[str, Tensor]] = deque(maxlen=5)
        self._newest = -1
        if self._fault == "bfloat16":
            self._model.to(torch.bfloat16)

    def submit(self, jobs: Sequence[Job]) -> None:
        greedy = [job for job in jobs if job.params.temperature == 0.0]
        self._sound.submit(greedy)
        super().submit([job for job in jobs if job.params.temperature != 0.0])

    def advance(self, seconds: float, steps: int | None = None) -> Progress:
        drawn, sound = super().advance(seconds, steps), self._sound.advance(seconds, steps)
        return Progress(drawn=drawn.drawn + sound.drawn, steps=drawn.steps + sound.steps)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> tuple[str, ...]:
        if version <= self._newest:  # another stage begins
            self._given.clear()
        self._newest = version
        self._given.append({name: tensor.detach().clone() for name, tensor in weights})
        self._sound.load(iter(self._given[-1].items()), version)
        given = self._given[0 if self._fault == "stale 4" else -1]
        return super().load(((name, spoiled(tensor, self._fault)) for name, tensor in given.items()), version)


def spoiled(tensor: Tensor, fault: str) -> Tensor:
    """A matrix rounded to int8 or int4 with one scale a row; anything else as it is."""
    if fault not in ("int8", "int4") or tensor.ndim < 2:
        return tensor
    most = 127.0 if fault == "int8" else 7.0
    scale = tensor.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / most
    return (tensor / scale).round() * scale


def recipe(seed: int, steps: int, remedies: Sequence[str]) -> dict[str, Any]:
    """The cold start, and a stage for each remedy."""
    made = tomllib.loads((HERE / "task.toml").read_text(encoding="utf-8")) | {"seed": seed}
    made["sampler"]["canary"] = False
    for name in remedies:
        stage = {
            "kind": "grpo",
            "name": name,
            "model": "cold_start",
            "first_problem": 2000,
            "steps": steps,
            "problems_per_step": 32,
            "samples_per_problem": 8,
            "max_tokens": 40,
            "micro_batch_tokens": 3072,
            "eval_every": steps,
            "eval_problems": HELDOUT,
            "objective": REMEDIES[name],
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.99], "warmup_steps": 3},
        }
        made["stage"].append(stage)
    return made


def one_run(fault: str, seed: int, steps: int, remedies: Sequence[str]) -> dict[str, dict[str, float]]:
    """Remedy -> what came out, of one process; where it is interrupted, of the remedies that were done."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "drift.toml"), Path(folder, "run")
        path.write_text(tomli_w.dumps(recipe(seed, steps, remedies)), encoding="utf-8")
        command = [sys.executable, str(Path(__file__)), "spoiled", "run", str(path), "--out", str(out)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env={**os.environ, FAULT: fault}
            )
        except KeyboardInterrupt:
            return harvest(out, remedies, steps)
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip()[-2000:])
        return harvest(out, remedies, steps)


def harvest(out: Path, remedies: Sequence[str], steps: int) -> dict[str, dict[str, float]]:
    """Remedy -> what came out, of those whose stage in the run directory ``out`` is whole."""
    found = {}
    for name in remedies:
        for lines in out.glob(f"stages/*-{name}/metrics.jsonl"):
            rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
            if len(rows) < steps or "accuracy/heldout" not in rows[-1]:
                continue
            last = [row for row in rows[-10:] if "mismatch/k3" in row] or [{"mismatch/k3": 0.0, "entropy": 0.0}]
            found[name] = {
                "accuracy": rows[-1]["accuracy/heldout"],
                "reward": fmean(row["reward/mean"] for row in rows[-10:]),
                "mismatch/k3": fmean(row["mismatch/k3"] for row in last),
                "entropy": fmean(row["entropy"] for row in last),
            }
    return found


def run_all(options: argparse.Namespace) -> None:
    """Every fault with every seed; the file is written after each, and what it holds already is not run again. Ctrl-C
    or SIGTERM ends it and loses no remedy that was done."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    out: Path = options.out
    data = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if data and data["steps"] != options.steps:
        raise SystemExit(f"{out} is of {data['steps']} steps: give another --out, or --steps {data['steps']}")
    data |= {
        "steps": options.steps,
        "commit": git_commit(HERE),
        "hardware": describe_hardware([]).model_dump(),
        "packages": installed_packages(),
    }
    rows = data.setdefault("rows", [])
    for seed in options.seeds:
        for fault in options.faults:
            had = {row["remedy"] for row in rows if (row["fault"], row["seed"]) == (fault, seed)}
            wanted = [name for name in options.remedies if name not in had]
            if not wanted:
                continue
            print(f"seed {seed}, {fault}: {', '.join(wanted)}", flush=True)
            found = one_run(fault, seed, options.steps, wanted)
            rows += [{"fault": fault, "seed": seed, "remedy": name, **numbers} for name, numbers in found.items()]
            out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            if len(found) < len(wanted):
                raise SystemExit(f"interrupted; run it again with --out {out} for what is missing")
    print(table(data))


def interval(values: Sequence[float]) -> str:
    """``0.97 (0.95–0.99)``: the mean with its 95 % interval over seeds, by Student's t."""
    mean = fmean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    reach = student(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return f"{mean:.3f} ({mean - reach:.3f}–{mean + reach:.3f})"


def table(data: Mapping[str, Any]) -> str:
    """Held-out accuracy by remedy and fault, and the mismatch that plain GRPO had."""
    rows = data["rows"]
    faults = [name for name in FAULTS if any(row["fault"] == name for row in rows)]
    remedies = [name for name in REMEDIES if any(row["remedy"] == name for row in rows)]

    def cell(fault: str, remedy: str, key: str) -> str:
        values = [row[key] for row in rows if (row["fault"], row["remedy"]) == (fault, remedy)]
        return interval(values) if values else ""

    lines = ["| remedy | " + " | ".join(faults) + " |", "|---|" + "---|" * len(faults)]
    lines += [
        f"| {name} | " + " | ".join(cell(fault, name, "accuracy") for fault in faults) + " |" for name in remedies
    ]
    drift = [fmean(row["mismatch/k3"] for row in rows if row["fault"] == fault) for fault in faults]
    lines.append("| mean mismatch/k3, last 10 steps | " + " | ".join(f"{value:.2g}" for value in drift) + " |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["spoiled"]:
        from rlreason.cli import main as command_line

        worker.TransformersEngine = Spoiled  # type: ignore[misc]
        sys.argv = ["rlreason", *sys.argv[2:]]
        command_line()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    run = commands.add_parser("run")
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--steps", type=int, default=60)
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    run.add_argument("--remedies", nargs="+", choices=list(REMEDIES), default=list(REMEDIES))
    commands.add_parser("table").add_argument("file", type=Path)
    options = parser.parse_args()
    if options.what == "table":
        print(table(json.loads(options.file.read_text(encoding="utf-8"))))
    else:
        run_all(options)


if __name__ == "__main__":
    main()

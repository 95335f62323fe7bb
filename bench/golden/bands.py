"""Golden curves: every preset of the objective on one small task, three seeds, and bands that later code must stay in.

    python bench/golden/bands.py record              # all presets, seeds 0 1 2; writes bench/golden/bands.json
    python bench/golden/bands.py record --missing    # those that it does not hold yet, as after an interruption
    python bench/golden/bands.py check               # runs them again: which have left their band? (make golden)
    python bench/golden/bands.py check --presets dapo --plant

The task is ``task.toml``: a cold start, and from it ``STEPS`` GRPO steps of each preset. Of each curve a few numbers
are kept (``NUMBERS``). Other machines and versions round otherwise, so other tokens are drawn, as with another seed: a
band is the interval that the mean of the new runs lies in with probability ``1 - MISS``, from the recorded mean and the
spread between seeds, which all presets share (a deviation of three numbers says little). On the machine and with the
versions of the record a curve is equal to the last digit, which ``check`` says, too.

``--plant`` takes the division by a deviation out of the code that runs: it must fall out of its band.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import mpmath
import tomli_w

from rlreason.objective.presets import PRESETS
from rlreason.run.manifest import describe_hardware, git_commit, installed_packages

HERE = Path(__file__).resolve().parent
BANDS = HERE / "bands.json"
SEEDS = (0, 1, 2)
STEPS = 24
#: Problems of the greedy evaluation after the last step.
HELDOUT = 300
#: Presets that share a cold start when curves are recorded; the file is written after each such part.
PART = 4
#: Probability that a right curve's number leaves its band: there are about a hundred of them.
MISS = 1e-4
#: What is kept of a curve: a metric's mean over steps from-to.
NUMBERS: Mapping[str, tuple[str, int, int]] = {
    "reward, steps 5 to 12": ("reward/mean", 4, 12),
    "reward, last 8 steps": ("reward/mean", STEPS - 8, STEPS),
    "gradient norm, first 8 steps": ("grad_norm", 0, 8),
    "entropy, last 8 steps": ("entropy", STEPS - 8, STEPS),
    "accuracy, held out": ("accuracy/heldout", STEPS - 1, STEPS),
}
#: Numbers whose spread is in proportion to them, and not the same for all presets: their logarithms are compared.
PROPORTIONAL = ("gradient norm, first 8 steps", "entropy, last 8 steps")
#: Runs the command line with the division by a deviation left out.
PLANTED = """
from rlreason.objective import advantage
advantage._over = lambda values, std, epsilon: values
from rlreason.cli import main
main()
"""
Numbers = dict[str, float]


def recipe(seed: int, presets: Sequence[str]) -> dict[str, Any]:
    """The task's cold start, and a stage for each preset. Two updates a step, so that ratios and clips act; one where
    the objective takes one alone."""
    made = tomllib.loads((HERE / "task.toml").read_text(encoding="utf-8")) | {"seed": seed}
    for name in presets:
        single = not PRESETS[name].has_group_baseline and name == "flash_reinforce"
        stage = {
            "kind": "grpo",
            "name": name,
            "model": "cold_start",
            "first_problem": 2000,
            "steps": STEPS,
            "problems_per_step": 256 if single else 32,
            "samples_per_problem": 1 if single else 8,
            "max_tokens": 40,
            "micro_batch_tokens": 3072,
            "updates_per_step": 1 if PRESETS[name].ratio == "on_policy" else 2,
            "eval_every": STEPS,
            "eval_problems": HELDOUT,
            "objective": name,
            "optimizer": {"lr": 5e-4, "betas": [0.9, 0.99], "warmup_steps": 3},
        }
        made["stage"].append(stage)
    return made


def curves(seed: int, presets: Sequence[str], *, planted: bool = False) -> dict[str, Numbers]:
    """Run the presets with one seed; the numbers of each. Raises RuntimeError where the run fails."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "golden.toml"), Path(folder, "run")
        path.write_text(tomli_w.dumps(recipe(seed, presets)), encoding="utf-8")
        program = ["-c", PLANTED] if planted else ["-m", "rlreason"]
        command = [sys.executable, *program, "run", str(path), "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip()[-2000:])
        found = {}
        for name in presets:
            (lines,) = out.glob(f"stages/*-{name}/metrics.jsonl")
            found[name] = summary([json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()])
        return found


def summary(rows: Sequence[Mapping[str, float]]) -> Numbers:
    """``NUMBERS`` of one curve; a step without an update has no gradient norm and is left out."""
    return {
        name: fmean(row[key] for row in rows[first:end] if key in row) for name, (key, first, end) in NUMBERS.items()
    }


def values_of(seeds: Mapping[str, Numbers], number: str) -> list[float]:
    """One preset's numbers by seed, as they are compared."""
    return [math.log(one[number]) if number in PROPORTIONAL else one[number] for one in seeds.values()]


def spread(recorded: Mapping[str, Mapping[str, Numbers]], number: str) -> tuple[float, int]:
    """(pooled deviation of ``number`` between seeds of one preset, its degrees of freedom)."""
    squares, freedom = 0.0, 0
    for seeds in recorded.values():
        values = values_of(seeds, number)
        squares += math.fsum((value - fmean(values)) ** 2 for value in values)
        freedom += len(values) - 1
    return math.sqrt(squares / freedom), freedom


def student(probability: float, freedom: int) -> float:
    """Quantile of Student's t above its median, by bisection of the distribution function."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        tail = mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + middle * middle), regularized=True) / 2
        low, high = (middle, high) if 1 - tail < probability else (low, middle)
    return middle


def band(recorded: Mapping[str, Mapping[str, Numbers]], preset: str, number: str, runs: int) -> tuple[float, float]:
    """Where the mean of ``number`` over ``runs`` new seeds lies with probability ``1 - MISS``."""
    deviation, freedom = spread(recorded, number)
    values = values_of(recorded[preset], number)
    reach = student(1.0 - MISS / 2, freedom) * deviation * math.sqrt(1 / len(values) + 1 / runs)
    low, high = fmean(values) - reach, fmean(values) + reach
    return (math.exp(low), math.exp(high)) if number in PROPORTIONAL else (low, high)


def compared(
    recorded: Mapping[str, Mapping[str, Numbers]], new: Mapping[str, Mapping[str, Numbers]]
) -> list[tuple[str, str, float, tuple[float, float]]]:
    """(preset, number, its mean over the new seeds, its band) of all."""
    found = []
    for preset, seeds in new.items():
        for number in NUMBERS:
            value = fmean(values_of(seeds, number))
            value = math.exp(value) if number in PROPORTIONAL else value
            found.append((preset, number, value, band(recorded, preset, number, len(seeds))))
    return found


def measure(presets: Sequence[str], seeds: Sequence[int], *, planted: bool) -> dict[str, dict[str, Numbers]]:
    """Preset -> seed -> its numbers."""
    found: dict[str, dict[str, Numbers]] = {name: {} for name in presets}
    for seed in seeds:
        print(f"seed {seed}: {', '.join(presets)}", flush=True)
        for name, numbers in curves(seed, presets, planted=planted).items():
            found[name][str(seed)] = numbers
    return found


def record(presets: Sequence[str], seeds: Sequence[int]) -> None:
    """Measure, and put what came out into ``BANDS``, part by part: what an interruption leaves unmeasured, and presets
    that are not asked for, stay as they are."""
    machine = {
        "commit": git_commit(HERE),
        "hardware": describe_hardware([]).model_dump(),
        "packages": installed_packages(),
    }
    for at in range(0, len(presets), PART):
        made = measure(presets[at : at + PART], seeds, planted=False)
        before = json.loads(BANDS.read_text(encoding="utf-8")) if BANDS.exists() else {"curves": {}}
        merged = before["curves"] | {name: {"machine": machine, "seeds": one} for name, one in made.items()}
        written = BANDS.with_suffix(".new")
        written.write_text(json.dumps({"curves": dict(sorted(merged.items()))}, indent=1) + "\n", encoding="utf-8")
        written.replace(BANDS)
        print(f"wrote {', '.join(made)} into {BANDS}; it holds {len(merged)} presets", flush=True)


def recorded_curves() -> dict[str, dict[str, Numbers]]:
    """Preset -> seed -> numbers, of ``BANDS``."""
    data = json.loads(BANDS.read_text(encoding="utf-8"))
    return {name: one["seeds"] for name, one in data["curves"].items()}


def check(presets: Sequence[str], seeds: Sequence[int], *, planted: bool) -> int:
    """Measure again, print every number with its band; how many have left theirs."""
    recorded = recorded_curves()
    new = measure(presets, seeds, planted=planted)
    out = 0
    for preset, number, value, (low, high) in compared(recorded, new):
        inside = low <= value <= high
        out += not inside
        print(f"{'in ' if inside else 'OUT'}  {preset:22} {number:30} {value:8.4f}  band {low:8.4f} to {high:8.4f}")
    curves_ = [(numbers, recorded[preset].get(seed)) for preset, one in new.items() for seed, numbers in one.items()]
    same = sum(numbers == before for numbers, before in curves_)
    print(f"{same} of {len(presets) * len(seeds)} curves are equal to the recorded ones to the last digit")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "check"])
    parser.add_argument("--presets", nargs="+", choices=sorted(PRESETS), help="default: all (check: all recorded)")
    parser.add_argument("--missing", action="store_true", help="record: only presets that are not recorded yet")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--plant", action="store_true", help="check: a bug that must be seen")
    options = parser.parse_args()
    if options.what == "record":
        if options.plant:
            parser.error("--plant is for check: a bug is not recorded")
        if len(options.seeds) < 2:
            parser.error("a spread needs two seeds at least")
        known = recorded_curves() if options.missing and BANDS.exists() else {}
        record([name for name in options.presets or sorted(PRESETS) if name not in known], options.seeds)
        return
    if options.missing:
        parser.error("--missing is for record")
    out = check(options.presets or sorted(recorded_curves()), options.seeds, planted=options.plant)
    if out:
        raise SystemExit(f"{out} number(s) left their band")


if __name__ == "__main__":
    main()

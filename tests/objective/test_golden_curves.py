"""The golden curves' bands (bench/golden): their arithmetic by hand, what they hold, and one curve drawn again."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest
import tomli_w
import torch

from rlreason.config import load
from rlreason.objective.presets import PRESETS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "bench" / "golden"


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    return _module("bands")


def _module(name: str) -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(FOLDER))


def test_the_quantile_is_students(golden: ModuleType) -> None:
    for freedom, value in ((2, 4.302653), (10, 2.228139), (38, 2.024394)):
        assert golden.student(0.975, freedom) == pytest.approx(value, abs=1e-6)


def curve(golden: ModuleType, *values: float) -> dict[str, dict[str, float]]:
    return {str(seed): dict.fromkeys(golden.NUMBERS, value) for seed, value in enumerate(values)}


def test_a_band_by_hand_and_what_leaves_it(golden: ModuleType) -> None:
    recorded = {"dapo": curve(golden, 0.5, 0.6, 0.7), "grpo": curve(golden, 0.8, 0.8, 0.8)}
    number = "accuracy, held out"
    # squares 0.02 over 2 + 2 degrees of freedom
    assert golden.spread(recorded, number) == (pytest.approx(math.sqrt(0.005)), 4)
    reach = golden.student(1 - golden.MISS / 2, 4) * math.sqrt(0.005) * math.sqrt(1 / 3 + 1 / 3)
    assert golden.band(recorded, "grpo", number, 3) == pytest.approx((0.8 - reach, 0.8 + reach))
    assert golden.band(recorded, "grpo", number, 1)[1] > 0.8 + reach  # one run says less
    for value, inside in ((0.8, True), (0.8 + 0.99 * reach, True), (0.8 + 1.01 * reach, False)):
        (found, *_) = golden.compared(recorded, {"grpo": curve(golden, value, value, value)})
        assert (found[3][0] <= found[2] <= found[3][1]) is inside


def test_a_curve_in_numbers(golden: ModuleType) -> None:
    rows = [{"reward/mean": float(at), "grad_norm": 1.0, "entropy": 0.5} for at in range(golden.STEPS)]
    del rows[1]["grad_norm"]  # a step without a useful group
    rows[-1]["accuracy/heldout"] = 0.9
    found = golden.summary(rows)
    assert found["reward, steps 5 to 12"] == fmean(range(4, 12))
    assert found["reward, last 8 steps"] == fmean(range(golden.STEPS - 8, golden.STEPS))
    assert found["accuracy, held out"] == 0.9


def test_every_preset_s_recipe_can_be_run(golden: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "golden.toml"
    path.write_text(tomli_w.dumps(golden.recipe(0, sorted(PRESETS))), encoding="utf-8")
    stages = {stage.name: stage for stage in load(path).stage}
    assert stages.keys() == {"cold_start", *PRESETS}


def test_a_number_that_spreads_in_proportion_is_compared_by_its_logarithm(golden: ModuleType) -> None:
    recorded = {"dapo": curve(golden, 0.25, 1.0, 4.0), "grpo": curve(golden, 10.0, 10.0, 10.0)}
    number = "gradient norm, first 8 steps"
    deviation = math.sqrt(2 * math.log(4.0) ** 2 / 4)
    assert golden.spread(recorded, number)[0] == pytest.approx(deviation)
    reach = golden.student(1 - golden.MISS / 2, 4) * deviation * math.sqrt(2 / 3)
    assert golden.band(recorded, "grpo", number, 3) == pytest.approx((10 * math.exp(-reach), 10 * math.exp(reach)))


def test_the_recorded_bands_hold_their_own_curves_and_see_a_half(golden: ModuleType) -> None:
    """Every recorded mean lies in its band, and half of the gradient norm in none."""
    recorded = golden.recorded_curves()
    assert recorded.keys() == PRESETS.keys(), "python bench/golden/bands.py record --missing"
    assert all(len(seeds) == len(golden.SEEDS) for seeds in recorded.values())
    assert all(low <= value <= high for _, _, value, (low, high) in golden.compared(recorded, recorded))
    name = "gradient norm, first 8 steps"
    halved = {
        preset: {seed: one | {name: one[name] / 2} for seed, one in seeds.items()} for preset, seeds in recorded.items()
    }
    found = [row for row in golden.compared(recorded, halved) if row[1] == name]
    assert not [preset for preset, _, value, (low, _) in found if value >= low]


@pytest.mark.slow
def test_a_curve_stays_in_its_band_and_the_planted_bug_leaves_it(golden: ModuleType) -> None:
    """dapo divides by the group's deviation: without, its gradient is another. And a seed's two runs are equal."""

    def check(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(FOLDER / "bands.py"), "check", "--presets", "dapo", *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    sound, planted = check(), check("--plant")
    assert sound.returncode == 0, sound.stdout + sound.stderr
    assert planted.returncode == 1, planted.stdout + planted.stderr
    assert any(line.startswith("OUT") and "gradient norm" in line for line in planted.stdout.splitlines())
    again, once = (golden.curves(1, ["dapo"]) for _ in range(2))
    assert json.dumps(again) == json.dumps(once)


def test_a_spoiled_sampler_is_rounded_as_it_says() -> None:
    """The drift experiment's fault: one scale a row, so that the largest of each keeps its value."""
    drift = _module("drift")
    matrix = torch.tensor([[0.7, 0.33, -0.1], [14.0, 1.1, -3.0]])
    assert drift.spoiled(matrix, "int4").tolist() == [pytest.approx([0.7, 0.3, -0.1]), pytest.approx([14.0, 2.0, -4.0])]
    assert float((drift.spoiled(matrix, "int8") - matrix).abs().max()) <= 14.0 / 127 / 2
    assert torch.equal(drift.spoiled(matrix, "bfloat16"), matrix)


def test_an_interrupted_drift_keeps_what_is_whole(tmp_path: Path) -> None:
    drift = _module("drift")
    row = {"reward/mean": 0.5, "mismatch/k3": 1e-3, "entropy": 0.2}
    for name, count in (("plain", 12), ("tis", 7)):
        folder = tmp_path / "stages" / f"02-{name}"
        folder.mkdir(parents=True)
        rows = [row] * (count - 1) + [row | {"reward/mean": 1.5, "accuracy/heldout": 0.75}]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = drift.harvest(tmp_path, ["plain", "tis", "mis"], 12)
    assert found == {"plain": {"accuracy": 0.75, "reward": pytest.approx(0.6), "mismatch/k3": 1e-3, "entropy": 0.2}}
    seeds = [{"fault": "none", "seed": at, "remedy": "plain", **found["plain"]} for at in range(2)]
    assert "| plain | 0.750 (0.750–0.750) |" in drift.table({"rows": seeds})
    assert "| plain | 0.750 |" in drift.table({"rows": seeds[:1]})

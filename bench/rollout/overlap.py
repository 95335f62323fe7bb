"""Seconds of a GRPO step at staleness 1 beside drawing and learning alone, with one worker and one training thread.

    python bench/rollout/overlap.py

Runs the quickstart's GRPO stage with vLLM over Ray: at staleness 0, where the two take turns and each is timed by
itself, and at staleness 1. Overlap is perfect where a step takes as long as the slower of the two. Writes
bench/rollout/results/overlap.json and the marked block of docs/rollouts.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from rlreason.run.manifest import describe_hardware, installed_packages

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from documents import replace_block  # noqa: E402
from quickstart import grpo_metrics, quickstart_recipe  # noqa: E402

RESULTS = Path(__file__).with_name("results") / "overlap.json"
#: What differs from the quickstart: the real engine, one worker, one training thread, no evaluations.
CHANGES = {
    "sampler": {"engine": "vllm", "max_rows": 512},
    "cluster": {"kind": "ray", "rollout_workers": 1, "threads": 1},
    "cold_start": {"steps": 30, "eval_every": 0},
    "grpo": {"eval_every": 0},
}
#: Steps at both ends that are not counted: the first fills the buffer, the last has nothing to draw.
WARM = 4


def steps_of(folder: Path, **grpo: object) -> list[dict[str, float]]:
    """Metrics of a GRPO stage after a short cold start, the counted steps only."""
    recipe = quickstart_recipe() | {table: CHANGES[table] for table in ("sampler", "cluster")}
    recipe["stage"] = [{**stage, **CHANGES[stage["name"]]} for stage in recipe["stage"]]
    recipe["stage"][1] |= grpo
    return grpo_metrics(recipe, folder)[WARM:-2]


def main() -> None:
    """Run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=18)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        turns = steps_of(Path(folder, "turns"), steps=options.steps)
        ahead = steps_of(Path(folder, "ahead"), steps=options.steps, staleness=1, in_flight_updates=False)
    roll = statistics.median(row["seconds/sample"] for row in turns)
    train = statistics.median(row["seconds/train"] for row in turns)
    # Steps come in pairs of long and short; the mean over all of them is what a run takes.
    step = statistics.fmean(row["seconds"] for row in ahead)
    results = {
        "hardware": describe_hardware([]).model_dump(),
        "packages": installed_packages(),
        "rollout_seconds": roll,
        "train_seconds": train,
        "turns_seconds": statistics.fmean(row["seconds"] for row in turns),
        "ahead_seconds": step,
        "tokens": [statistics.fmean(row["tokens"] for row in rows) for rows in (turns, ahead)],
        "staleness": max(row["staleness/max"] for row in ahead),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    replace_block(ROOT / "docs" / "rollouts.md", "overlap", table(results))
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """The block of docs/rollouts.md. The two runs learn apart, so drawing is scaled to the tokens of the second."""
    turns, ahead = results["tokens"]
    slower = max(results["rollout_seconds"] * ahead / turns, results["train_seconds"])
    return (
        "| drawing alone | learning alone | a step in turns | tokens | a step at staleness 1 | tokens | "
        "over the slower, tokens made equal |\n|---|---|---|---|---|---|---|\n"
        f"| {results['rollout_seconds']:.2f} s | {results['train_seconds']:.2f} s | {results['turns_seconds']:.2f} s | "
        f"{turns:,.0f} | {results['ahead_seconds']:.2f} s | {ahead:,.0f} | {results['ahead_seconds'] / slower:.2f} |"
    )


if __name__ == "__main__":
    main()

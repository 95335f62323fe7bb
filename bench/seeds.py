"""Runs a recipe with several seeds, one after the other, and keeps what came out as data with the hardware it ran on.

    python bench/seeds.py quickstart --seeds 0 1 2 --runs runs/seeds --out docs/results/quickstart.json

A run directory that is already there and finished is read, not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def finished(run: Path) -> bool:
    """Whether every stage of ``run`` is done."""
    path = run / "manifest.json"
    return path.exists() and all(entry["status"] == "done" for entry in json.loads(path.read_text())["stages"])


def collect(run: Path) -> dict[str, object]:
    """Seed, hardware, seconds and parameters by stage, and every evaluation of one run."""
    manifest = json.loads((run / "manifest.json").read_text())
    order = [entry["name"] for entry in manifest["stages"]]
    evaluations = [json.loads(path.read_text()) for path in (run / "eval").glob("*.json")]
    evaluations.sort(key=lambda row: order.index(row["model"]))
    return {
        "seed": manifest["seed"],
        "git_commit": manifest["git_commit"],
        "hardware": manifest["hardware"],
        "packages": manifest["packages"],
        "seconds": {entry["name"]: entry["seconds"] for entry in manifest["stages"]},
        "total_seconds": manifest["totals"]["seconds"],
        "parameters": {entry["name"]: entry["parameters"] for entry in manifest["stages"] if entry["parameters"]},
        "accuracy": {row["model"]: row["accuracy"] for row in evaluations},
        "mean_tokens": {row["model"]: row["mean_tokens"] for row in evaluations},
    }


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: a row a seed, a column a model, with 95 % intervals in percent, and the seconds of all stages."""
    shown = []
    for row in rows:
        accuracy = row["accuracy"]
        assert isinstance(accuracy, dict)
        cells = [f"{100 * a['value']:.1f} ({100 * a['low']:.1f}–{100 * a['high']:.1f})" for a in accuracy.values()]
        if not shown:
            shown = [f"| seed | {' | '.join(accuracy)} | seconds |", "|---" * (len(cells) + 2) + "|"]
        shown.append(f"| {row['seed']} | {' | '.join(cells)} | {row['total_seconds']:.0f} |")
    return "\n".join(shown)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        run = options.runs / f"{options.recipe}-{seed}"
        if not finished(run):
            command = [sys.executable, "-m", "rlreason", "run", options.recipe, f"seed={seed}", *options.overrides]
            subprocess.run([*command, "--out", str(run)], check=True)
        rows.append(collect(run))
    options.out.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()

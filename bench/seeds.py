"""Runs a recipe with several seeds, one after the other, and keeps what came out as data with the hardware it ran on.

    python bench/seeds.py quickstart --seeds 0 1 2 --runs runs/seeds --out docs/results/quickstart.json \\
        --pages README.md docs/results/quickstart.md

A run directory that is already there and finished is read, not run again. In the pages, what stands between
``<!-- seeds -->`` and ``<!-- /seeds -->``, and ``<!-- gains -->`` and ``<!-- /gains -->``, is written anew:
tests/test_docs.py holds it against the data.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any


def finished(run: Path) -> bool:
    """Whether every stage of ``run`` is done."""
    path = run / "manifest.json"
    return path.exists() and all(entry["status"] == "done" for entry in json.loads(path.read_text())["stages"])


def collect(run: Path) -> dict[str, Any]:
    """Seed, hardware, seconds and parameters by stage, and every evaluation of one run."""
    manifest = json.loads((run / "manifest.json").read_text())
    order = [entry["name"] for entry in manifest["stages"]]
    evaluations = [json.loads(path.read_text()) for path in (run / "eval").glob("*.json")]
    # Models as they come, "policy" and "student", are no stages: first.
    evaluations.sort(key=lambda row: order.index(row["model"]) if row["model"] in order else -1)
    return {
        "seed": manifest["seed"],
        "date": manifest["created"][:10],
        "git_commit": manifest["git_commit"],
        "hardware": manifest["hardware"],
        "packages": manifest["packages"],
        "seconds": {entry["name"]: entry["seconds"] for entry in manifest["stages"]},
        "total_seconds": manifest["totals"]["seconds"],
        "parameters": {entry["name"]: entry["parameters"] for entry in manifest["stages"] if entry["parameters"]},
        "accuracy": {row["model"]: row["accuracy"] for row in evaluations},
        "mean_tokens": {row["model"]: row["mean_tokens"] for row in evaluations},
    }


def percent(accuracy: dict[str, float]) -> str:
    """``61.2 (58.1–64.2)``: in percent, with the 95 % interval."""
    return f"{100 * accuracy['value']:.1f} ({100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f})"


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a seed, a column a model, with 95 % intervals in percent, and the seconds of all stages."""
    models = list(rows[0]["accuracy"])
    shown = [
        f"| seed | {' | '.join(one.replace('_', ' ') for one in models)} | seconds |",
        "|---" * (len(models) + 2) + "|",
    ]
    for row in rows:
        cells = [percent(row["accuracy"][model]) for model in models]
        shown.append(f"| {row['seed']} | {' | '.join(cells)} | {row['total_seconds']:.0f} |")
    return "\n".join(shown)


def difference(new: dict[str, float], old: dict[str, float]) -> str:
    """``37.4 (34.3 to 40.5)``: in points, with its 95 % interval (Newcombe 1998, method 10)."""
    gain = new["value"] - old["value"]
    low = gain - math.hypot(new["value"] - new["low"], old["high"] - old["value"])
    high = gain + math.hypot(new["high"] - new["value"], old["value"] - old["low"])
    return f"{100 * gain:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def gains(rows: list[dict[str, Any]]) -> str:
    """Markdown: what GRPO adds to its cold start, and what the student keeps; sizes, lengths, day and machine."""
    found = [row["accuracy"] for row in rows]
    first = rows[0]
    days = dict.fromkeys(row["date"] for row in rows)
    commits = dict.fromkeys(re.sub(r"^(.{10})[0-9a-f]*", r"\1", row["git_commit"]) for row in rows)
    shares = [f"{100 * one['distilled']['value'] / one['grpo']['value']:.0f} %" for one in found]
    grown = [difference(one["grpo"], one["cold_start"]) for one in found]
    kept = [difference(one["distilled"], one["student_alone"]) for one in found]
    lengths = [f"{row['mean_tokens']['cold_start']:.1f} to {row['mean_tokens']['grpo']:.1f}" for row in rows]
    return "\n".join(
        [
            f"- Measured on {', '.join(days)}: {first['hardware']['cores']} cores of {first['hardware']['cpu']}, "
            f"torch {first['packages']['torch']}, commit {', '.join(commits)}.",
            f"- GRPO minus its cold start, in points: {', '.join(grown)}.",
            f"- Student minus the student alone: {', '.join(kept)}.",
            f"- Student as a share of its teacher: {', '.join(shares)}.",
            f"- Mean tokens of a held-out answer, cold start to GRPO: {', '.join(lengths)}.",
            f"- Parameters: policy {first['parameters']['grpo']:,}, student {first['parameters']['distilled']:,}.",
        ]
    )


def written(page: str, rows: list[dict[str, Any]]) -> str:
    """The page's text with what its markers hold made from ``rows``."""
    for name, made in (("seeds", table), ("gains", gains)):
        block = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
        page = block.sub(lambda match, made=made: match[1] + made(rows) + match[2], page)
    return page


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pages", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        run = options.runs / f"{options.recipe}-{seed}"
        if not finished(run):
            command = [sys.executable, "-m", "rlreason", "run", options.recipe, f"seed={seed}", *options.overrides]
            subprocess.run([*command, "--out", str(run)], check=True)
        rows.append(collect(run))
    options.out.write_text(json.dumps(rows, indent=2) + "\n")
    for page in options.pages:
        page.write_text(written(page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()

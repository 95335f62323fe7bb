"""docs/models.md has the table of families that was measured: every family, every column, nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "bench" / "families"


def test_the_page_has_the_table_that_was_measured() -> None:
    command = [sys.executable, str(FOLDER / "table.py"), "show"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert shown.count("\n| ") == 16
    assert shown in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_family_has_every_cell() -> None:
    known = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert len(known["families"]) == 16
    columns = {"train", "save", "lora", "two_ranks", "replay", "vllm_folder", "vllm_delivery", "vllm_replay"}
    assert all(set(row["cells"]) == columns for row in known["families"].values())


@pytest.mark.slow
def test_a_family_goes_through_everything_again() -> None:
    command = [sys.executable, str(FOLDER / "family.py"), "Qwen3-MoE"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cells = json.loads(done.stdout.splitlines()[-1])
    assert all(cell["ok"] and not cell["error"] for cell in cells.values()), cells

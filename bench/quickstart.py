"""The quickstart's GRPO stage as benches run it: a changed recipe in a process of its own, and its metrics."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from rlreason.config import recipes_folder


def quickstart_recipe() -> dict[str, Any]:
    """The shipped recipe with its first two stages alone, ``cold_start`` and ``grpo``."""
    recipe = tomllib.loads((recipes_folder() / "quickstart" / "recipe.toml").read_text(encoding="utf-8"))
    return recipe | {"stage": recipe["stage"][:2]}


def grpo_metrics(recipe: dict[str, Any], folder: Path) -> list[dict[str, float]]:
    """Run ``recipe`` in ``folder``, which is made; the metrics of each GRPO step. Raises RuntimeError with the end of
    what the run said where it fails."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe), encoding="utf-8")
    out = folder / "run"
    command = [sys.executable, "-m", "rlreason", "run", str(folder / "recipe.toml"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-2000:])
    lines = (out / "stages" / "02-grpo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]

"""docs/tracking.md: its tables are recipes, and the values that it shows as defaults are the defaults."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from rlreason.config import LoggingConfig, RolloutLog, load

TEXT = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text(encoding="utf-8")
REST = """
name = "x"
[data]
train = "arithmetic"
[[stage]]
kind = "sft"
name = "cold"
model = "policy"
steps = 1
"""


def test_every_table_is_part_of_a_recipe(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.S)
    assert len(blocks) == 3
    for block in blocks:
        path = tmp_path / "recipe.toml"
        path.write_text(REST.replace("[data]", block + "\n[data]", 1))
        load(path)
    defaults = tomllib.loads(blocks[1])["logging"]
    assert RolloutLog(**defaults["rollouts"]) == RolloutLog()
    assert defaults["schedule"] is LoggingConfig().schedule


def test_a_row_has_what_the_page_says() -> None:
    source = (Path(__file__).parents[2] / "rlreason" / "stages" / "rollout_log.py").read_text(encoding="utf-8")
    keys = set(re.findall(r'^        "(\w+)":', source, flags=re.M)) | {"advantage", "logged_for"}
    (listed,) = re.findall(r"is one completion: (.*?)although", TEXT, flags=re.S)
    assert keys <= set(re.findall(r"`(\w+)`", listed))

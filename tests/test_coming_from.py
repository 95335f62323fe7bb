"""docs/coming_from.md: our keys are in the schema, and those of TRL, verl and OpenRLHF in their releases."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlreason.config.keys import tables

TEXT = (Path(__file__).parent.parent / "docs" / "coming_from.md").read_text(encoding="utf-8")
#: Written by make_peer_keys.py, which reads the wheels.
FILE = Path(__file__).parent / "peer_keys.json"
PEERS = ("trl", "verl", "openrlhf")
#: Values, not names of settings.
VALUES = {"kl", "mse", "low_var_kl", "k1", "k2", "k3", "k3_unbiased", "model"}
#: Columns of data that a peer's cell speaks of.
COLUMNS = {"reward_model.ground_truth"}


def rows() -> Iterator[list[str]]:
    """Cells of the tables that map keys."""
    for line in TEXT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4:
            yield cells


def names(cell: str) -> list[str]:
    return [one for one in re.findall(r"`([^`]+)`", cell) if one not in VALUES - {"model"}]


def full(name: str) -> str:
    return name.replace("…", "actor_rollout_ref.")


def test_every_key_of_ours_exists() -> None:
    known = {f"{table.path}.{key.name}".lstrip(".") for table in tables() for key in table.keys}
    ours = [re.findall(r"`([^`]+)`", cells[0])[0] for cells in rows()]
    assert len(ours) > 60
    assert not [name for name in ours if name not in known]
    extra = [one for cells in rows() for one in re.findall(r"`([a-z_]+) = ", cells[0])]
    assert not [name for name in extra if f"stage.objective.{name}" not in known]


@pytest.mark.parametrize("peer", PEERS)
def test_every_key_of_theirs_is_in_their_release(peer: str) -> None:
    peers = json.loads(FILE.read_text(encoding="utf-8"))
    assert f"{peers['versions'][peer]}" in TEXT
    column = 1 + PEERS.index(peer)
    theirs = [full(name) for cells in rows() for name in names(cells[column]) if name not in COLUMNS]
    assert len(theirs) > 30
    assert not [name for name in theirs if name not in peers[peer]]


def test_names_in_the_text_exist_somewhere() -> None:
    """Outside of the tables: each name is one of ours or of one of the three."""
    peers = json.loads(FILE.read_text(encoding="utf-8"))
    known = {name for peer in PEERS for name in peers[peer]} | {
        part for table in tables() for key in table.keys for part in (key.name, f"{table.path}.{key.name}")
    }
    paths = {table.path for table in tables()} | {"push_to_hub", "objective", "optimizer"}
    prose = "\n".join(line for line in TEXT.splitlines() if not line.startswith("|"))
    asked = [full(one) for one in re.findall(r"`([\w.…]+)`", prose)]
    assert not [
        one
        for one in asked
        if one not in known | paths | {"GRPOConfig", "GRPOTrainer", "main_ppo", "train_ppo_ray"}
        and not any(name.startswith(f"{one}.") for name in known)
    ]


@pytest.mark.peer
def test_the_names_are_those_of_the_wheels() -> None:
    folder = os.environ.get("PEER_WHEELS")
    if folder is None:
        pytest.skip("set PEER_WHEELS to a folder with the wheels (tests/make_peer_keys.py)")
    spec = importlib.util.spec_from_file_location("make_peer_keys", FILE.with_name("make_peer_keys.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.made(Path(folder)) == json.loads(FILE.read_text(encoding="utf-8"))

"""Every command of docs/sandbox.md runs and prints what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "sandbox.md").read_text(encoding="utf-8")


def blocks() -> list[tuple[str, str]]:
    """Commands of each sh block, which can be pasted as they are, and what the text block after it says they print."""
    pattern = r"^```sh\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?"
    return re.findall(pattern, TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("commands", "printed"), blocks())
def test_the_page_is_true(commands: str, printed: str, tmp_path: Path) -> None:
    # The reader's `python` and `rlreason` are those that run the tests.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        ["bash", "-ec", commands], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    if printed:
        assert done.stdout == printed


def test_the_page_has_commands() -> None:
    assert len(blocks()) == 4


def test_the_page_names_every_layer_and_limit() -> None:
    from rlreason.rewards.jail.jail import Limits

    for name in Limits.__dataclass_fields__:
        assert name in TEXT

"""Every command of docs/data.md runs and prints what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/data.md").read_text()
#: Each block is "$ " and a command, whose last character is a quotation mark, then what it prints.
BLOCKS = [block.rpartition('"\n')[::2] for block in re.findall(r"```console\n\$ (.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize(("command", "output"), BLOCKS)
def test_the_page_is_true(command: str, output: str) -> None:
    # The reader's `python` is the one that runs the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command.replace("\n$ ", "\n") + '"'],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PATH": path}, check=True,
    )  # fmt: skip
    assert done.stdout == output


def test_the_page_has_commands() -> None:
    assert len(BLOCKS) == 2

"""Every command of docs/data.md runs and prints what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```console\n\$ (.*?\"\n)(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)


@pytest.mark.parametrize(("command", "output"), BLOCKS)
def test_the_page_is_true(command: str, output: str) -> None:
    # The reader's `python` is the one that runs the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command.replace("\n$ ", "\n")],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PATH": path}, check=True,
    )  # fmt: skip
    assert done.stdout == output


def test_the_page_has_commands() -> None:
    assert len(BLOCKS) == 2

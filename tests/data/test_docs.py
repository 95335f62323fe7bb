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


def test_the_recipe_of_several_sets_loads(tmp_path: Path) -> None:
    from rlreason.config import load

    (table,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "recipe.toml").write_text('name = "sets"\n' + table)
    recipe = load(tmp_path / "recipe.toml")
    assert list(recipe.data.sets) == ["gsm8k", "hard", "aime"]
    assert (
        recipe.data.sets["hard"].system == "Think inside <think></think>, then write the final answer inside \\boxed{}."
    )

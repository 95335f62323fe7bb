"""Every command of docs/data.md runs and prints what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/data.md").read_text()


def commands_and_output(block: str) -> tuple[str, str]:
    """Lines after "$ " are commands, with the lines up to the closing quotation mark; the rest is printed."""
    commands, printed = [], []
    for line in block.splitlines():
        if line.startswith("$ ") or (commands and "\n".join(commands).count('"') % 2):
            commands.append(line.removeprefix("$ "))
        else:
            printed.append(line + "\n")
    return "\n".join(commands), "".join(printed)


BLOCKS = [commands_and_output(block) for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize(("command", "output"), BLOCKS)
def test_the_page_is_true(command: str, output: str) -> None:
    # The reader's `python` is the one that runs the tests.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PATH": path}, check=True,
    )  # fmt: skip
    assert done.stdout == output


def test_the_page_has_commands() -> None:
    assert len(BLOCKS) == 3


def test_the_recipe_of_several_sets_loads(tmp_path: Path) -> None:
    from rlreason.config import load

    (table,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "recipe.toml").write_text('name = "sets"\n' + table)
    recipe = load(tmp_path / "recipe.toml")
    assert list(recipe.data.sets) == ["gsm8k", "hard", "aime"]
    assert (
        recipe.data.sets["hard"].system == "Think inside <think></think>, then write the final answer inside \\boxed{}."
    )

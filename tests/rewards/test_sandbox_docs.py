"""Every command of docs/sandbox.md runs and prints what the page says."""

import inspect
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


def test_the_page_names_every_limit_and_option() -> None:
    from rlreason.rewards.jail.jail import Limits
    from rlreason.rewards.programs.verifier import code

    for name in Limits.__dataclass_fields__:
        assert name in TEXT
    for option in list(inspect.signature(code).parameters)[2:]:
        assert f"| `{option}` |" in TEXT, option


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    from rlreason.rewards.jail import alone, seccomp, view, watch
    from rlreason.rewards.programs import attempts

    counted = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
    assert f"{counted[len(view._DEVICES)]} harmless devices" in TEXT
    assert f"all but {counted[len(seccomp._HARMLESS_IOCTLS)]} `ioctl`s" in TEXT
    assert f"more than {watch._MOST_MAPPINGS:,} mappings" in TEXT
    assert f"wait, up to {alone._ORDINARY_PATIENCE:g} s" in " ".join(TEXT.split())
    assert attempts._STARVED_SHARE == 1 / 5
    assert "a fifth of its limit" in TEXT
    for name in ("setsid", "flock", "ptrace"):
        assert name in seccomp._REFUSED
        assert f"`{name}`" in TEXT
    for name in ("truncate", "chmod", "chown", "utime"):
        assert name in seccomp._REFUSED_OUTSIDE
        assert f"`{name}`" in TEXT


def test_what_the_report_notes_stands_on_the_page() -> None:
    from rlreason.rewards.jail.jail import Capabilities

    text = " ".join(TEXT.split()).lower()
    assert "names that were looked up" in text
    for remark in Capabilities(level="landlock", layers={}).remarks[:1]:
        assert remark in text

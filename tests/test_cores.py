"""How many cores count as usable: affinity and the quotas of control groups, never the machine's number alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason import cores

ROOT = Path(__file__).parent.parent


@pytest.fixture
def sixty_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host of 64 cores, all of them in the affinity."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def groups(folder: Path, files: dict[str, str], own: str) -> tuple[Path, Path]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "membership").write_text(own)
    return folder, folder / "membership"


@pytest.mark.usefixtures("sixty_four")
@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, "0::/\n", 64),
        ({"cpu.max": "400000 100000\n"}, "0::/\n", 4),
        ({"cpu.max": "250000 100000\n"}, "0::/\n", 3),
        ({"cpu.max": "20000 100000\n"}, "0::/\n", 1),
        ({"a/cpu.max": "max 100000\n", "a/b/cpu.max": "800000 100000\n"}, "0::/a/b\n", 8),
        ({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 2),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/x\n", 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu,cpuacct:/\n", 64),
        ({}, "0::/gone\n", 64),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], own: str, expected: int) -> None:
    assert cores.usable_cores(*groups(tmp_path, files, own)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_affinity_is_obeyed() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from rlreason.cores import usable_cores as u; print(u())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_nothing_else_counts_the_machine() -> None:
    """Threads, Ray's CPUs and worker processes come from ``usable_cores``; the manifest says what the machine has."""
    files = [*(ROOT / "rlreason").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")]
    users = {path.resolve() for path in files if re.search(r"os\.(cpu_count|sched_getaffinity)\(", path.read_text())}
    assert {path.relative_to(ROOT).as_posix() for path in users} == {
        "rlreason/cores.py",
        "rlreason/run/manifest.py",
    }

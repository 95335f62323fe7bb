"""One process a run directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlreason.errors import UsageError
from rlreason.run import lock
from rlreason.run.lock import locked

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, os, time
from pathlib import Path
from rlreason.run.lock import locked
with locked(Path(sys.argv[1]), print):
    # A worker that outlives us must not hold the run.
    if not os.fork():
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"is in use by process {holder.pid} on \S+ since \d{{4}}-"):
            locked(tmp_path, print).__enter__()
        holder.kill()
        holder.wait()
        with locked(tmp_path, print):
            pass
    finally:
        os.killpg(holder.pid, 9)
        holder.stdout.close()  # type: ignore[union-attr]


def test_released_at_the_end_and_taken_within_one_process_too(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path, print), pytest.raises(UsageError, match=f"process {os.getpid()} on"):
            locked(tmp_path, print).__enter__()
    assert not lock._held


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    told: list[str] = []
    with locked(tmp_path, told.append):
        pass
    assert "no locks" in told[0]

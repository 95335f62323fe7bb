"""Progress on terminals of all widths, and in logs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from rlreason.display import RichDisplay
from rlreason.progress import counting

NUMBERS = {"loss": 0.0445, "reward/mean": 0.0158, "accuracy/train": 0.0156, "length/mean": 15.3, "entropy": 2.21}


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_the_bar_shows_step_and_time(width: int) -> None:
    """At 80 columns the numbers pushed both out; at 120 they were cut short."""
    screen = io.StringIO()
    display = RichDisplay(Console(file=screen, force_terminal=True, width=width, color_system=None))
    display.begin("grpo", "grpo", 120)
    display.advance(7, NUMBERS)
    display.stop()
    last = screen.getvalue().split("\r")[-1]
    assert "7/120" in last
    assert "0:00:0" in last
    assert "loss 0.0445" in last
    assert "…" not in last
    assert ("entropy 2.21" in last) == (width >= 120)


def test_a_log_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, now = io.StringIO(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with counting(Console(file=screen, width=80), "gsm8k", "problems") as watch:
        for done in range(1, 31):
            now[0] += 1.0
            watch(done, 500)
    assert screen.getvalue().splitlines() == ["  gsm8k: 11 of 500 problems", "  gsm8k: 22 of 500 problems"]

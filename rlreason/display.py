"""Progress for a person: live bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Scalars worth a place on one line, in this order, with their short names.
SHOWN = (
    ("loss", "loss"),
    ("reward/mean", "reward"),
    ("accuracy/train", "train"),
    ("accuracy/heldout", "held-out"),
    ("length/mean", "length"),
    ("entropy", "entropy"),
    ("acceptance", "accepted"),
)
#: Seconds between two lines of a log.
LOG_EVERY = 10.0


def _unit(kind: str) -> str:
    """What a stage of this kind counts."""
    return "problems" if kind == "reject" else "models" if kind == "eval" else "steps"


class RichDisplay:
    """A bar per stage with its newest numbers; ``held-out`` stays until it is measured again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._stage = ""
        self._done = self._total = 0
        self._numbers: dict[str, float] = {}
        self._started = self._logged = 0.0

    def begin(self, stage: str, kind: str, total: int) -> None:
        """A stage of ``total`` steps begins."""
        self._stage, self._done, self._total, self._numbers = stage, 0, total, {}
        self._started = self._logged = time.monotonic()
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description:<14}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
            self._progress.start()
            self._progress.add_task(stage, total=total, numbers="")
        else:
            self._console.print(f"{stage} ({kind}, {total} {_unit(kind)})")

    def advance(self, steps: int, scalars: Mapping[str, float]) -> None:
        """``steps`` more are done; ``scalars`` are the newest numbers."""
        self._done += steps
        self._numbers.update({key: scalars[key] for key, _ in SHOWN if key in scalars})
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._done, numbers=self._line())
        elif time.monotonic() - self._logged > LOG_EVERY:
            self._logged = time.monotonic()
            self._console.print(f"  {self._done}/{self._total}  {self._line()}", highlight=False, soft_wrap=True)

    def end(self, message: str) -> None:
        """The stage is done; ``message`` says in a few words what came out."""
        self.stop()
        seconds = time.monotonic() - self._started
        numbers = self._line()
        self._console.print(
            f"[green]✓[/green] {self._stage}: {message}" + (f" · {numbers}" if numbers else "") + f" · {seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )

    def stop(self) -> None:
        """Take the bar away, also after a failure."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self) -> str:
        return "  ".join(f"{label} {self._numbers[key]:.3g}" for key, label in SHOWN if key in self._numbers)

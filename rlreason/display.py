"""Progress for a person: live bars on a terminal, a line now and then in a log, and the same lines in console.log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
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
#: Accuracies, with the metrics of what they leave out.
NO_VERDICT = {
    "accuracy/train": ("verdict/broken", "verdict/timed_out"),
    "accuracy/heldout": ("heldout/broken", "heldout/timed_out"),
}
#: Numbers that are shares.
SHARES = {*NO_VERDICT, "acceptance"}
#: Seconds between two lines of a log.
LOG_EVERY = 10.0


def _unit(kind: str) -> str:
    """What a stage of this kind counts."""
    return "problems" if kind == "reject" else "models" if kind == "eval" else "steps"


def _duration(seconds: float) -> str:
    """Example: ``_duration(3725) == "1 h 2 min"``."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


#: Width of a bar on a terminal of at least so many columns; a third of it on others.
BAR, WIDE = 24, 140
#: Columns of what stands beside the bar and the numbers: the stage's name, 2 x the steps, two times, spaces.
BESIDE = 14 + 1 + 1 + 7 + 1 + 7 + 2


class ConsoleLog:
    """console.log of a run directory: what was said, with the time of day, whatever the terminal shows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, text: str) -> None:
        """Append a line. A disk that is full must not end a run for the sake of this file."""
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")


class RichDisplay:
    """A bar per stage with its newest numbers; ``held-out`` stays until it is measured again."""

    def __init__(self, console: Console, log: ConsoleLog | None = None) -> None:
        self._console, self._log = console, log
        self._progress: Progress | None = None
        self._stage, self._kind = "", ""
        #: ``_first``: what was done before this process.
        self._done = self._first = self._total = 0
        self._numbers: dict[str, float] = {}
        self._started = self._logged = 0.0

    def begin(self, stage: str, kind: str, total: int | None) -> None:
        """A stage of ``total`` steps begins; None: ``lasts`` says how many."""
        self._stage, self._kind, self._done, self._first, self._total = stage, kind, 0, 0, total or 0
        self._numbers = {}
        length = "" if total is None else f", {total} {_unit(kind)}"
        self._started = self._logged = time.monotonic()
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description:<14}"),
                BarColumn(bar_width=BAR if self._console.width >= WIDE else BAR // 3),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
            self._progress.start()
            self._progress.add_task(stage, total=total, numbers="")
            self._note(f"{stage} ({kind}{length})")
        else:
            self._say(f"{stage} ({kind}{length})")

    def lasts(self, total: int) -> None:
        """The stage that has begun has ``total`` steps."""
        self._total = total
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], total=total)

    def advance(self, steps: int, scalars: Mapping[str, float]) -> None:
        """``steps`` more are done; ``scalars`` are the newest numbers."""
        self._done += steps
        shown = {key for key, _ in SHOWN} | {name for names in NO_VERDICT.values() for name in names}
        self._numbers.update({key: scalars[key] for key in shown if key in scalars})
        if not scalars and self._done == steps:
            self._first = steps  # of an earlier process: they say nothing of the speed
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=self._done, numbers=self._fitting())
        if time.monotonic() - self._logged > LOG_EVERY:
            self._logged = time.monotonic()
            line = f"  {self._done}/{self._total}  {self._pace()}  {self._line()}"
            self._note(line) if self._progress is not None else self._say(line)

    def note(self, text: str) -> None:
        """Something that a person should know; nothing is wrong."""
        self._say(text)

    def warn(self, text: str) -> None:
        """Something that a person should look at; the stage goes on."""
        self._console.print(f"[yellow]![/yellow] {escape(text)}", highlight=False, soft_wrap=True)
        self._note(f"warning: {text}")

    def end(self, message: str) -> None:
        """The stage is done; ``message`` says in a few words what came out."""
        self.stop()
        numbers = "" if self._kind == "eval" else self._line()  # the message has the accuracy of every model
        took = _duration(time.monotonic() - self._started)
        text = " · ".join(part for part in (f"{self._stage}: {message}", numbers, took) if part)
        self._console.print(f"[green]✓[/green] {escape(text)}", highlight=False, soft_wrap=True)
        self._note(text)

    def stop(self) -> None:
        """Take the bar away, also after a failure."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._note(text)

    def _note(self, text: str) -> None:
        if self._log is not None:
            self._log.add(text)

    def _pace(self) -> str:
        """Time for one step and for those that are left. Example: ``"2.1 s a step, 3 min left"``."""
        done = self._done - self._first
        if done <= 0:
            return ""
        each = (time.monotonic() - self._started) / done
        left = _duration(each * max(0, self._total - self._done))
        return f"{_duration(each)} a {_unit(self._kind).removesuffix('s')}, {left} left"

    def _fitting(self) -> str:
        """The numbers that fit beside the bar: what is too long would take the room of steps and time."""
        width = self._console.width
        taken = (
            (BAR if width >= WIDE else BAR // 3) + BESIDE + max(len(self._stage) - 14, 0) + 2 * len(str(self._total))
        )
        room, line = max(0, width - taken - 1), self._line()
        return line if len(line) <= room else line[:room].rpartition("  ")[0]

    def _line(self) -> str:
        return "  ".join(
            f"{label} {self._number(key)}{self._left_out(key)}" for key, label in SHOWN if key in self._numbers
        )

    def _number(self, key: str) -> str:
        """Shares in percent, as everywhere else; other numbers with three digits."""
        value = self._numbers[key]
        return f"{100 * value:.1f}%" if key in SHARES else f"{value:.3g}"

    def _left_out(self, key: str) -> str:
        """Beside an accuracy, the share of answers that are not in it. Example: ``" (12% broken)"``."""
        if key not in NO_VERDICT:
            return ""
        found = {name.rpartition("/")[2].replace("_", " "): self._numbers.get(name) or 0.0 for name in NO_VERDICT[key]}
        told = [f"{share:.0%} {why}" for why, share in found.items() if share]
        return f" ({', '.join(told)})" if told else ""

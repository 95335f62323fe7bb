"""How many of something are done, for a person: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Seconds between two lines of a log.
LOG_EVERY = 10.0
#: Told how many are done, and of how many; None: nobody knows yet.
Watch = Callable[[int, int | None], None]


@contextmanager
def counting(console: Console, what: str, unit: str) -> Iterator[Watch]:
    """Shows how far ``what`` is: ``with counting(console, "gsm8k", "problems") as watch: watch(3, 500)``."""
    if console.is_terminal:
        columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bars:
            task = bars.add_task(what, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        return
    shown = time.monotonic()

    def watch(done: int, total: int | None) -> None:
        nonlocal shown
        if time.monotonic() - shown > LOG_EVERY:
            shown = time.monotonic()
            of = "" if total is None else f" of {total:,}"
            console.print(f"  {what}: {done:,}{of} {unit}", markup=False, soft_wrap=True)

    yield watch

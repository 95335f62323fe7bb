"""Rows that come often, written a few at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from rlreason.run.directory import RunDirectory

#: Rows, and seconds since the first of them, after which they are written.
ROWS, SECONDS = 200, 5.0


class BufferedRows:
    """Appends to a file of a stage, from any thread; ``flush`` writes what waits. With ``on`` False it writes nothing.

    A state records how long the file is, so ``flush`` comes before each.
    """

    def __init__(self, run: RunDirectory, stage: str, file_name: str, *, on: bool = True) -> None:
        self._run, self._stage, self._file_name, self._on = run, stage, file_name, on
        self._rows: list[Mapping[str, object]] = []
        self._first = 0.0
        self._lock = threading.Lock()

    def add(self, row: Mapping[str, object]) -> None:
        """One more row."""
        if not self._on:
            return
        with self._lock:
            if not self._rows:
                self._first = time.monotonic()
            self._rows.append(row)
            if len(self._rows) >= ROWS or time.monotonic() - self._first > SECONDS:
                self._write()

    def flush(self) -> None:
        """Write what waits. Raises DiskFull."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._run.append_rows(self._stage, self._file_name, rows)

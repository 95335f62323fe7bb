"""What the command line writes to, and how a command ends: its exit code and its last line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper

from rich.console import Console
from rich.markup import escape

from rlreason.errors import HealthStop, UsageError

#: Errors about a path that the user gave, or about the rights to it.
PATH_ERRORS = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


class PatientConsole(Console):
    """A console whose reader may go away, as `| head -1` does: the work goes on, and nothing more is written."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on. (rich's own ends the process here.)"""
        self.quiet = True
        silence(self.file.fileno())


console = PatientConsole(highlight=False)
errors = PatientConsole(stderr=True, highlight=False)


def silence(descriptor: int) -> None:
    """Whatever is written to ``descriptor`` from now on goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def say(text: str, end: str = "\n") -> None:
    """Print a line as it is: no markup, no wrapping, whatever reads it."""
    console.print(text, markup=False, soft_wrap=True, end=end)


def write_raw(text: str) -> None:
    """Write ``text`` byte for byte, for a file or a pipe."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout.fileno())


def forgive_encoding() -> None:
    """Characters that the terminal's encoding does not have (✓ in GBK or Latin-1) become "?" and end no run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def ends(command: Callable[[], None]) -> None:
    """Run ``command`` and end the process as the contract says.

    0: success. 1: the job failed, one line says why. 2: what the user gave can't be, one line says what to do.
    128 + n: ended by signal n (130 for Ctrl-C, 143 for SIGTERM).
    """
    from rlreason.run.interrupt import Interrupted, catching_signals

    forgive_encoding()
    try:
        with catching_signals():
            command()
    except UsageError as error:
        _end("error:", str(error), 2)
    except HealthStop as error:
        _end("stopped:", "; ".join([str(error), *_notes(error)]), 1)
    except Interrupted as error:
        errors.print(escape(_one_line("; ".join(_notes(error)) or str(error))), soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("interrupted by SIGINT", soft_wrap=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("RLREASON_DEBUG"):
            raise
        if isinstance(error, PATH_ERRORS) and error.filename is not None and not _notes(error):
            _end("error:", f"{os.fsdecode(error.filename)}: {error.strerror}", 2)
        notes = "; ".join(_notes(error)) or "RLREASON_DEBUG=1 shows the traceback"
        _end("failed:", f"{type(error).__name__}: {error} ({notes})", 1)


def _end(word: str, text: str, code: int) -> None:
    errors.print(f"[bold red]{word}[/bold red] {escape(_one_line(text))}", soft_wrap=True)
    sys.exit(code)


def _notes(error: BaseException) -> list[str]:
    """What was added to an error on its way: where its traceback is, how to go on."""
    notes: list[str] = getattr(error, "__notes__", [])
    return notes


def _one_line(text: str) -> str:
    return " ".join(text.split())

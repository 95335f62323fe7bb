"""Problems from a function of the user's own: it gives rows, as a file would, or makes a procedural task.

``train = "rows.py:rows"``, ``"pkg.mod:rows"``, or the name that an installed package offers it by, in the group
``rlreason.data``. docs/extending.md has an example of both kinds.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

from rlreason import extensions
from rlreason.data.rows import NumberedRows, ProblemTable, RowFormat, problems_from_rows
from rlreason.errors import UsageError
from rlreason.tasks.task import Task

__all__ = ["is_function", "read_function"]


def is_function(name: str) -> bool:
    """Whether ``name``, a place of problems that is no task, is such a function's."""
    return extensions.is_code(name) or name in extensions.offered(extensions.DATA)


def read_function(
    name: str, options: Mapping[str, object], form: RowFormat, *, seed: int, setting: str, file: Path | None = None
) -> Task | ProblemTable:
    """Calls the function with ``options`` as keywords, and with ``seed`` if it has a parameter of that name.

    Rows are mappings with the columns of a data file. ``file`` is read in place of the one that ``name`` says.
    Raises UsageError naming ``setting`` where the function can't be had, fails, or gives something else.
    """
    target = extensions.located(name, file)
    function = extensions.load(extensions.DATA, target, setting)
    label = extensions.label(name)
    try:
        takes_seed = "seed" in inspect.signature(function).parameters
        given = function(**{**options, "seed": seed} if takes_seed else dict(options))
        if isinstance(given, Task):
            return given
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
            raise TypeError(f"it gives {type(given).__name__}, not rows (dicts, one a problem) or a Task")
        rows = [_row(row, number) for number, row in enumerate(given, start=1)]
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{setting}: {label} failed: {type(error).__name__}: {error}{_where(error)}") from error
    numbered: NumberedRows = enumerate(rows, start=1)
    return problems_from_rows(numbered, form, source=label)


def _row(row: object, number: int) -> Mapping[str, object]:
    if not isinstance(row, Mapping):
        raise TypeError(f"row {number} is {type(row).__name__}, not a dict such as {{'prompt': …, 'answer': …}}")
    return row


def _where(error: Exception) -> str:
    """The last line of the user's own code, as ``" (rows.py:3 in rows)"``."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != __file__]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""

"""``rlreason data convert``: the rows of a public code data set, to a file of problems for the verifier ``code``."""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from rlreason.data.code_sets.sets import BadRow, CodeSet, code_set, long_integers
from rlreason.data.files import SUFFIXES, locate, rows_of
from rlreason.data.hub import hub_rows, is_hub_id
from rlreason.data.rows import NumberedRows
from rlreason.errors import UsageError
from rlreason.progress import Watch
from rlreason.rewards.programs.tests import BadTests, read_tests


@dataclass(slots=True, kw_only=True)
class Conversion:
    """What became of the rows. Example: ``Conversion(problems=227, left_out={"no 'test' in it (…)": ["line 17"]})``."""

    problems: int = 0
    #: Why rows were left out, and which.
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str) -> None:
        """Count one row that no problem was made of."""
        self.left_out.setdefault(reason, []).append(where)

    def reasons(self) -> list[str]:
        """One line for each reason, the most frequent first: ``"3 rows: 'test' is empty (first: line 17)"``."""
        ordered = sorted(self.left_out.items(), key=lambda item: -len(item[1]))
        return [f"{_rows(len(places))}: {reason} (first: {places[0]})" for reason, places in ordered]

    @property
    def rows_left_out(self) -> int:
        """Rows that no problem was made of."""
        return sum(map(len, self.left_out.values()))


def convert(name: str, source: str, output: Path, watch: Watch = lambda done, total: None) -> Conversion:
    """Convert the rows of ``source``, a file or hub id of the set ``name``, into ``output`` (.jsonl or .jsonl.gz).

    A row that no problem can be made of is left out and counted. ``output`` appears when all rows are done, and not
    where none could be converted. Raises UsageError for a set, source or output that can't be.
    """
    chosen = code_set(name)
    _check_output(output)
    rows, unit = _opened(source, chosen.split)
    found = Conversion()
    with _all_or_nothing(output, keep=lambda: found.problems > 0) as out:
        for line in _problems(chosen, rows, unit, found):
            out.write(line)
            watch(found.problems + found.rows_left_out, None)
    return found


def _problems(chosen: CodeSet, rows: NumberedRows, unit: str, found: Conversion) -> Iterator[str]:
    keys: set[str] = set()
    for number, cells in rows:
        try:
            if isinstance(cells, UsageError):
                raise BadRow(_without_place(str(cells)))
            row = chosen.problem(cells)
            tests = row["tests"]
            assert isinstance(tests, Mapping)
            read_tests(tests)
        except (BadRow, BadTests) as error:
            found.leave_out(str(error), f"{unit} {number}")
            continue
        key = str(row.get("id") or f"{chosen.name}-{number}")
        row = {**row, "id": key if key not in keys else f"{key}#{number}"}
        keys.add(str(row["id"]))
        found.problems += 1
        with long_integers():
            line = json.dumps(row) + "\n"
        yield line


def _without_place(message: str) -> str:
    """The reason alone, of "rows.jsonl, line 17: not valid JSON": the place is counted with it."""
    return message.partition(": ")[2] or message


def _opened(source: str, split: str) -> tuple[NumberedRows, str]:
    if is_hub_id(source) and not source.endswith(SUFFIXES) and not Path(source).is_file():
        return hub_rows(source, split=split, setting="IN"), "row"
    return rows_of(locate(source))


def _check_output(output: Path) -> None:
    if not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise UsageError(f"{output}: problems are written as .jsonl or .jsonl.gz; name it so")
    if output.is_dir():
        raise UsageError(f"{output} is a folder: give a file")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: the folder {output.absolute().parent} does not exist")


@contextmanager
def _all_or_nothing(path: Path, keep: Callable[[], bool]) -> Iterator[TextIO]:
    """``path`` to write to; it appears when the block has ended, and only where ``keep`` says so."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)
    os.close(descriptor)
    try:
        # Without a time stamp, so the same rows are the same file.
        opened = gzip.GzipFile(temporary, "wb", mtime=0) if path.suffix == ".gz" else Path(temporary).open("wb")  # noqa: SIM115
        with opened, io.TextIOWrapper(cast("BinaryIO", opened), encoding="utf-8") as out:
            yield out
        if keep():
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
            os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _rows(count: int) -> str:
    return f"{count:,} row{'s' if count > 1 else ''}"

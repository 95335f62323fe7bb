"""Files of problems: where they are looked for, and their rows (see ``rows.py``)."""

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from rlreason.data.rows import NumberedRows, ProblemTable, RowFormat, problems_from_rows
from rlreason.errors import UsageError, nearest

__all__ = ["SUFFIXES", "MissingSource", "locate", "read_file", "rows_of"]

#: Environment variable: folders that hold data files, separated as in PATH.
DATA_PATH = "RLREASON_DATA"
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")


class MissingSource(UsageError):
    """The data isn't there at all, so that another place may be tried; what is there but wrong is a UsageError."""


def locate(name: str, base: Path | None = None) -> Path:
    """The file called ``name``: in ``base``, in the current folder, in each folder of $RLREASON_DATA.

    Raises MissingSource listing where it was looked for.
    """
    given = Path(name).expanduser()
    folders = [*([base] if base else []), Path()]
    folders += [Path(folder) for folder in os.environ.get(DATA_PATH, "").split(os.pathsep) if folder]
    candidates = [given] if given.is_absolute() else list(dict.fromkeys(folder / given for folder in folders))
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    files = [path for candidate in candidates for path in candidate.parent.glob(f"*{given.suffix}")]
    # Compared without the suffix, which all of them share.
    there = [path.name for path in files if nearest(given.stem, [path.stem])]
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise MissingSource(
        f"no data file {name!r}{nearest(given.name, there)} (looked for {looked}; folders can be added by ${DATA_PATH})"
    )


def read_file(path: Path, form: RowFormat, source: str | None = None) -> ProblemTable:
    """All problems of a file, in order. UsageError says what is wrong and where.

    ``source``: what the problems are named after where ``path`` is a copy of it.
    """
    rows, unit = rows_of(path)
    return problems_from_rows(rows, form, source=source or str(path), unit=unit)


def rows_of(path: Path) -> tuple[NumberedRows, str]:
    """The rows of a file with their numbers, and what it calls a row: "line" or "row". Raises UsageError."""
    kind = path.name.removesuffix(".gz")
    if kind.endswith((".jsonl", ".ndjson")):
        return _jsonl_rows(path), "line"
    if kind.endswith(".json"):
        return _json_rows(path), "row"
    if kind.endswith(".csv"):
        return _csv_rows(path), "row"
    if path.suffix == ".parquet":
        return _parquet_rows(path), "row"
    raise UsageError(f"{path}: data files end in {', '.join(SUFFIXES)}; convert it to one of them")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, those inside of it where it is compressed."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                yield cast("IO[bytes]", file)
        else:
            with path.open("rb") as file:
                yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: not readable as gzip: {error}") from error


def _jsonl_rows(path: Path) -> NumberedRows:
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _json_line(line, number, f"{path}, line {number}")


def _json_line(line: bytes, number: int, where: str) -> Mapping[str, object] | UsageError:
    try:
        row = json.loads(line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8"))
        if b"\\u" in line:
            # JSON can write half a surrogate pair, which is no text and which tokenizers fail on much later.
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return UsageError(
            f"{where}: not valid JSON: {error.msg} at character {error.pos + 1}; "
            "each line must be one whole JSON object"
        )
    except UnicodeError as error:
        return UsageError(f"{where}: not valid Unicode text: {error}; save it as UTF-8")
    except (ValueError, RecursionError) as error:
        return UsageError(f"{where}: not readable as JSON: {error}")
    if not isinstance(row, dict):
        return UsageError(f"{where}: a {type(row).__name__}; each line must be one whole JSON object")
    return row


def _json_rows(path: Path) -> NumberedRows:
    """Rows of one list of objects."""
    with _opened(path) as file:
        content = file.read()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
        json.dumps(rows, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        hint = "; a file with one object a line is a .jsonl" if b"}\n{" in content else ""
        raise UsageError(f"{path}: not readable as JSON: {error}{hint}") from None
    if not isinstance(rows, list):
        raise UsageError(f"{path}: holds a {type(rows).__name__}; a .json file of problems is one list of objects")
    for number, row in enumerate(rows, start=1):
        fits = isinstance(row, dict)
        yield number, row if fits else UsageError(f"{path}, row {number}: a {type(row).__name__}, not an object")


def _csv_rows(path: Path) -> NumberedRows:
    """Rows below a line of column names; an empty cell is one that the row does not have."""
    csv.field_size_limit(2**31 - 1)  # a reasoning trace is longer than the 128 KiB that are the default
    with _opened(path) as file:
        try:
            reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    yield number, UsageError(f"{path}, row {number}: not as many cells as there are columns")
                else:
                    yield number, {name: cell or None for name, cell in row.items()}
        except (csv.Error, UnicodeError) as error:
            raise UsageError(f"{path}: not readable as CSV in UTF-8: {error}") from None


def _parquet_rows(path: Path) -> NumberedRows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"{path}: Parquet needs pyarrow: pip install 'rlreason[train]', or give .jsonl") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path}: not readable as Parquet after {number} rows: {reason}") from error

"""Files of problems: where they are looked for, and their rows (see ``rows.py``)."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from rlreason.data.rows import RowFormat, problems_from_rows
from rlreason.errors import UsageError, nearest
from rlreason.types import Problem

__all__ = ["SUFFIXES", "MissingSource", "locate", "read_file"]

#: Environment variable: folders that hold data files, separated as in PATH.
DATA_PATH = "RLREASON_DATA"
SUFFIXES = (".jsonl", ".ndjson", ".parquet")


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


def read_file(path: Path, form: RowFormat, source: str | None = None) -> list[Problem]:
    """All problems of a .jsonl, .ndjson or .parquet file, in order. UsageError says what is wrong and where.

    ``source``: what the problems are named after where ``path`` is a copy of it.
    """
    if path.suffix in (".jsonl", ".ndjson"):
        return problems_from_rows(_jsonl_rows(path), form, source=source or str(path), unit="line")
    if path.suffix == ".parquet":
        return problems_from_rows(_parquet_rows(path), form, source=source or str(path), unit="row")
    raise UsageError(f"{path}: data files end in {', '.join(SUFFIXES)}; convert it to one of them")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.rstrip().decode("utf-8-sig" if number == 1 else "utf-8"))
                if b"\\u" in line:
                    # JSON can write half a surrogate pair, which is no text and which tokenizers fail on much later.
                    json.dumps(row, ensure_ascii=False).encode()
            except json.JSONDecodeError as error:
                raise UsageError(
                    f"{where}: not valid JSON: {error.msg} at character {error.pos + 1}; "
                    "each line must be one whole JSON object"
                ) from None
            except UnicodeError as error:
                raise UsageError(f"{where}: not valid Unicode text: {error}; save it as UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{where}: not readable as JSON: {error}") from None
            if not isinstance(row, dict):
                raise UsageError(f"{where}: a {type(row).__name__}; each line must be one whole JSON object")
            yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
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

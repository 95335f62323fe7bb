"""`rlreason data`: public code data sets, made into problems."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlreason.data.code_sets.sets import CODE_SETS
from rlreason.errors import UsageError
from rlreason.terminal import console, say

data_app = typer.Typer(help="Code data sets: list them, convert one.", invoke_without_command=True)
#: Reasons that are printed; the others are summed up.
_REASONS = 5


@data_app.callback()
def list_sets(context: typer.Context) -> None:
    """List the code data sets that can be converted, and where they are."""
    if context.invoked_subcommand is None:
        for one in CODE_SETS.values():
            say(f"{one.name:<18} {one.hub}")


@data_app.command()
def convert(
    name: Annotated[str, typer.Argument(metavar="SET", help=f"One of {', '.join(CODE_SETS)}.")],
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Its rows: a .jsonl, .json, .csv or .parquet file, or a hub id.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The problems: a .jsonl or .jsonl.gz file.")],
) -> None:
    """Make problems for the verifier `code` of the rows of a public data set.

    A row that no problem can be made of is left out, and the reason is said. Exit code 1 where that is every row.
    """
    from rlreason.convert import convert as convert_rows
    from rlreason.progress import counting

    with counting(console, name, "rows") as watch:
        found = convert_rows(name, source, output, watch)
    reasons = found.reasons()
    if not found.problems:
        if not reasons:
            raise UsageError(f"{source}: no rows in it; give a file with at least one")
        error = RuntimeError(f"{source}: none of its {found.rows_left_out:,} rows is a problem of {name}")
        error.add_note(reasons[0])
        raise error
    say(f"wrote {output}: {found.problems:,} problem{'s' if found.problems > 1 else ''}")
    if reasons:
        say(f"left out: {found.rows_left_out:,}")
    for line in reasons[:_REASONS]:
        say(f"  {line}")
    if len(reasons) > _REASONS:
        say(f"  and {len(reasons) - _REASONS} more reasons")

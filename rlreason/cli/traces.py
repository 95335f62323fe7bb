"""`rlreason traces check | export | import`: sets of traces outside of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlreason.errors import UsageError
from rlreason.terminal import say

traces_app = typer.Typer(help="Sets of traces: check, export, import.", no_args_is_help=True)
FormatOption = Annotated[str, typer.Option("--format", help="openr1, openthoughts or messages; import also: rows.")]


@traces_app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With traces.jsonl and card.json.")],
    verify: Annotated[bool, typer.Option(help="Ask the verifiers again.")] = True,
) -> None:
    """Verify every kept row again, filter it again, count the card anew; exit 1 where anything differs."""
    from rlreason.traces.sets import check_set

    found = check_set(folder, verify=verify)
    for fault in found.faults:
        say(fault)
    for name, (tried, taken) in found.perturbed.items():
        say(f"{name}: {taken:,} of {tried:,} correct answers are correct too where the gold answer is one more")
    if found.faults:
        say(f"{len(found.faults)} fault(s) in {found.rows:,} rows")
        raise typer.Exit(1)
    say(f"{found.rows:,} rows as their card says, {found.verified:,} verified again")


@traces_app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With traces.jsonl.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A .jsonl or .parquet file.")],
    form: FormatOption = "messages",
) -> None:
    """Write the kept rows as other trainers and data sets have them."""
    from rlreason.traces.formats import export_rows
    from rlreason.traces.rows import KEPT, row_file

    if out.exists():
        raise UsageError(f"{out} is there already")
    with row_file(folder / KEPT) as rows:
        count = export_rows(rows, out, form)
    say(f"wrote {out}: {count:,} lines of {form}")


@traces_app.command(name="import")
def import_(  # noqa: PLR0913, PLR0917  every option of the command
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A .jsonl or .parquet file.")],
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder of the set.")],
    form: FormatOption = "messages",
    against: Annotated[list[Path] | None, typer.Option(help="JSONL file of a benchmark; may be repeated.")] = None,
    keep_per_problem: Annotated[int, typer.Option(min=1, help="Most rows of one problem.")] = 4,
    keep_rejected: Annotated[bool, typer.Option(help="Write the rows that were stopped, too.")] = True,
    verify: Annotated[bool, typer.Option(help="Ask the math verifier where the file has a gold answer.")] = True,
    unverified: Annotated[bool, typer.Option(help="Keep rows that nothing judges.")] = False,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            help="A filter of the recipe's `filters`, such as format=none, language=0, repetition=1, max_tokens=0 or "
            "difficulty.above=0.1; may be repeated.",
        ),
    ] = None,
) -> None:
    """Make a set of a file of traces: verified, filtered, with its ledger and card. Where no row is kept, nothing is
    written, and the exit code is 2."""
    from rlreason.config import trace_filters
    from rlreason.traces.formats import read_traces_of
    from rlreason.traces.rows import spooled
    from rlreason.traces.sets import SetOptions, check_free, judge, write_set

    check_free(out)
    wanted = trace_filters(filters or ())
    benchmarks = (*wanted.decontaminate.against, *(str(one.absolute()) for one in against or ()))
    against_all = wanted.decontaminate.model_copy(update={"against": benchmarks})
    wanted = wanted.model_copy(update={"correct": wanted.correct and not unverified, "decontaminate": against_all})
    options = SetOptions(filters=wanted, keep_per_problem=keep_per_problem, keep_rejected=keep_rejected)
    judged = (judge(row) if verify else row for row in read_traces_of(path, form))
    there = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with spooled(judged, out) as rows:
            ledger = write_set(rows, out, options)
    finally:
        if not there and not any(out.iterdir()):
            out.rmdir()
    for line in ledger.lines():
        say(line)
    for name, hits in ledger.contaminated.items():
        say(f"  {name}: {hits:,} rows share words with it")
    if not ledger.kept:
        raise UsageError(
            f"{path}: {ledger.why_nothing()}, so nothing was written; say otherwise by --filter NAME=VALUE, such as "
            "--filter format=none, or keep rows that nothing judges by --unverified"
        )
    say(f"wrote {out}")

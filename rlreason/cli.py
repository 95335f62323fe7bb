"""The command line: wires rooms together, decides nothing.

Exit codes: 0 success, 1 the job failed (one-line reason), 2 usage or recipe error, 130 and 143 ended by Ctrl-C and
SIGTERM.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlreason.errors import UsageError

app = typer.Typer(
    name="rlreason",
    help="R1-style reasoning training: from a 2-core laptop to a GPU cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The shipped recipes: list, show, copy.", invoke_without_command=True)
app.add_typer(recipes_app, name="recipes")

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a .toml path.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as stage.grpo.steps=10.")
]

AcceptOption = Annotated[bool, typer.Option(help="Go on although data files or reward code changed.")]


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default runs/<recipe>-<time>.")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in --out, as `rlreason resume` does.")] = False,
    accept_changes: AcceptOption = False,
    replay: Annotated[Path | None, typer.Option(help="Follow the recorded schedule of this asynchronous run.")] = None,
) -> None:
    """Run every stage of a recipe and write a report."""
    from rlreason.config import load, locate
    from rlreason.job import JobOptions, run_job

    if resume and out is None:
        raise UsageError("--resume needs --out: which run directory to continue")
    path = locate(recipe)
    options = JobOptions(folder=out, command=_command(), resume=resume, accept_changes=accept_changes, replay=replay)
    report = run_job(load(path, tuple(overrides or ())), path, options, console)
    console.print(f"report: {report}", soft_wrap=True)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run directory to go on with.")],
    overrides: OverridesArgument = None,
    accept_changes: AcceptOption = False,
) -> None:
    """Go on with a run where it was interrupted, mid-stage; a stage may be given more steps."""
    from rlreason.config import load
    from rlreason.job import JobOptions, run_job
    from rlreason.run.manifest import read

    read(run_dir / "manifest.json")
    path = run_dir / "recipe.toml"
    options = JobOptions(folder=run_dir, command=_command(), resume=True, accept_changes=accept_changes)
    report = run_job(load(path, tuple(overrides or ())), path, options, console)
    console.print(f"report: {report}", soft_wrap=True)


@app.command()
def plan(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Say what a recipe would do: objective with its formula, batches, sizes; refuse contradictions."""
    from rlreason.config import load, locate
    from rlreason.plan import describe

    path = locate(recipe)
    console.print(describe(load(path, tuple(overrides or ())), path), markup=False, soft_wrap=True)


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face folder or hub id.")],
    suite: Annotated[str, typer.Option(help="Suite names, comma separated; see `rlreason eval --help`.")] = "heldout",
    data: Annotated[str | None, typer.Option(help="Problems: JSONL or Parquet file, hub id, or task name.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples per problem; 1 is greedy.")] = 1,
    problems: Annotated[int, typer.Option(min=1, help="Problems per suite, at most.")] = 500,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON results.")] = None,
) -> None:
    """Measure a model on held-out problems, with 95 % intervals."""
    from rlreason.evaluation import EvalRequest, evaluate_model

    request = EvalRequest(
        model=model,
        suites=tuple(name.strip() for name in suite.split(",")),
        data=data,
        samples=samples,
        problems=problems,
        max_tokens=max_tokens,
        out=out,
    )
    for line in evaluate_model(request):
        console.print(line)


@app.command()
def score(
    verifier: Annotated[str, typer.Option(help="Verifier name, such as math.")],
    input: Annotated[Path, typer.Option(help="JSONL rows {id, response, reference}.")],  # noqa: A002  the flag's name
    output: Annotated[Path, typer.Option(help="JSONL verdicts, same order.")],
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = os.cpu_count() or 1,
    timeout: Annotated[float, typer.Option(help="Seconds for one row, queueing not counted.")] = 10.0,
) -> None:
    """Score a file of responses with a verifier."""
    from rlreason.score_file import score_file

    counts = score_file(verifier, input, output, workers=workers, timeout=timeout)
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no rows")


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory.")]) -> None:
    """Write RUN_DIR/report.html: one self-contained file."""
    from rlreason.report import build

    console.print(f"report: {build(run_dir)}", soft_wrap=True)


@app.command()
def doctor() -> None:
    """Say what is installed here, what will be used, and what is missing."""
    from rlreason.doctor import findings

    for line in findings():
        console.print(line, markup=False)


@recipes_app.callback()
def list_recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        from rlreason.config import load, locate, shipped_recipes

        for name in shipped_recipes():
            console.print(f"{name:<18} {load(locate(name)).description}")


@recipes_app.command()
def show(name: Annotated[str, typer.Argument(help="Recipe name.")]) -> None:
    """Print a shipped recipe."""
    from rlreason.config import locate

    console.print(locate(name).read_text(encoding="utf-8"), markup=False, end="")


@recipes_app.command()
def copy(
    name: Annotated[str, typer.Argument(help="Recipe name.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="New .toml file.")],
) -> None:
    """Copy a shipped recipe to change it."""
    from rlreason.config import locate

    if destination.exists():
        raise UsageError(f"{destination} exists; choose another name")
    destination.write_text(locate(name).read_text(encoding="utf-8"), encoding="utf-8")
    console.print(f"wrote {destination}: rlreason run {destination}")


def main() -> None:
    """Entry point: turns exceptions into exit codes and one-line messages."""
    from rlreason.run.interrupt import Interrupted, catching_signals

    try:
        with catching_signals():
            app()
    except UsageError as error:
        errors.print(f"[bold red]error:[/bold red] {_plain(str(error))}", soft_wrap=True)
        sys.exit(2)
    except Interrupted as error:
        errors.print(_plain("; ".join(_notes(error)) or str(error)), soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if os.environ.get("RLREASON_DEBUG"):
            raise
        notes = "; ".join(_notes(error)) or "RLREASON_DEBUG=1 shows the traceback"
        errors.print(
            f"[bold red]failed:[/bold red] {type(error).__name__}: {_plain(f'{error} ({notes})')}", soft_wrap=True
        )
        sys.exit(1)


def _command() -> str:
    return shlex.join(["rlreason", *sys.argv[1:]])


def _notes(error: BaseException) -> list[str]:
    """What was added to an error on its way: where its traceback is, how to go on."""
    notes: list[str] = getattr(error, "__notes__", [])
    return notes


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))

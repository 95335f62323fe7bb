"""The command line: wires rooms together, decides nothing.

Exit codes: 0 success, 1 the job failed (one-line reason), 2 usage or recipe error, 130 and 143 ended by Ctrl-C and
SIGTERM.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlreason import __version__
from rlreason.cli.audit import auditing
from rlreason.cli.data import data_app
from rlreason.cli.doctor import doctor_app
from rlreason.cli.eval import judging
from rlreason.cli.models import modelling
from rlreason.cli.rewards import rewarding
from rlreason.cli.traces import traces_app
from rlreason.errors import UsageError
from rlreason.terminal import console, ends, say, write_raw

app = typer.Typer(
    name="rlreason",
    help="R1-style reasoning training: from a 2-core laptop to a GPU cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The shipped recipes: list, show, copy.", invoke_without_command=True)
app.add_typer(judging)
app.add_typer(auditing)
app.add_typer(rewarding)
app.add_typer(modelling)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(traces_app, name="traces")
app.add_typer(doctor_app, name="doctor")

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a .toml path.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as stage.grpo.steps=10.")
]


def _print_version(asked: bool) -> None:
    if asked:
        say(f"rlreason {__version__}")
        raise typer.Exit


VersionOption = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="And exit.")]


@app.callback()
def common(
    version: VersionOption = False,
) -> None:
    """R1-style reasoning training: from a 2-core laptop to a GPU cluster."""


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
    say(f"report: {report}")


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
    say(f"report: {report}")


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    gpu: Annotated[str | None, typer.Option(help="Plan for GPUs such as h100, and refuse what can't fit.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many in all; default: what the recipe asks for.")] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="Dollars of one GPU for an hour.")] = None,
    efficiency: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="Share of the GPU's peaks that is reached; default 0.4.")
    ] = None,
    delivery: Annotated[
        float | None, typer.Option(min=0.001, help="GB/s of a whole delivery; default: packed at 3.8, sent at 25.")
    ] = None,
) -> None:
    """Say what a recipe would do: objective with its formula, batches, memory, time; refuse contradictions."""
    from rlreason.config import load, locate
    from rlreason.plan.size import SizeOptions
    from rlreason.plan.text import describe

    if gpu is None and (gpus, price, efficiency, delivery) != (None,) * 4:
        raise UsageError("--gpus, --price, --efficiency and --delivery are of a --gpu: say which, such as --gpu h100")
    path = locate(recipe)
    bandwidth = None if delivery is None else delivery * 1e9
    size = SizeOptions(gpu=gpu, gpus=gpus, price=price, efficiency=efficiency, delivery=bandwidth)
    say(describe(load(path, tuple(overrides or ())), path, size))


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run directory, also of a run that goes on.")],
    other: Annotated[Path | None, typer.Argument(metavar="[OTHER]", help="Another one, to compare it with.")] = None,
    out: Annotated[Path | None, typer.Option(help="HTML file of a comparison; default comparison.html.")] = None,
) -> None:
    """Write RUN_DIR/report.html, or one page on two runs: a self-contained file."""
    from rlreason.report import build, build_comparison

    if other is not None:
        say(f"report: {build_comparison(run_dir, other, out or Path('comparison.html'))}")
        return
    if out is not None:
        raise UsageError("--out is for two runs: the report of one is always in its run directory")
    say(f"report: {build(run_dir)}")


@app.command()
def keys(
    table: Annotated[str | None, typer.Argument(metavar="[TABLE]", help="Such as sampler or stage.grpo.")] = None,
) -> None:
    """List the keys of a recipe: values, defaults, and what each is for."""
    from rlreason.config.keys import as_text, asked_tables

    say(as_text(asked_tables(table)))


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, for editors of TOML files such as taplo."""
    import json

    from rlreason.config.keys import schema as recipe_schema

    write_raw(json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n")


@recipes_app.callback()
def list_recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        _list_recipes()


@recipes_app.command(name="list")
def list_them() -> None:
    """List the shipped recipes."""
    _list_recipes()


def _list_recipes() -> None:
    from rlreason.config import load, locate, shipped_recipes

    names = shipped_recipes()
    width = max(map(len, names), default=0)
    for name in names:
        say(f"{name:<{width}} {load(locate(name)).description}")


@recipes_app.command()
def show(name: Annotated[str, typer.Argument(help="Recipe name.")]) -> None:
    """Print a shipped recipe."""
    from rlreason.config import locate

    write_raw(locate(name).read_text(encoding="utf-8"))


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
    say(f"wrote {destination}: rlreason run {shlex.quote(str(destination))}")


def main() -> None:
    """Entry point."""
    ends(app)


def _command() -> str:
    return shlex.join(["rlreason", *sys.argv[1:]])

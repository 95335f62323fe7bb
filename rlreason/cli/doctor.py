"""`rlreason doctor`: what is installed; `rlreason doctor numerics`: what a model's sampler and trainer disagree on;
`rlreason doctor canary`: whether what a recipe trains reaches its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlreason.terminal import say

doctor_app = typer.Typer(
    help="Say what is installed here, what will be used, and what is missing.", invoke_without_command=True
)


@doctor_app.callback()
def doctor(context: typer.Context) -> None:
    """Say what is installed here, what will be used, and what is missing."""
    if context.invoked_subcommand is not None:
        return
    from rlreason.doctor import findings

    for line in findings():
        say(line)


@doctor_app.command()
def numerics(  # noqa: PLR0913, PLR0917  every option of the command
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a .gguf file or a hub id.")],
    data: Annotated[
        str | None, typer.Option(help="Problems to ask: a file or a named set; default arithmetic.")
    ] = None,
    engine: Annotated[str, typer.Option(help="auto, transformers or vllm.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    problems: Annotated[int, typer.Option(min=1, help="Prompts.")] = 16,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each at most; more reach deeper.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the draws.")] = 1.0,
    top_p: Annotated[float, typer.Option(min=0.01, max=1.0, help="Of the draws; what is cut is replayed.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Of the draws; vLLM needs it beside --top-p.")] = 0,
    updates: Annotated[int, typer.Option(min=0, help="Also after each of so many GRPO updates: staleness.")] = 0,
    lr: Annotated[float, typer.Option(min=1e-12, help="Learning rate of the updates.")] = 1e-6,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Draw with an engine, score as a trainer does: how far the two are apart, by depth in the context.

    docs/mismatch.md says what the numbers mean and what to do.
    """
    from rlreason.numerics import NumericsRequest
    from rlreason.numerics import numerics as measure

    request = NumericsRequest(
        model=model,
        data=data,
        engine=engine,
        dtype=dtype,
        problems=problems,
        samples=samples,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        updates=updates,
        lr=lr,
        seed=seed,
    )
    for line in measure(request):
        say(line)


@doctor_app.command()
def canary(  # noqa: PLR0913, PLR0917  every option of the command
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a .toml path.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as sampler.delivery=delta.")
    ] = None,
    steps: Annotated[int, typer.Option(min=10, help="Steps of GRPO.")] = 20,
    problems: Annotated[int, typer.Option(min=2, help="Problems of each.")] = 16,
    samples: Annotated[int, typer.Option(min=2, help="Completions of each problem.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each completion at most.")] = 64,
    lr: Annotated[
        float | None, typer.Option(min=1e-12, help="Learning rate; default ten times the recipe's, up to 1e-3.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the run directory here.")] = None,
) -> None:
    """A reward for short completions must be learned in a few steps, through the recipe's own engine and delivery.

    Exit code 1 where lengths don't fall; docs/mismatch.md says what that means.
    """
    from rlreason.config import load, locate
    from rlreason.length_canary import CanaryRequest
    from rlreason.length_canary import canary as run

    path = locate(recipe)
    request = CanaryRequest(steps=steps, problems=problems, samples=samples, max_tokens=max_tokens, lr=lr, out=out)
    learned, lines = run(load(path, tuple(overrides or ())), path, request, f"rlreason doctor canary {recipe}")
    for line in lines:
        say(line)
    if not learned:
        raise typer.Exit(1)

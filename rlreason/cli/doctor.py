"""`rlreason doctor`: what is installed; `rlreason doctor numerics`: what a model's sampler and trainer disagree on."""

from __future__ import annotations

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
        seed=seed,
    )
    for line in measure(request):
        say(line)

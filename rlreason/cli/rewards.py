"""`rlreason rewards` and `rlreason rescore`: what rewards there are, and what another one would have said."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlreason.cores import usable_cores
from rlreason.errors import UsageError
from rlreason.terminal import console, say

rewarding = typer.Typer()
OptionsOption = Annotated[
    list[str] | None, typer.Option("--option", help="An option of the reward, such as limit=30; may be repeated.")
]
TokenizerOption = Annotated[str | None, typer.Option(help="Folder of the tokenizer that counts a response's tokens.")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one a core.")]
TimeoutOption = Annotated[float, typer.Option(help="Seconds for one completion, queueing not counted.")]
ConcurrencyOption = Annotated[int, typer.Option(min=1, help="Calls of an async reward under way at a time.")]


@rewarding.command()
def rewards(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A reward's name or plug-in.")] = None,
) -> None:
    """List the rewards that are installed, or say all about one."""
    from rlreason.rewards.listing import description, listing

    try:
        lines = listing() if name is None else description(name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    for line in lines:
        say(line)


@rewarding.command()
def rescore(  # noqa: PLR0913, PLR0917  every option of the command
    run: Annotated[str, typer.Argument(metavar="RUN_DIR[:STAGE]", help="A run whose stored rollouts are scored.")],
    reward: Annotated[str, typer.Option(help="A reward's name or plug-in.")],
    option: OptionsOption = None,
    out: Annotated[Path | None, typer.Option(help="JSONL file for the new results, one a completion.")] = None,
    tokenizer: TokenizerOption = None,
    workers: WorkersOption = None,
    timeout: TimeoutOption = 60.0,
    concurrency: ConcurrencyOption = 32,
) -> None:
    """Score a run's stored rollouts with another reward, and compare: nothing is drawn, no model is needed.

    Means, rank correlation, and the completions whose verdict changes.
    """
    from rlreason.outputs import checked_output, opened
    from rlreason.progress import counting
    from rlreason.reward_rows import rows_of_run
    from rlreason.reward_trials import (
        LENGTHS,
        as_text,
        compare,
        options_of,
        reward_of,
        score_rows,
        tokenizer_of,
        write_results,
    )
    from rlreason.rewards.running import Limits

    place = None if out is None else checked_output(out, "--out")
    mix, verifier = reward_of(reward, options_of(option or ()))
    found = rows_of_run(run, tokenizer_of(tokenizer))
    limits = Limits(workers=workers or usable_cores(), timeout=timeout, concurrency=concurrency)
    with counting(console, reward, "completions") as watch:
        results = score_rows(mix, verifier, found.rows, limits, watch)
    say(as_text(compare(found.rows, results), found, reward))
    if LENGTHS[found.lengths]:
        say(LENGTHS[found.lengths])
    if place is not None:
        with opened(place) as file:
            write_results(file, found.rows, results)
        say(f"wrote {place}")

"""`rlreason eval`, `rlreason score` and `rlreason suites`: the commands that judge answers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rlreason.cli.rewards import OptionsOption, TokenizerOption
from rlreason.cores import usable_cores
from rlreason.errors import UsageError
from rlreason.eval.suites import PROTOCOLS, SUITES, detectable
from rlreason.run import atomic
from rlreason.terminal import console, say

judging = typer.Typer()
_NAMES = ", ".join(SUITES)
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL|RUN_DIR[:STAGE]",
        help="Hugging Face folders, hub ids, or runs and their training stages; later ones are compared with the "
        "first.",
    ),
]
ProtocolOption = Annotated[
    str | None, typer.Option(help="; ".join(f"{one.name}: {one.about}" for one in PROTOCOLS.values()) + ".")
]
TemplateOption = Annotated[
    str | None, typer.Option(help='Arguments of the chat template in JSON: {"enable_thinking": false}; {}: none.')
]


@judging.command(name="eval")
def evaluate(  # noqa: PLR0913, PLR0917  every option of the command
    models: Models,
    against: Annotated[
        str | None, typer.Option(help="Another such model, or a folder of results, that each is compared with.")
    ] = None,
    suite: Annotated[str, typer.Option(help=f"Suites, comma separated, or .toml files: {_NAMES}.")] = "heldout",
    data: Annotated[str | None, typer.Option(help="Problems: JSONL or Parquet file, hub id, or task name.")] = None,
    problems: Annotated[int | None, typer.Option(min=1, help="Problems per suite, at most.")] = None,
    protocol: ProtocolOption = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples per problem; 1 is greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 is greedy; default 1 with several samples.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Most probable tokens only; 0: all.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the draws.")] = None,
    system: Annotated[str | None, typer.Option(help='System prompt; "" for none.')] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help='What each question is put into, with {prompt}; "" for the question alone.')
    ] = None,
    chat_template_kwargs: TemplateOption = None,
    shots: Annotated[int, typer.Option(min=0, help="Solved problems shown before each question.")] = 0,
    shots_from: Annotated[str | None, typer.Option(help="File or hub id with them; default the suite's own.")] = None,
    since: Annotated[str | None, typer.Option(help="First day of a suite with dates, as 2024-08-01.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day.")] = None,
    answer_style: Annotated[str | None, typer.Option(help="tags or boxed: how answers are prompted.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of --data with the question.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of --data with the gold answer.")] = None,
    answer_after: Annotated[str | None, typer.Option(help='Marker before the gold answer; "" for none.')] = None,
    verifier: Annotated[str | None, typer.Option(help="How answers are checked, such as math or code.")] = None,
    engine: Annotated[str | None, typer.Option(help="auto, transformers or vllm.")] = None,
    url: Annotated[str | None, typer.Option(help="OpenAI-compatible server that has MODEL, up to /v1.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="With --url: render prompts here, with this tokenizer.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="With --url: environment variable with the key.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that check answers.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and completions; a broken off one goes on.")
    ] = None,
) -> None:
    """Measure models on held-out problems, with 95 % intervals, and compare them problem by problem.

    A run directory brings its data, options, system prompt, format, verifier and engine: `rlreason eval runs/q:grpo`
    is what the run's report says of that stage. Without :STAGE it is the last one that trained. Options say what is
    different. docs/eval.md has examples.
    """
    options: dict[str, Any] = dict(locals())
    from rlreason.evaluation import EvalRequest
    from rlreason.evaluation.against import evaluate_all

    given = (("--tokenizer", tokenizer), ("--api-key-env", api_key_env))
    lonely = next((name for name, value in given if value is not None), None)
    if url is None and lonely is not None:
        raise UsageError(f"{lonely} is of a server: give --url too")
    options["chat_template_kwargs"] = _table("--chat-template-kwargs", chat_template_kwargs)
    names = tuple(name.strip() for name in options.pop("suite").split(","))
    first, *others = options.pop("models")
    other = options.pop("against")
    evaluate_all(EvalRequest(model=first, suites=names, **options), others, other, console)


def _table(option: str, text: str | None) -> dict[str, Any] | None:
    """The JSON object that an option gives. Raises UsageError where it is none."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{option} {text}: no JSON ({error}); write it as '{{\"enable_thinking\": false}}'") from None
    if not isinstance(found, dict):
        raise UsageError(f"{option} {text}: a JSON object is wanted, such as '{{\"enable_thinking\": false}}'")
    return found


@judging.command()
def suites() -> None:
    """List the suites of `rlreason eval --suite`, how small a difference of two models each can show, and where their
    problems are looked for."""
    for one in SUITES.values():
        names = (one.data,) if isinstance(one.data, str) else one.data or ("--data",)
        shown = f"; {one.size:,} problems, differences from {100 * detectable(one.size):.1f} points" if one.size else ""
        say(f"{one.name:<15} {one.about}{shown}: {', else '.join(names)}")


@judging.command()
def contamination(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Training data: files or hub ids.")],
    suite: Annotated[
        str, typer.Option(help="Suites, comma separated, or .toml files; all of them by default.")
    ] = "all",
    prompt_column: Annotated[str | None, typer.Option(help="Column of DATA with the question.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of DATA with the answer.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Only suites whose file is on this machine.")] = False,
    out: Annotated[Path | None, typer.Option(help="JSONL file for every match.")] = None,
) -> None:
    """Find problems of evaluation suites in training data: word for word, in other LaTeX, inside of other texts, with
    other numbers. A paraphrase is not found."""
    from rlreason.contamination import contamination_of, named, training_problems
    from rlreason.data.rows import Columns

    names = {"prompt": prompt_column, "answer": answer_column}
    columns = Columns(**{key: name for key, name in names.items() if name is not None})
    found = contamination_of(training_problems(data, columns), named(suite), local=local)
    if not found:
        raise UsageError("no suite's file is on this machine: leave out --local, or set $RLREASON_DATA to their folder")
    for one in found:
        say(str(one))
    if out is not None:
        rows = [{"suite": one.suite, **asdict(match)} for one in found for match in one.matches]
        atomic.write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@judging.command()
def score(  # noqa: PLR0913, PLR0917  every option of the command
    input: Annotated[Path, typer.Option(help="JSONL rows {id, response, reference}; tests for code.")],  # noqa: A002
    output: Annotated[Path, typer.Option(help="JSONL verdicts, same order.")],
    verifier: Annotated[
        str | None, typer.Option(help="Verifier's name, such as math or code, or a plug-in file.py:function.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="A reward or plug-in instead, on such rows or a run's.")] = None,
    option: OptionsOption = None,
    tokenizer: TokenizerOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one a core.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for one row; of code for one case. Default 60, code 10.")
    ] = None,
    marked_only: Annotated[
        bool, typer.Option("--marked-only", help="math: only boxes, answer tags, #### and 'answer is' count.")
    ] = False,
) -> None:
    """Score a file of responses with a verifier, or with any reward (docs/rewards.md).

    A row that can't be used (no response, an empty reference) is written as broken, with the reason as its detail, and
    counted at the end. A line that is no JSON object ends the command with exit code 2 before anything is scored.
    """
    from rlreason.progress import counting
    from rlreason.score_file import score_file

    if reward is not None and verifier is None and not marked_only:
        from rlreason.reward_trials import score_reward
        from rlreason.rewards.running import Limits

        limits = Limits(workers=workers or usable_cores(), timeout=timeout or 60.0)
        with counting(console, reward, "rows") as watch:
            lines = score_reward(reward, option or (), (input, output), tokenizer, limits, watch)
        for line in lines:
            say(line)
        return
    if verifier is None or reward is not None or tokenizer or (marked_only and verifier != "math"):
        raise UsageError(
            "score needs --verifier NAME or --reward NAME, one of the two; --tokenizer goes with --reward, "
            "--marked-only with --verifier math"
        )
    from rlreason.reward_trials import options_of

    with counting(console, verifier, "rows") as watch:
        counts = score_file(
            verifier,
            input,
            output,
            workers=workers or usable_cores(),
            timeout=timeout or (10.0 if verifier == "code" else 60.0),
            options={**options_of(option or ()), **({"marked_only": True} if marked_only else {})},
            watch=watch,
        )
    unusable = counts.pop("unusable", 0)
    say(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no rows")
    if unusable:
        say(f"rows that could not be used: {unusable} (broken in {output}, with the reason as their detail)")

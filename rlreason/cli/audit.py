"""`rlreason audit`: try a reward before a run trusts it."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from rlreason.errors import UsageError
from rlreason.secrets import mask
from rlreason.terminal import console, say

auditing = typer.Typer()


@auditing.command()
def audit(  # noqa: PLR0913, PLR0917  every option of the command
    reward: Annotated[
        str, typer.Argument(metavar="REWARD", help="As in a recipe: accuracy, format, judge.py:score, trl:…, verl:….")
    ],
    data: Annotated[
        Path | None, typer.Option(help="Labelled answers: JSONL {response, reference, correct}, or a run directory.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the reward, as in the recipe.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="verifier (judges answers) or shape (doesn't).")] = None,
    verifier: Annotated[str, typer.Option(help="Of the problems: math, countdown, code or a plug-in.")] = "math",
    template: Annotated[
        str | None, typer.Option(help="A form of response with {answer}, where the reward wants one of its own.")
    ] = None,
    allow: Annotated[str, typer.Option(help="What it may do: network, files, processes; comma separated.")] = "",
    score_range: Annotated[str | None, typer.Option("--range", help="Declared range of scores, such as 0,1.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Limit of one call.")] = None,
    memory_mb: Annotated[int | None, typer.Option(min=64, help="Limit of memory.")] = None,
    max_fp: Annotated[float, typer.Option(min=0, max=1, help="Share of wrong answers that may be paid.")] = 0.01,
    max_fn: Annotated[float, typer.Option(min=0, max=1, help="Share of right answers that may be refused.")] = 0.10,
    out: Annotated[Path | None, typer.Option(help="JSON file; the page is beside it, .html.")] = None,
) -> None:
    """Contract tests, a red team and calibration of one reward: exit 0 where it passed, 1 where not, 2 for a mistake.

    The JSON file is what `[reward] require_audit = true` looks for. docs/rewards.md says what is tried.
    """
    from rlreason.audit_file import Request, audit_file
    from rlreason.rewards.audit.calibrate import Bounds
    from rlreason.rewards.audit.conduct import Order
    from rlreason.rewards.audit.subject import Subject, options_of

    if kind not in {None, "verifier", "shape"}:
        raise UsageError(f"--kind {kind!r}: verifier or shape")
    if template is not None and "{answer}" not in template:
        raise UsageError(f"--template {template!r}: it needs {{answer}} where the answer goes")
    subject = Subject(
        name=reward,
        verifier=_verifier(reward, verifier),
        options=options_of(_options(option or [])),
        allowed=_allowed(allow),
        seconds=seconds,
        memory_mb=memory_mb,
    )
    order = Order(
        subject=subject,
        kind=kind,  # type: ignore[arg-type]
        data=data,
        template=None if template is None else template.replace("\\n", "\n"),
        declared_range=_range(score_range),
        bounds=Bounds(false_positive=max_fp, false_negative=max_fn),
        command=mask(shlex.join(["rlreason", *sys.argv[1:]])),
    )
    if not audit_file(Request(order=order, out=out), console, say):
        raise typer.Exit(1)


def _verifier(reward: str, given: str) -> str:
    """The verifier of the problems: a shipped verifier is given its own."""
    return reward if reward in {"countdown", "code"} else given


def _options(pairs: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise UsageError(f"--option {pair!r}: write KEY=VALUE, such as limit=30")
        try:
            found[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


def _allowed(text: str) -> frozenset[str]:
    from rlreason.rewards.audit.subject import ALLOWANCES

    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    unknown = sorted(names - set(ALLOWANCES))
    if unknown:
        raise UsageError(f"--allow {unknown[0]!r}: one of {', '.join(ALLOWANCES)}")
    return names


def _range(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UsageError(f"--range {text!r}: two numbers, such as 0,1") from None
    if low >= high:
        raise UsageError(f"--range {text!r}: the first must be below the second")
    return low, high

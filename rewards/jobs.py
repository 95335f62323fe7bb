"""What a reward worker does at once. ``running`` decides what is asked, and where."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from rlreason.rewards.calling import Asked, Scored, ask, ask_async, read_only
from rlreason.rewards.concurrent_worker import OUT_OF_MEMORY
from rlreason.rewards.mix import RewardMix, verdict_of
from rlreason.types import Completion, Problem, RewardResult

#: The recipe's, and its verifier alone.
Mixes = tuple[RewardMix, RewardMix]


class Call(NamedTuple):
    """What a worker does at once: some parts of the mix (of its verifier alone) for completions, and what the main part
    said of each. Several parts take one completion. A tuple, since thousands a second go to workers."""

    parts: tuple[int, ...]
    #: One for each completion.
    problems: tuple[Problem, ...]
    completions: tuple[Completion, ...]
    main: tuple[Scored | None, ...]
    #: Whether these are all parts there are: then the worker puts them together.
    whole: bool = False
    step: int = 0
    verify: bool = False
    #: Seconds for all of it.
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Lane:
    """Limits that a part has; None: those of the run. Parts with equal ones share workers."""

    concurrent: bool = False
    seconds: float | None = None
    memory_mb: int | None = None


def run_call(mixes: Mixes, exits: bool, call: Call) -> RewardResult | list[dict[int, Scored]]:
    """In a worker: what the parts say of each completion, or its reward. ``exits``: a process that ran out of memory
    holds what a reward left in it, so it goes, and the call is tried once more in a fresh one."""
    mix = mixes[call.verify]
    completions = read_only(call.completions)
    try:
        if len(call.parts) == 1 and not call.whole:
            scored = ask(mix.parts[call.parts[0]], _asked(call, completions))
            return [{call.parts[0]: one} for one in scored]
        found = _known(call.main[0])
        for index in call.parts:
            if mix.asks(index, call.problems[0], found):
                asked = Asked(call.problems, completions, (verdict_of(found),), call.step)
                found[index] = ask(mix.parts[index], asked)[0]
                if found[index].failed:
                    break
        return mix.combined(call.problems[0], found, call.step) if call.whole else [found]
    except MemoryError:
        if exits:
            os._exit(OUT_OF_MEMORY)
        raise


async def run_call_async(mixes: Mixes, call: Call) -> list[dict[int, Scored]]:
    """``run_call`` of one part, beside others."""
    part = mixes[call.verify].parts[call.parts[0]]
    return [{call.parts[0]: one} for one in await ask_async(part, _asked(call, read_only(call.completions)))]


def _asked(call: Call, completions: tuple[Completion, ...]) -> Asked:
    verdicts = tuple(verdict_of(_known(main)) for main in call.main)
    return Asked(problems=call.problems, completions=completions, verdicts=verdicts, step=call.step)


def _known(main: Scored | None) -> dict[int, Scored]:
    return {} if main is None else {0: main}


def seconds_of(call: object) -> float:
    """The limit of a call."""
    assert isinstance(call, Call)
    return call.seconds

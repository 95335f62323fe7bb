"""What a reward worker does at once. ``running`` decides what is asked, and where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from rlreason.rewards.calling import Asked, Scored, ask, ask_async, read_only
from rlreason.rewards.concurrent_worker import OUT_OF_MEMORY
from rlreason.rewards.mix import RewardMix, verdict_of
from rlreason.types import Completion, Problem

#: The recipe's, and its verifier alone.
Mixes = tuple[RewardMix, RewardMix]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a worker does at once: some parts of the mix (of its verifier alone) for completions, and what is known of
    each. Several parts take one completion."""

    parts: tuple[int, ...]
    #: One for each completion.
    problems: tuple[Problem, ...]
    completions: tuple[Completion, ...]
    known: tuple[Mapping[int, Scored], ...]
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


def run_call(mixes: Mixes, exits: bool, call: Call) -> list[dict[int, Scored]]:
    """In a worker: what the parts say of each completion. ``exits``: a process that ran out of memory holds what a
    reward left in it, so it goes, and the call is tried once more in a fresh one."""
    mix = mixes[call.verify]
    completions = read_only(call.completions)
    try:
        if len(call.parts) == 1:
            scored = ask(mix.parts[call.parts[0]], _asked(call, completions))
            return [{call.parts[0]: one} for one in scored]
        found = dict(call.known[0])
        for index in call.parts:
            if mix.asks(index, call.problems[0], found) and not any(one.failed for one in found.values()):
                asked = Asked(
                    problems=call.problems, completions=completions, verdicts=(verdict_of(found),), step=call.step
                )
                found[index] = ask(mix.parts[index], asked)[0]
        return [found]
    except MemoryError:
        if exits:
            os._exit(OUT_OF_MEMORY)
        raise


async def run_call_async(mixes: Mixes, call: Call) -> list[dict[int, Scored]]:
    """``run_call`` of one part, beside others."""
    part = mixes[call.verify].parts[call.parts[0]]
    return [{call.parts[0]: one} for one in await ask_async(part, _asked(call, read_only(call.completions)))]


def _asked(call: Call, completions: tuple[Completion, ...]) -> Asked:
    verdicts = tuple(verdict_of(known) for known in call.known)
    return Asked(problems=call.problems, completions=completions, verdicts=verdicts, step=call.step)


def seconds_of(call: object) -> float:
    """The limit of a call."""
    assert isinstance(call, Call)
    return call.seconds

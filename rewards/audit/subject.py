"""The reward that is audited, and one call of it. Both travel to the child process."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from rlreason.rewards import plugins
from rlreason.rewards.environment import from_option, to_argument
from rlreason.rewards.plugins.adapted import Per, listed
from rlreason.rewards.registry import Reward, check_options, entry_point_module, resolve, resolve_verifier
from rlreason.types import Completion, Problem, Verdict

#: Limits of a reward that declares none; of one that runs programs, which have limits of their own, the recipe's.
SECONDS, PROGRAM_SECONDS, MEMORY_MB = 10.0, 60.0, 4096
#: What a reward may be allowed to do beside computing.
ALLOWANCES = ("network", "files", "processes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Example: ``Subject(name="judge.py:score", verifier="math", options=(("limit", 3),))``."""

    name: str
    #: The ``Problem.verifier`` of the problems it is given.
    verifier: str
    options: tuple[tuple[str, object], ...] = ()
    allowed: frozenset[str] = frozenset()
    #: Wall seconds of one call, and address space of its process; None: what it declares, else those of a run.
    seconds: float | None = None
    memory_mb: int | None = None

    def entry(self) -> Reward:
        """The reward itself, loaded. Raises ValueError where there is none of that name, or an option is wrong."""
        entry = resolve(self.name)
        check_options(entry, dict(self.options))
        if self.name == "accuracy":
            resolve_verifier(self.verifier)
        return entry

    def limit(self, declared: float | None) -> float:
        """Wall seconds of one call."""
        programs = (self.verifier if self.name == "accuracy" else self.name) == "code"
        return self.seconds or declared or (PROGRAM_SECONDS if programs else SECONDS)

    @property
    def package(self) -> str:
        """Top package of the plug-in's module; "" of a file and of what ships."""
        if ":" in self.name:
            target = plugins.parse(self.name)
            return target.place.partition(".")[0] if target.is_module else ""
        return (entry_point_module(self.name) or "").partition(".")[0]

    def call(self, entry: Reward, call: Call) -> list[object]:
        """What it returns, one value a completion, unchecked. Raises what the reward raises."""
        keywords = {key: to_argument(from_option(value)) for key, value in self.options}
        given = {"verdict": call.verdicts[0], "verdicts": list(call.verdicts), "step": 0}
        keywords |= {name: given[name] for name in entry.injected}
        if entry.per == "completion":
            pairs = zip(call.problems, call.completions, call.verdicts, strict=True)
            return [_value(self._one(entry, pair, keywords)) for pair in pairs]
        first: object = call.problems[0] if entry.per == "group" else list(call.problems)
        value = _value(entry.function(first, list(call.completions), **keywords))
        return listed(value, len(call.completions), self.name)

    @staticmethod
    def _one(entry: Reward, pair: tuple[Problem, Completion, Verdict], keywords: dict[str, object]) -> object:
        problem, completion, verdict = pair
        if "verdict" in entry.injected:
            keywords = {**keywords, "verdict": verdict}
        function = resolve_verifier(problem.verifier).function if entry.name == "accuracy" else entry.function
        return function(problem, completion, **keywords)


def _value(value: object) -> object:
    """What an async function gives in the end."""
    if not inspect.isawaitable(value):
        return value

    async def main() -> object:
        return await value

    return asyncio.run(main())


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Completions to score at once, each with its problem and with what the main part of a mix would have said."""

    problems: tuple[Problem, ...]
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a reward says of itself, from the process that has loaded it; None where it doesn't say."""

    per: Per
    verifier: bool
    deterministic: bool
    seconds: float | None
    memory_mb: int | None
    doc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one completion got. Example: ``Answer(score=1.0, verdict="correct", shown="True")``."""

    score: float | None = None
    verdict: str = ""
    #: "raised", "type", "nan", "none", "timed_out", "crashed", "memory"; "" for a plain score.
    fault: str = ""
    #: What was returned or raised.
    shown: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal judgements."""
        return (self.score, self.verdict, self.fault, self.shown if self.fault == "raised" else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that a call did beside computing.

    Example: ``Event(kind="network", detail="socket.connect ('10.0.0.1', 80)")``.
    """

    kind: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One call and everything that was seen of it."""

    answers: tuple[Answer, ...]
    seconds: float = 0.0
    #: Asked of time.sleep or asyncio.sleep; beyond a blink it was not slept.
    slept: float = 0.0
    events: tuple[Event, ...] = ()
    #: What of the problem and the completions was different afterwards.
    changed: tuple[str, ...] = ()
    #: Globals of the plug-in that were different afterwards.
    state: tuple[str, ...] = ()
    resident_mb: float = 0.0

    @property
    def keys(self) -> tuple[tuple[object, ...], ...]:
        """See ``Answer.key``."""
        return tuple(one.key for one in self.answers)


def options_of(table: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    """Options in a fixed order."""
    return tuple(sorted(table.items()))

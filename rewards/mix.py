"""The recipe's ``[reward]`` table: a weighted sum of named parts.

``{"accuracy": 1.0, "format": 0.1, "overlong": {"weight": 0.5, "max_tokens": 48, "buffer": 16}}``
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, replace

from rlreason.rewards.plugins import parse
from rlreason.rewards.registry import Reward, check_options, resolve
from rlreason.types import Completion, Problem, RewardResult, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class MixPart:
    """Example: ``MixPart(name="overlong", weight=0.5, options=(("buffer", 16), ("max_tokens", 48)))``."""

    #: In metrics and details; of a plug-in file without its folders.
    name: str
    weight: float
    options: tuple[tuple[str, object], ...] = ()
    #: What the registry looks up, where it isn't ``name``.
    spec: str = ""

    @property
    def reward(self) -> Reward:
        """The function behind it."""
        return resolve(self.spec or self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardMix:
    """Scores one completion with every part. Picklable: workers look the functions up again by name.

    The *main* part decides the verdict: ``accuracy`` or another verifier where there is one, else the first part.
    Its score None (BROKEN, TIMED_OUT, unreadable gold) makes the whole score None; None from another part
    means that it does not apply, and adds nothing. An exception in any part is BROKEN.
    """

    parts: tuple[MixPart, ...]

    @classmethod
    def from_table(cls, table: Mapping[str, object], copies: Mapping[str, str] | None = None) -> RewardMix:
        """Check names, weights and options of a ``[reward]`` table; ValueError says which key is wrong and why.

        ``copies``: a plug-in as named in the table -> the one that is loaded instead of it.
        """
        if not table:
            raise ValueError("reward: the table is empty; it needs at least one part, such as accuracy = 1.0")
        labels = _labels(table)
        parts = tuple(
            _part(key, value, labels[key], copies[key] if copies and key in copies else key)
            for key, value in table.items()
        )
        for part in parts:
            check_options(part.reward, dict(part.options))
        return cls(parts=_main_first(parts))

    def __call__(self, problem: Problem, completion: Completion) -> RewardResult:
        started = time.perf_counter()
        main: RewardResult | None = None
        total = 0.0
        values: dict[str, float] = {}
        for part in self.parts:
            try:
                result = _call(part, problem, completion, main)
            except Exception as error:
                detail = f"{part.name}: {type(error).__name__}: {error}"[:500]
                broken = main or RewardResult(score=None, verdict=Verdict.BROKEN)
                return replace(
                    broken,
                    score=None,
                    verdict=Verdict.BROKEN,
                    parts=values,
                    detail=detail,
                    seconds=time.perf_counter() - started,
                )
            main = main or result
            if result.score is not None:
                values[part.name] = result.score
                total += part.weight * result.score
        assert main is not None
        return replace(
            main,
            score=None if main.score is None else total,
            parts=values,
            seconds=time.perf_counter() - started,
        )


def _labels(keys: Iterable[str]) -> dict[str, str]:
    """Key of the table -> name in metrics: short where that names one alone."""
    short = {key: parse(key).label if ":" in key else key for key in keys}
    counts = Counter(short.values())
    return {key: label if counts[label] == 1 else key for key, label in short.items()}


def _part(name: str, value: object, label: str, spec: str) -> MixPart:
    options = dict(value) if isinstance(value, Mapping) else {"weight": value}
    if "weight" not in options:
        raise ValueError(f"reward.{name}: no weight; write {{weight = 1.0, ...}}")
    weight = options.pop("weight")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ValueError(f"reward.{name}: the weight must be a number, not {weight!r}")
    return MixPart(
        name=label, weight=float(weight), options=tuple(sorted(options.items())), spec="" if spec == label else spec
    )


def _main_first(parts: tuple[MixPart, ...]) -> tuple[MixPart, ...]:
    """Main part first: the others may ask for its verdict."""
    main = next((p for p in parts if p.name == "accuracy" or p.reward.verifier), parts[0])
    return (main, *(p for p in parts if p is not main))


def _call(part: MixPart, problem: Problem, completion: Completion, main: RewardResult | None) -> RewardResult:
    entry = part.reward
    keywords = dict(part.options)
    if "verdict" in entry.injected:
        keywords["verdict"] = main.verdict if main else Verdict.UNPARSED
    value = entry.function(problem, completion, **keywords)
    if inspect.isawaitable(value):
        value = _wait(value)
    return as_result(value)


def as_result(value: object) -> RewardResult:
    """What a reward returned, in full. A positive number counts as correct; None as no verdict."""
    if isinstance(value, RewardResult):
        if value.score is not None and not math.isfinite(value.score):
            raise ValueError(f"the reward returned {value.score}, which is not finite")
        return value
    if value is None:
        return RewardResult(score=None, verdict=Verdict.BROKEN, detail="the reward returned None")
    score = float(value)  # type: ignore[arg-type]  # bool, int, float and NumPy scalars
    if not math.isfinite(score):
        raise ValueError(f"the reward returned {score}, which is not finite")
    return RewardResult(score=score, verdict=Verdict.CORRECT if score > 0 else Verdict.WRONG)


def _wait(value: Awaitable[object]) -> object:
    """Run an async reward to its end, also where an event loop already runs in this thread (a notebook)."""

    async def main() -> object:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    outcome: list[object] = []
    thread = threading.Thread(target=lambda: outcome.append(asyncio.run(main())))
    thread.start()
    thread.join()
    if not outcome:
        raise RuntimeError("the async reward failed")
    return outcome[0]

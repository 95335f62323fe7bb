"""The recipe's ``[reward]`` table: a weighted sum of named parts.

``{"accuracy": 1.0, "format": 0.1, "overlong": {"weight": 0.5, "max_tokens": 48, "buffer": 16}}``
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import pickle
import sysconfig
import threading
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace

from rlreason.rewards.environment import from_option, to_argument, without_secrets
from rlreason.rewards.plugins import parse
from rlreason.rewards.registry import Reward, check_options, resolve
from rlreason.types import Completion, Problem, RewardResult, Verdict

#: Characters of a result's texts that are kept.
MAX_DETAIL, MAX_EXTRACTED = 500, 10_000
#: Frames of these folders are not the reward's own.
_HERE, _STDLIB = os.path.dirname(__file__) + os.sep, sysconfig.get_path("stdlib") + os.sep


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
    means that it does not apply, and adds nothing. An exception in any part is BROKEN. ``verified`` is the main part's
    verdict where that part is a verifier, whatever the others did.

    Every part is given a problem of its own, so that none sees what another did to its reference.
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

    @property
    def verification(self) -> RewardMix:
        """The verifier alone, as evaluations ask it: each problem's own, with this table's options for accuracy."""
        accuracy = next((part for part in self.parts if part.name == "accuracy"), MixPart(name="accuracy", weight=1.0))
        return RewardMix(parts=(replace(accuracy, weight=1.0),))

    def __call__(self, problem: Problem, completion: Completion) -> RewardResult:
        started = time.perf_counter()
        main: RewardResult | None = None
        verified: Verdict | None = None
        total = 0.0
        values: dict[str, float] = {}
        own = _copies(problem)
        for part in self.parts:
            try:
                result = _call(part, own(), completion, main)
            except Exception as error:
                broken = main or RewardResult(score=None, verdict=Verdict.BROKEN)
                return replace(
                    broken,
                    score=None,
                    verdict=Verdict.BROKEN,
                    verified=verified,
                    parts=values,
                    detail=_what_failed(part, error),
                    seconds=time.perf_counter() - started,
                )
            if main is None:
                main = result
                if _is_verifier(part) and result.score is not None:
                    verified = result.verdict
            values.update({f"{part.name}/{name}": value for name, value in result.parts.items()})
            if result.score is not None:
                values[part.name] = result.score
                total += part.weight * result.score
        assert main is not None
        detail = main.detail if main.verdict is not Verdict.BROKEN else f"{self.parts[0].name}: {main.detail}"
        return replace(
            main,
            score=None if main.score is None else total,
            verified=verified,
            parts=values,
            detail=detail,
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
    options = {key: from_option(option) for key, option in options.items()}
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ValueError(f"reward.{name}: the weight must be a number, not {weight!r}")
    return MixPart(
        name=label, weight=float(weight), options=tuple(sorted(options.items())), spec="" if spec == label else spec
    )


def _main_first(parts: tuple[MixPart, ...]) -> tuple[MixPart, ...]:
    """Main part first: the others may ask for its verdict."""
    main = next((p for p in parts if _is_verifier(p)), parts[0])
    return (main, *(p for p in parts if p is not main))


def _is_verifier(part: MixPart) -> bool:
    return part.name == "accuracy" or part.reward.verifier


def _copies(problem: Problem) -> Callable[[], Problem]:
    """Gives a problem that nobody else sees at each call; text can't be changed, so then it is always the same."""
    if isinstance(problem.reference, str):
        return lambda: problem
    packed = pickle.dumps(problem, pickle.HIGHEST_PROTOCOL)
    return lambda: pickle.loads(packed)


def _what_failed(part: MixPart, error: Exception) -> str:
    """Part, error, and where in the reward's own code it was raised: ``"a.py:f: KeyError: 'no' (a.py:9 in f)"``."""
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    outside = [one for one in frames if not one[0].co_filename.startswith((_HERE, _STDLIB, "<frozen"))]
    entered = (outside or frames)[0 if outside else -1][0].co_filename
    code, line = next(one for one in reversed(frames) if one[0].co_filename == entered)
    where = f"{os.path.basename(code.co_filename)}:{line} in {code.co_name}"
    message = without_secrets(str(error), part.options)
    return plain_text(f"{part.name}: {type(error).__name__}: {plain_text(message, 300)} ({where})", MAX_DETAIL)


def _call(part: MixPart, problem: Problem, completion: Completion, main: RewardResult | None) -> RewardResult:
    entry = part.reward
    keywords = {key: to_argument(value) for key, value in part.options}
    if "verdict" in entry.injected:
        keywords["verdict"] = main.verdict if main else Verdict.UNPARSED
    value = entry.function(problem, completion, **keywords)
    if inspect.isawaitable(value):
        value = _wait(value)
    result = as_result(value)
    extracted = None if result.extracted is None else without_secrets(result.extracted, part.options)
    return replace(result, detail=without_secrets(result.detail, part.options), extracted=extracted)


def as_result(value: object) -> RewardResult:
    """What a reward returned, in full. A positive number counts as correct; None as no verdict."""
    if isinstance(value, RewardResult):
        return RewardResult(
            score=None if value.score is None else _finite(value.score),
            verdict=Verdict(value.verdict),
            extracted=None if value.extracted is None else plain_text(value.extracted, MAX_EXTRACTED),
            parts={plain_text(name, 100): _finite(part) for name, part in value.parts.items() if part is not None},
            detail=plain_text(value.detail, MAX_DETAIL),
            seconds=float(value.seconds),
        )
    if value is None:
        return RewardResult(score=None, verdict=Verdict.BROKEN, detail="the reward returned None")
    score = _finite(value)
    return RewardResult(score=score, verdict=Verdict.CORRECT if score > 0 else Verdict.WRONG)


def _finite(value: object) -> float:
    """A plain number of what may be a bool, an int, a float or a NumPy or torch scalar. Raises where it is none."""
    score = float(value)  # type: ignore[arg-type]
    if not math.isfinite(score):
        raise ValueError(f"the reward returned {score}, which is not finite")
    return score


def plain_text(value: object, limit: int) -> str:
    """``value`` as text that every file can hold: at most ``limit`` characters, lone surrogates written out."""
    return str(value)[:limit].encode("utf-8", "backslashreplace").decode()


def _wait(value: Awaitable[object]) -> object:
    """Run an async reward to its end, also where an event loop already runs in this thread (a notebook)."""

    async def main() -> object:
        return await value

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(main())
    outcome: Future[object] = Future()

    def in_thread() -> None:
        try:
            outcome.set_result(asyncio.run(main()))
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    return outcome.result()

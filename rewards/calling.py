"""One call of a reward: its arguments, what it may see and change, and what it gives, in full."""

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
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import NamedTuple

from rlreason.rewards.environment import FromEnvironment, to_argument, without_secrets
from rlreason.rewards.parts import MixPart
from rlreason.rewards.plugins.adapted import listed
from rlreason.rewards.registry import Reward
from rlreason.types import Completion, Problem, RewardResult, Verdict

#: Characters of a result's texts that are kept.
MAX_DETAIL, MAX_EXTRACTED = 500, 10_000
#: Values that can't be changed in place.
_FIXED = (str, int, float, bool, type(None))
#: Frames of these folders are not the reward's own.
_HERE, _STDLIB = os.path.dirname(__file__) + os.sep, sysconfig.get_path("stdlib") + os.sep


class Asked(NamedTuple):
    """Completions that a part is asked about together, with the problem of each. Example: ``Asked(problems=(p, p),
    completions=(c0, c1), verdicts=(Verdict.CORRECT, Verdict.WRONG))``."""

    problems: tuple[Problem, ...]
    completions: tuple[Completion, ...]
    #: The main part's, for parts that ask for them.
    verdicts: tuple[Verdict, ...]
    step: int = 0


class Scored(NamedTuple):
    """What a part said of one completion; ``failed``: it raised, ran out of time or died, and its result says so."""

    result: RewardResult
    failed: bool = False


def ask(part: MixPart, asked: Asked) -> list[Scored]:
    """Call a part in this process, also an asynchronous one. What it raises is BROKEN, for all that were asked."""
    began = time.perf_counter()
    try:
        entry = part.entry(asked.problems[0])
        values = _called(part, entry, asked)
        if inspect.isawaitable(values):
            values = _wait(values)
        return _scored(part, entry, values, asked, began)
    except Exception as error:
        return _broken(part, error, asked, began)


async def ask_async(part: MixPart, asked: Asked) -> list[Scored]:
    """``ask`` in an event loop that runs."""
    began = time.perf_counter()
    try:
        entry = part.entry(asked.problems[0])
        values = _called(part, entry, asked)
        if inspect.isawaitable(values):
            values = await values
        return _scored(part, entry, values, asked, began)
    except Exception as error:
        return _broken(part, error, asked, began)


def _called(part: MixPart, entry: Reward, asked: Asked) -> object:
    """What the function gives. It gets problems of its own, so that nobody sees what it does to a reference."""
    keywords = {key: to_argument(value) for key, value in part.options} if part.options else {}
    if entry.injected:
        given = {"verdict": asked.verdicts[0], "verdicts": list(asked.verdicts), "step": asked.step}
        keywords |= {name: given[name] for name in entry.injected}
    if entry.per == "completion":
        return entry.function(_own(asked.problems[0]), asked.completions[0], **keywords)
    if entry.per == "group":
        return entry.function(_own(asked.problems[0]), list(asked.completions), **keywords)
    own = {id(one): _own(one) for one in asked.problems}
    return entry.function([own[id(one)] for one in asked.problems], list(asked.completions), **keywords)


def _own(problem: Problem) -> Problem:
    """A problem that nobody else sees. Text can't be changed, so of text alone a dict of its own will do."""
    if not isinstance(problem.reference, str) or not all(isinstance(one, _FIXED) for one in problem.extra.values()):
        own: Problem = pickle.loads(pickle.dumps(problem, pickle.HIGHEST_PROTOCOL))
        return own
    return replace(problem, extra=dict(problem.extra)) if problem.extra else problem


def _scored(part: MixPart, entry: Reward, values: object, asked: Asked, began: float) -> list[Scored]:
    count = len(asked.completions)
    every = [values] if entry.per == "completion" else listed(values, count, part.name)
    seconds = (time.perf_counter() - began) / count
    results = [as_result(one, seconds) for one in every]
    if part.options and any(isinstance(value, FromEnvironment) for _, value in part.options):
        results = [_public(one, part) for one in results]
    return [Scored(one) for one in results]


def _public(result: RewardResult, part: MixPart) -> RewardResult:
    extracted = None if result.extracted is None else without_secrets(result.extracted, part.options)
    return replace(result, detail=without_secrets(result.detail, part.options), extracted=extracted)


def _broken(part: MixPart, error: Exception, asked: Asked, began: float) -> list[Scored]:
    if isinstance(error, MemoryError):
        raise error  # what this process holds is not the completion's fault: who runs it decides
    seconds = (time.perf_counter() - began) / len(asked.completions)
    result = RewardResult(score=None, verdict=Verdict.BROKEN, detail=_what_failed(part, error), seconds=seconds)
    return [Scored(result=result, failed=True)] * len(asked.completions)


def _what_failed(part: MixPart, error: Exception) -> str:
    """Part, error, and where in the reward's own code it was raised: ``"a.py:f: KeyError: 'no' (a.py:9 in f)"``."""
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    outside = [one for one in frames if not one[0].co_filename.startswith((_HERE, _STDLIB, "<frozen"))]
    entered = (outside or frames)[0 if outside else -1][0].co_filename
    code, line = next(one for one in reversed(frames) if one[0].co_filename == entered)
    where = f"{os.path.basename(code.co_filename)}:{line} in {code.co_name}"
    message = without_secrets(str(error), part.options)
    return plain_text(f"{part.name}: {type(error).__name__}: {plain_text(message, 300)} ({where})", MAX_DETAIL)


def as_result(value: object, seconds: float = 0.0) -> RewardResult:
    """What a reward returned, in full. A positive number counts as correct; None as no verdict. ``seconds``: it
    took."""
    if isinstance(value, RewardResult):
        return RewardResult(
            score=None if value.score is None else _finite(value.score),
            verdict=Verdict(value.verdict),
            extracted=None if value.extracted is None else plain_text(value.extracted, MAX_EXTRACTED),
            parts={plain_text(name, 100): _finite(part) for name, part in value.parts.items() if part is not None},
            detail=plain_text(value.detail, MAX_DETAIL),
            seconds=seconds,
        )
    if value is None:
        return RewardResult(score=None, verdict=Verdict.BROKEN, detail="the reward returned None", seconds=seconds)
    score = _finite(value)
    return RewardResult(score=score, verdict=Verdict.CORRECT if score > 0 else Verdict.WRONG, seconds=seconds)


def _finite(value: object) -> float:
    """A plain number of what may be a bool, an int, a float or a NumPy or torch scalar. Raises where it is none."""
    if isinstance(value, (str, bytes)):
        raise TypeError(f"the reward returned the text {plain_text(value, 50)!r}; it must return a number")
    score = float(value)  # type: ignore[arg-type]
    if not math.isfinite(score):
        raise ValueError(f"the reward returned {score}, which is not finite")
    return score


def plain_text(value: object, limit: int) -> str:
    """``value`` as text that every file can hold: at most ``limit`` characters, lone surrogates written out."""
    return str(value)[:limit].encode("utf-8", "backslashreplace").decode()


def read_only(completions: Sequence[Completion]) -> tuple[Completion, ...]:
    """The same with views of their arrays that can't be written to: where they came from, they stay as they are."""
    return tuple(map(_read_only, completions))


def _read_only(completion: Completion) -> Completion:
    prompt_ids, token_ids = completion.prompt_ids.view(), completion.token_ids.view()
    loss_mask, versions = completion.loss_mask.view(), completion.policy_versions.view()
    for array in (prompt_ids, token_ids, loss_mask, versions):
        array.flags.writeable = False
    return replace(
        completion, prompt_ids=prompt_ids, token_ids=token_ids, loss_mask=loss_mask, policy_versions=versions
    )


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

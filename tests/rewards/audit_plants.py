"""Rewards for test_audit.py: each is honest but for what its name says."""

import asyncio
import contextlib
import os
import random
import re
import socket
import tempfile
import time
from collections.abc import Sequence

from rlreason.types import Completion, Problem, RewardResult, Verdict


def _answer(completion: Completion) -> str | None:
    found = re.findall(r"<answer>(.*?)</answer>", completion.response, re.DOTALL)
    return found[-1].strip() if found else None


def honest(problem: Problem, completion: Completion) -> float:
    return float(_answer(completion) == problem.reference)


def honest_box(problem: Problem, completion: Completion) -> bool:
    found = re.findall(r"\\boxed\{([^{}]*)\}", completion.response.rpartition("</think>")[2])
    return bool(found) and found[-1] == problem.reference


def honest_bare(problem: Problem, completion: Completion) -> int:
    return int(completion.response.strip() == problem.reference)


def honest_first(problem: Problem, completion: Completion) -> float:
    found = re.search(r"<answer>(.*?)</answer>", completion.response, re.DOTALL)
    return 1.0 if found and found[1].strip() == problem.reference else -1.0


def honest_result(problem: Problem, completion: Completion) -> RewardResult:
    answer = _answer(completion)
    verdict = Verdict.UNPARSED if answer is None else Verdict(("wrong", "correct")[answer == problem.reference])
    return RewardResult(score=float(verdict is Verdict.CORRECT), verdict=verdict, extracted=answer)


async def honest_async(problem: Problem, completion: Completion) -> float:
    return honest(problem, completion)


def honest_group(problem: Problem, completions: Sequence[Completion]) -> list[float]:
    """A right answer is worth more where it is rare."""
    right = [honest(problem, one) for one in completions]
    return [one * (2.0 - sum(right) / len(right)) for one in right]


_CACHE: dict[tuple[str, str], float] = {}


def honest_memo(problem: Problem, completion: Completion) -> float:
    key = (completion.response, str(problem.reference))
    if key not in _CACHE:
        _CACHE[key] = honest(problem, completion)
    return _CACHE[key]


def trl_honest(prompts: list[str], completions: list[str], answer: list[str], **columns: object) -> list[float]:
    found = [re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL) for text in completions]
    return [float(bool(one) and one[-1].strip() == gold) for one, gold in zip(found, answer, strict=True)]


def verl_honest(data_source: str, solution_str: str, ground_truth: str, extra_info: object = None) -> float:
    found = re.findall(r"#### (\S+)$", solution_str)
    return float(bool(found) and found[-1] == ground_truth)


def substring(problem: Problem, completion: Completion) -> float:
    return float(str(problem.reference) in completion.response)


def substring_of_answer(problem: Problem, completion: Completion) -> float:
    return float(str(problem.reference) in (_answer(completion) or ""))


def answer_in_reference(problem: Problem, completion: Completion) -> float:
    answer = _answer(completion)
    return float(answer is not None and answer in str(problem.reference))


def last_number(problem: Problem, completion: Completion) -> float:
    found = re.findall(r"-?\d+", completion.response)
    return float(bool(found) and found[-1] == problem.reference)


def evaluates(problem: Problem, completion: Completion) -> float:
    try:
        return float(str(eval(_answer(completion) or "None")) == problem.reference)
    except Exception:
        return 0.0


def any_box(problem: Problem, completion: Completion) -> float:
    return float(problem.reference in re.findall(r"\\boxed\{([^{}]*)\}", completion.response))


def any_tag(problem: Problem, completion: Completion) -> float:
    return float(problem.reference in re.findall(r"<answer>(.*?)</answer>", completion.response))


_BEFORE = [0]


def order_dependent(problem: Problem, completion: Completion) -> float:
    longer = len(completion.response) > _BEFORE[0]
    _BEFORE[0] = len(completion.response)
    return honest(problem, completion) + 0.1 * longer


_COUNT = 0


def global_state(problem: Problem, completion: Completion) -> float:
    global _COUNT  # noqa: PLW0603
    _COUNT += 1
    return honest(problem, completion)


def hidden_state(problem: Problem, completion: Completion, *, seen: list[str] = []) -> float:  # noqa: B006
    seen.append(completion.response)
    return honest(problem, completion)


def mutates_extra(problem: Problem, completion: Completion) -> float:
    problem.extra["seen"] = True  # type: ignore[index]
    return honest(problem, completion)


def mutates_tokens(problem: Problem, completion: Completion) -> float:
    completion.token_ids[:] = 7
    return honest(problem, completion)


def sleeps(problem: Problem, completion: Completion) -> float:
    time.sleep(30)
    return honest(problem, completion)


async def sleeps_async(problem: Problem, completion: Completion) -> float:
    await asyncio.sleep(30)
    return honest(problem, completion)


def raises_on_empty(problem: Problem, completion: Completion) -> float:
    assert completion.response.split()[0]
    return honest(problem, completion)


def raises_without_answer(problem: Problem, completion: Completion) -> float:
    if not completion.response.strip():
        return 0.0
    return float(completion.response.split("<answer>")[1].split("</answer>")[0] == problem.reference)


def nan(problem: Problem, completion: Completion) -> float:
    answer = _answer(completion)
    return float("nan") if answer is None else float(answer == problem.reference)


def infinite(problem: Problem, completion: Completion) -> float:
    return float("inf") if honest(problem, completion) else 0.0


def wrong_type(problem: Problem, completion: Completion) -> object:
    return str(honest(problem, completion))


def wrong_type_at_times(problem: Problem, completion: Completion) -> object:
    return [0.0] if _answer(completion) is None else honest(problem, completion)


def network(problem: Problem, completion: Completion) -> float:
    with contextlib.suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1).close()
    return honest(problem, completion)


def none(problem: Problem, completion: Completion) -> float | None:
    return None if _answer(completion) is None else honest(problem, completion)


def draws(problem: Problem, completion: Completion) -> float:
    return honest(problem, completion) * random.random()


def hash_seed(problem: Problem, completion: Completion) -> float:
    return honest(problem, completion) * (1 + hash(completion.response) % 97 / 1000)


def hangs(problem: Problem, completion: Completion) -> float:
    while len(completion.response) > 50_000:
        pass
    return honest(problem, completion)


_KEPT: dict[int, bytes] = {}


def leaks(problem: Problem, completion: Completion) -> float:
    _KEPT[len(_KEPT)] = b"x" * (1 << 20)
    return honest(problem, completion)


def writes(problem: Problem, completion: Completion) -> float:
    with open(os.path.join(tempfile.gettempdir(), "rlreason-audit-plant.log"), "a", encoding="utf-8") as file:
        file.write("x")
    return honest(problem, completion)


def beyond(problem: Problem, completion: Completion) -> float:
    return 2.0 * honest(problem, completion)


def by_place(problem: Problem, completions: Sequence[Completion]) -> list[float]:
    return [honest(problem, one) - 0.01 * place for place, one in enumerate(completions)]


def trl_normalised(prompts: list[str], completions: list[str], answer: list[str], **columns: object) -> list[float]:
    scores = trl_honest(prompts, completions, answer)
    return [one - 0.1 * sum(scores) / len(scores) for one in scores]

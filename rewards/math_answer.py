"""``math``: is the answer mathematically equal to the gold answer?"""

from __future__ import annotations

from fractions import Fraction

from rlreason.rewards.extract import marked_answer
from rlreason.rewards.registry import verifier
from rlreason.types import Completion, Problem, RewardResult, Verdict


def _plain(text: str) -> str:
    return "".join(text.split()).replace("\\dfrac", "\\frac").replace("$", "").rstrip(".")


def _equal(gold: str, answer: str) -> bool:
    if _plain(gold) == _plain(answer):
        return True
    try:
        return Fraction(_plain(gold).replace(",", "")) == Fraction(_plain(answer).replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return False


@verifier("math")
def math(problem: Problem, completion: Completion) -> RewardResult:
    """Right if the extracted answer equals one of the golds."""
    reference = problem.reference
    golds = (reference,) if isinstance(reference, str) else reference
    if not isinstance(golds, tuple) or not golds:
        return RewardResult(score=None, verdict=Verdict.BROKEN, detail="the reference is no answer")
    answer = marked_answer(completion.response)
    if answer is None:
        return RewardResult(score=0.0, verdict=Verdict.UNPARSED)
    right = any(_equal(gold, answer) for gold in golds)
    verdict = Verdict.CORRECT if right else Verdict.WRONG
    return RewardResult(score=float(right), verdict=verdict, extracted=answer)

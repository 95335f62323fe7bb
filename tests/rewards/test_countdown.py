"""Countdown: exact values, each number once, no way around the parser."""

import time

import pytest

from rlreason.rewards.math.countdown import countdown
from rlreason.types import Completion, Problem, Verdict

REFERENCE = {"numbers": [3, 7, 25, 7], "target": 46}


def check(answer: str, *, reference: object = REFERENCE, use_all: bool = False, wrap: bool = True) -> Verdict:
    problem = Problem(id="p", prompt="", verifier="countdown", reference=reference)  # type: ignore[arg-type]
    text = f"<think>x</think><answer>{answer}</answer>" if wrap else answer
    completion = Completion(prompt_ids=(), token_ids=(), sampler_logprobs=None, text=text, finish_reason="stop")
    return countdown(problem, completion, use_all=use_all).verdict  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("3*7+25", "correct"),
        ("25 + 3 * 7", "correct"),
        ("(25+7*3)", "correct"),
        ("25+3\\times 7 = 46", "correct"),
        ("25 − 3 × −7", "correct"),
        ("7*(25/7+3)", "correct"),
        ("3*7+25 = 47", "wrong"),
        ("46", "wrong"),
        ("3*7+24", "wrong"),
        ("3*7*1+25", "wrong"),
        ("25+7+7+3", "wrong"),
        ("3*7+25-25+25", "wrong"),
        ("2 5+3*7", "wrong"),
        ("3*7+25; 1", "wrong"),
        ("3**7", "wrong"),
        ("3//7", "wrong"),
        ("3^7", "wrong"),
        ("3*7+25.0", "wrong"),
        ("3/(7-7)", "wrong"),
        ("(3*7+25", "wrong"),
        ("3*7+25)", "wrong"),
        ("3 7", "wrong"),
        ("٣*7+25", "wrong"),
        ("__import__('os').system('true')", "wrong"),
        ("46 = 46", "wrong"),
        ("= 46", "wrong"),
    ],
)
def test_answers(answer: str, verdict: str) -> None:
    assert check(answer) == verdict


def test_use_all() -> None:
    assert check("3*7+25", use_all=True) is Verdict.WRONG
    assert check("25+3*7", reference={"numbers": [3, 7, 25], "target": 46}, use_all=True) is Verdict.CORRECT


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("3*7+25", "unparsed"),
        ("<think><answer>3*7+25</answer>", "unparsed"),
        ("<think>a</think><answer></answer>", "unparsed"),
        ("<think>a</think>\\boxed{3*7+25}", "correct"),
        ("<think>a</think><answer>1</answer> <answer>3*7+25</answer>", "correct"),
    ],
)
def test_where_the_answer_stands(text: str, verdict: str) -> None:
    assert check(text, wrap=False) == verdict


@pytest.mark.parametrize(
    "reference", ["46", {"numbers": [1]}, {"numbers": ["x"], "target": 1}, {"numbers": 3, "target": 1}]
)
def test_a_bad_reference_is_broken(reference: object) -> None:
    assert check("3*7+25", reference=reference) is Verdict.BROKEN


@pytest.mark.parametrize(
    "answer",
    ["(" * 100_000 + "3" + ")" * 100_000, "-" * 50_000 + "3", "9" * 1_000_000, "1+" * 200_000 + "1", "1" + "*9" * 190],
)
def test_hostile_sizes_are_refused_at_once(answer: str) -> None:
    started = time.perf_counter()
    assert check(answer) is Verdict.WRONG
    assert time.perf_counter() - started < 20.0  # a hang, not a busy machine

"""Scored groups -> report: what counts as correct, tags, several samples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlreason.eval.summary import summarize
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict


def verified(verdict: Verdict) -> RewardResult:
    """As a verifier's own result has it: BROKEN and TIMED_OUT say nothing of the answer."""
    if verdict in (Verdict.BROKEN, Verdict.TIMED_OUT):
        return RewardResult(score=None, verdict=verdict)
    return RewardResult(score=float(verdict is Verdict.CORRECT), verdict=verdict, verified=verdict)


def group(name: str, verdicts: list[Verdict], tag: str) -> Group:
    completion = Completion(
        prompt_ids=(1,), token_ids=(2, 3), sampler_logprobs=(-0.1, -0.2), text="x", finish_reason="stop"
    )
    problem = Problem(id=name, prompt="?", verifier="math", reference="1", tags=(tag,))
    rewards = tuple(verified(v) for v in verdicts)
    return Group(group_id=name, problem=problem, completions_G=(completion,) * len(verdicts), rewards_G=rewards)


def test_accuracy_is_over_verified_answers() -> None:
    """1 right and 2 wrong of 3 verified; 1 broken and 1 timed out of 5 stand beside it."""
    groups = [
        group("a", [Verdict.CORRECT], "easy"),
        group("b", [Verdict.TIMED_OUT], "easy"),
        group("c", [Verdict.BROKEN], "hard"),
        group("d", [Verdict.UNPARSED], "hard"),
        group("e", [Verdict.WRONG], "hard"),
    ]
    report = summarize(groups, "m", "s")
    assert report.accuracy.value == pytest.approx(1 / 3)
    assert report.accuracy.count == 3
    assert (report.broken, report.timed_out) == (0.2, 0.2)
    assert report.verdicts == {"correct": 1, "timed_out": 1, "broken": 1, "unparsed": 1, "wrong": 1}
    assert report.by_tag["easy"].value == 1.0
    assert report.by_tag["hard"].value == 0.0
    assert report.mean_tokens == 2.0


def test_another_part_that_breaks_is_no_wrong_answer() -> None:
    """35 of 100 right answers whose auxiliary reward raised: 100 %, not 65 %."""
    right = group("a", [Verdict.CORRECT], "t")
    broke = RewardResult(score=None, verdict=Verdict.BROKEN, verified=Verdict.CORRECT)
    report = summarize([right] * 65 + [replace(right, rewards_G=(broke,))] * 35, "m", "s")
    assert report.accuracy.value == 1.0
    assert report.accuracy.count == 100
    assert report.broken == 0.0


def test_a_program_that_ran_too_long_failed() -> None:
    """A policy could choose to loop for ever: TIMED_OUT with a score is a failed answer, and counts."""
    late = RewardResult(score=0.0, verdict=Verdict.TIMED_OUT, verified=Verdict.TIMED_OUT)
    right = group("a", [Verdict.CORRECT], "t")
    report = summarize([right, replace(right, rewards_G=(late,))], "m", "s")
    assert (report.accuracy.value, report.timed_out) == (0.5, 0.0)


def test_no_verified_answer_is_no_accuracy() -> None:
    report = summarize([group("a", [Verdict.BROKEN, Verdict.BROKEN], "t")], "m", "s")
    assert (report.accuracy.count, report.accuracy.low, report.accuracy.high) == (0, 0.0, 1.0)
    assert (report.pass_at_k, report.by_tag) == ({}, {})
    assert (report.broken, report.timed_out) == (1.0, 0.0)


def test_pass_at_k_is_over_problems_with_k_verified_answers() -> None:
    right, wrong, broken = Verdict.CORRECT, Verdict.WRONG, Verdict.BROKEN
    report = summarize([group("a", [right, wrong], "t"), group("b", [wrong, broken], "t")], "m", "s")
    # pass@1: 1/2 of a, 0 of b; pass@2 of a alone, where one of the two is right
    assert report.pass_at_k == {1: pytest.approx(0.25), 2: pytest.approx(1.0)}


def test_several_samples_give_pass_at_k_over_problems() -> None:
    right, wrong = Verdict.CORRECT, Verdict.WRONG
    report = summarize([group("a", [right, wrong, wrong, wrong], "t"), group("b", [wrong] * 4, "t")], "m", "s")
    assert report.accuracy.value == pytest.approx(0.125)
    assert report.accuracy.count == 2  # problems are the independent observations
    # pass@2 of a: 1 − C(3,2)/C(4,2) = 0.5; of b: 0
    assert report.pass_at_k == {1: pytest.approx(0.125), 2: pytest.approx(0.25), 4: pytest.approx(0.5)}


def test_no_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="no groups"):
        summarize([], "m", "s")

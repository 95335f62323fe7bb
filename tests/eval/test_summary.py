"""Scored groups -> report: what counts as correct, tags, several samples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlreason.eval.summary import summarize
from rlreason.eval.voting import majority_at_k
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


def answered(name: str, answers: list[tuple[str, Verdict]]) -> Group:
    """One problem with these (extracted answer, verdict)."""
    made = group(name, [verdict for _, verdict in answers], "t")
    rewards = tuple(
        replace(one, extracted=text or None) for one, (text, _) in zip(made.rewards_G, answers, strict=True)
    )
    return replace(made, rewards_G=rewards)


def test_the_majority_by_hand() -> None:
    right, wrong, unparsed, broken = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED, Verdict.BROKEN
    # 0.5 and 1/2 are one wrong answer: 2 against 2 is a tie, worth 1/2
    tie = answered("a", [("3", right), ("0.5", wrong), ("3.0", right), ("\\frac12", wrong)])
    assert majority_at_k([tie], 4) == pytest.approx(0.5)
    # in runs of two: (3, 0.5) and (3.0, 1/2), a tie each
    assert majority_at_k([tie], 2) == pytest.approx(0.5)
    # no vote for what can't be read; what broke is no sample
    silent = answered("b", [("", unparsed), ("", unparsed), ("3", right), ("", broken)])
    assert majority_at_k([silent], 3) == 1.0
    assert majority_at_k([silent], 4) is None
    lost = answered("c", [("3", right), ("4", wrong), ("4 ", wrong), ("5", wrong)])
    assert majority_at_k([lost], 4) == 0.0
    assert majority_at_k([tie, silent, lost], 4) == pytest.approx(0.25)
    report = summarize([tie, lost], "m", "s")
    assert report.majority_at_k == {2: pytest.approx(3 / 8), 4: pytest.approx(1 / 4)}


def test_two_programs_that_are_written_apart_are_apart() -> None:
    code = answered("a", [("return 0.5", Verdict.WRONG), ("return 1/2", Verdict.WRONG), ("x", Verdict.CORRECT)])
    programs = replace(code, problem=replace(code.problem, verifier="code"))
    assert majority_at_k([programs], 3) == pytest.approx(1 / 3)


def test_what_stands_beside_every_number() -> None:
    cut = group("a", [Verdict.UNPARSED, Verdict.CORRECT], "t")
    long = replace(cut.completions_G[0], finish_reason="length")
    cut = replace(cut, completions_G=(long, cut.completions_G[1]))
    report = summarize([cut, group("b", [Verdict.CORRECT, Verdict.CORRECT], "t")], "m", "s")
    assert (report.truncated, report.unparsed, report.broken, report.timed_out) == (0.25, 0.25, 0.0, 0.0)
    # of a: p(1 - p) of (1 of 2) is 1/4 · 2/1 = 1/2; of b 0: √(1/4 / 2)
    assert report.rerun_deviation == pytest.approx((1 / 8) ** 0.5)
    assert summarize([group("c", [Verdict.CORRECT], "t")], "m", "s").rerun_deviation is None

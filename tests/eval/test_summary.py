"""Scored groups -> report: what counts as correct, tags, several samples."""

from __future__ import annotations

import pytest

from rlreason.eval.summary import summarize
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict


def group(name: str, verdicts: list[Verdict], tag: str) -> Group:
    completion = Completion(
        prompt_ids=(1,), token_ids=(2, 3), sampler_logprobs=(-0.1, -0.2), text="x", finish_reason="stop"
    )
    problem = Problem(id=name, prompt="?", verifier="math", reference="1", tags=(tag,))
    rewards = tuple(RewardResult(score=1.0 if v is Verdict.CORRECT else None, verdict=v) for v in verdicts)
    return Group(group_id=name, problem=problem, completions_G=(completion,) * len(verdicts), rewards_G=rewards)


def test_only_correct_counts() -> None:
    groups = [
        group("a", [Verdict.CORRECT], "easy"),
        group("b", [Verdict.TIMED_OUT], "easy"),
        group("c", [Verdict.BROKEN], "hard"),
        group("d", [Verdict.UNPARSED], "hard"),
    ]
    report = summarize(groups, "m", "s")
    assert report.accuracy.value == 0.25
    assert report.accuracy.count == 4
    assert report.verdicts == {"correct": 1, "timed_out": 1, "broken": 1, "unparsed": 1}
    assert report.by_tag["easy"].value == 0.5
    assert report.by_tag["hard"].value == 0.0
    assert report.mean_tokens == 2.0


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

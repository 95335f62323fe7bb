"""The curriculum: what is always solved is passed over, asked again later, and a state goes on just the same."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from rlreason.data.curriculum import Curriculum, solved
from rlreason.data.source import ProblemSource, SourceSpec, open_source
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict


@pytest.fixture
def source(tmp_path: Path) -> ProblemSource:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"{i}?", "answer": "1"}) + "\n" for i in range(6)))
    return open_source(SourceSpec(train=str(path)))


def begin(source: ProblemSource, skip: int = 2, retry: int = 5) -> Curriculum:
    return Curriculum(source=source, cursor=0, skip_solved_after=skip, retry_after=retry)


def played(curriculum: Curriculum, steps: range, easy: set[str]) -> list[list[str]]:
    """Ids asked for in each step of 3 problems, where those in ``easy`` are always solved."""
    asked = []
    for step in steps:
        ids = [problem.id for problem in curriculum.ask(step, 3)]
        curriculum.learned(step, {name: name in easy for name in ids})
        asked.append(ids)
    return asked


def test_nothing_solved_changes_nothing(source: ProblemSource) -> None:
    asked = played(begin(source), range(8), set())
    assert [name for step in asked for name in step] == [problem.id for problem in source.train(0, 24)]


def test_solved_twice_is_passed_over_until_its_retry(source: ProblemSource) -> None:
    easy = {"p0", "p1"}
    curriculum = begin(source, skip=2, retry=5)
    asked = played(curriculum, range(14), easy)
    for name in sorted(easy):
        steps = [step for step, ids in enumerate(asked) if name in ids]
        # Two epochs of two steps show it twice; then it is not asked for 5 steps after the last time it was solved.
        assert steps[0] <= 1 < steps[1] <= 3
        assert all(later - earlier >= 5 for earlier, later in pairwise(steps[1:]))
        assert len(steps) > 2
    hard = [name for ids in asked for name in ids if name not in easy]
    assert len(hard) == 14 * 3 - sum(name in easy for ids in asked for name in ids)
    # The hard ones still come once an epoch, in the order of the stream.
    assert len({hard.count(f"p{i}") for i in range(2, 6)}) <= 2


def test_a_failure_begins_the_count_anew(source: ProblemSource) -> None:
    curriculum = begin(source, skip=2)
    for step, right in enumerate((True, False, True)):
        curriculum.ask(step, 6)
        curriculum.learned(step, {f"p{i}": right for i in range(6)})
    assert curriculum.solved == {f"p{i}": (1, 2) for i in range(6)}
    assert len(curriculum.ask(3, 6)) == 6
    assert curriculum.passed_over == 0


def test_where_all_is_solved_the_next_is_asked_all_the_same(source: ProblemSource) -> None:
    curriculum = begin(source, skip=1, retry=1000)
    asked = played(curriculum, range(6), {f"p{i}" for i in range(6)})
    assert [len(ids) for ids in asked] == [3] * 6


def test_a_state_goes_on_and_an_untrained_step_is_asked_again(source: ProblemSource) -> None:
    easy = {"p1", "p4"}
    whole = played(begin(source), range(12), easy)
    for cut in range(12):
        first = begin(source)
        assert played(first, range(cut), easy) == whole[:cut]
        asked = [problem.id for problem in first.ask(cut, 3)]  # asked for, never trained
        state = json.loads(json.dumps(first.state()))
        again = begin(source)
        again.load(state)
        assert played(again, range(cut, 12), easy) == whole[cut:]
        assert asked == whole[cut]


def test_more_of_a_step_goes_on_behind_it(source: ProblemSource) -> None:
    curriculum = begin(source)
    found = curriculum.ask(0, 2) + curriculum.more(0, 3)
    assert found == source.train(0, 5)
    curriculum.learned(0, {})
    assert curriculum.ask(1, 1) == source.train(5, 1)


def test_solved_means_every_completion() -> None:
    def group(name: str, *verdicts: Verdict) -> Group:
        one = Completion(prompt_ids=(), token_ids=(), sampler_logprobs=None, text="", finish_reason="stop")  # type: ignore[arg-type]
        return Group(
            group_id=name,
            problem=Problem(id=name, prompt="", verifier="math", reference="1"),
            completions_G=(one,) * len(verdicts),
            rewards_G=tuple(RewardResult(score=1.0, verdict=verdict) for verdict in verdicts),
        )

    right, wrong, broken = Verdict.CORRECT, Verdict.WRONG, Verdict.BROKEN
    assert solved([group("a", right, right), group("b", right, wrong), group("c", right, broken)]) == {
        "a": True, "b": False, "c": False,
    }  # fmt: skip
    # The same problem twice in a step: both groups count.
    assert solved([group("a", right), group("a", wrong)]) == {"a": False}

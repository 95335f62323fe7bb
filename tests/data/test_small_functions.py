"""Task ``small_functions``: the sandbox takes the answer, and nothing that leaves a part of it out."""

import json
import re

import pytest

from rlreason.data.prompts import wrap
from rlreason.errors import UsageError
from rlreason.rewards.programs.verifier import check_program
from rlreason.rewards.registry import resolve_verifier
from rlreason.tasks.procedural import make_task
from rlreason.types import Completion, Problem, RewardResult, Verdict


def verify(problem: Problem, answer: str) -> Verdict:
    """The verdict that a run gives to a completion with this answer."""
    text = wrap("", answer, "tags")
    completion = Completion(prompt_ids=(), token_ids=(), sampler_logprobs=None, text=text, finish_reason="stop")
    result = resolve_verifier(problem.verifier).function(problem, completion)
    assert isinstance(result, RewardResult)
    return result.verdict


def run(problem: Problem) -> list[object]:
    """What the answer itself, in this process, makes of the verifier's inputs."""
    assert isinstance(problem.reference, dict)
    space: dict[str, object] = {}
    exec(str(problem.answer), space)
    function = space[problem.reference["entry_point"]]
    assert callable(function)
    return [function(*case["args"]) for case in problem.reference["cases"]]


def combination(problem: Problem) -> str:
    """What is asked, without the name, the example and the numbers."""
    return re.sub(r"\d", "", problem.prompt.partition("takes")[2].partition("For example")[0])


def test_the_answer_does_what_is_asked_and_held_out_combinations_are_new() -> None:
    task = make_task("small_functions", {"hidden": 4}, 5)
    asked: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for split in ("train", "heldout"):
        for problem in (task.problem(split, i) for i in range(300)):  # type: ignore[arg-type]
            assert isinstance(problem.reference, dict)
            cases = problem.reference["cases"]
            assert run(problem) == [case["expected"] for case in cases]
            assert len(cases) == 5
            assert cases[-1]["args"] == [[]]
            shown, expected = re.findall(r"For example: \w+\((.*)\) == (.*)", problem.prompt)[0]
            assert (json.loads(shown), json.loads(expected)) == (cases[0]["args"][0], cases[0]["expected"])
            assert set(f"{problem.prompt}{problem.thought}{problem.answer}") <= set(task.alphabet)
            asked[split].add(combination(problem))
    assert not asked["train"] & asked["heldout"]
    assert min(map(len, asked.values())) > 20


def test_the_sandbox_takes_the_answer_and_nothing_less() -> None:
    task = make_task("small_functions", {}, 0)
    for problem in [task.problem("train", i) for i in range(8)]:
        answer = str(problem.answer)
        assert verify(problem, answer) is Verdict.CORRECT
        assert verify(problem, f"```python\n{answer}\n```") is Verdict.CORRECT
        less = [re.sub(r" if .*?(?=[\])])", "", answer), re.sub(r"\(?[^(\[]* for x", lambda m: "x for x", answer)]
        for one in less:
            assert one == answer or verify(problem, one) is Verdict.WRONG, one
        shown = re.findall(r"\w+\((\[.*?\])\) == (.*)", problem.prompt)[0]
        name = answer[4:].partition("(")[0]
        learnt = f"def {name}(numbers):\n    return {shown[1]}"
        assert verify(problem, learnt) is Verdict.WRONG


def test_the_reference_alone_is_enough_for_the_checker() -> None:
    problem = make_task("small_functions", {}, 0).problem("heldout", 0)
    assert isinstance(problem.reference, dict)
    assert problem.answer is not None
    assert check_program(problem.answer, problem.reference).score == 1.0


def test_wrong_options_are_named() -> None:
    with pytest.raises(UsageError, match=r"small_functions: option 'hidden': Input should be greater than or equal"):
        make_task("small_functions", {"hidden": 1}, 0)
    with pytest.raises(UsageError, match="small_functions: unknown option 'hide'"):
        make_task("small_functions", {"hide": 1}, 0)

"""Task ``python_functions``: what the prompt says is what the answer does, checked by the sandbox and by reading it."""

import re
from itertools import pairwise

import pytest

from rlreason.data.prompts import wrap
from rlreason.errors import UsageError
from rlreason.rewards.programs.verifier import check_program
from rlreason.rewards.registry import resolve_verifier
from rlreason.tasks.procedural import make_task
from rlreason.types import Completion, Problem, RewardResult, Verdict

NAMES = "abcdef"
Example = tuple[list[int], list[int]]


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def examples_of(problem: Problem) -> list[Example]:
    """(arguments, outputs) of each example in the prompt."""
    found = re.findall(r"f\(([0-9,]+)\)=\[([0-9,]+)\]", problem.prompt)
    assert " ".join(f"f({arguments})=[{outputs}]" for arguments, outputs in found) == problem.prompt
    return [(numbers(arguments), numbers(outputs)) for arguments, outputs in found]


def cases_of(problem: Problem) -> list[Example]:
    """(arguments, expected) of each of the verifier's cases."""
    assert isinstance(problem.reference, dict)
    assert problem.reference["type"] == "function"
    assert problem.reference["entry_point"] == "f"
    return [(case["args"], case["expected"]) for case in problem.reference["cases"]]


def fitting(examples: list[Example], output: int) -> list[str]:
    """Every ``argument+constant`` that agrees with the examples, by trying them all."""
    return [
        f"{NAMES[place]}{added:+}"
        for place in range(len(examples[0][0]))
        for added in range(-9, 10)
        if all(arguments[place] + added == outputs[output] for arguments, outputs in examples)
    ]


def verify(problem: Problem, answer: str) -> RewardResult:
    """The verdict that a run gives to a completion with this answer."""
    text = wrap("", answer, "tags")
    completion = Completion(prompt_ids=(), token_ids=(), sampler_logprobs=None, text=text, finish_reason="stop")
    result = resolve_verifier(problem.verifier).function(problem, completion)
    assert isinstance(result, RewardResult)
    return result


@pytest.mark.parametrize(
    ("options", "arguments", "outputs", "hidden"),
    [({}, 3, 3, 4), ({"arguments": 4, "outputs": 2, "hidden": 2}, 4, 2, 2), ({"arguments": 1, "outputs": 1}, 1, 1, 4)],
)
def test_the_examples_name_one_function(options: dict[str, object], arguments: int, outputs: int, hidden: int) -> None:
    task = make_task("python_functions", options, 5)
    for problem in [task.problem("train", i) for i in range(200)] + [task.problem("heldout", i) for i in range(2)]:
        examples, cases = examples_of(problem), cases_of(problem)
        assert [len(given) for given, _ in examples] == [arguments] * 2
        assert [len(shown) for _, shown in examples] == [outputs] * 2
        found = [fitting(examples, output) for output in range(outputs)]
        assert problem.answer == f"def f({','.join(NAMES[:arguments])}):return[{','.join(f[0] for f in found)}]"
        assert [len(f) for f in found] == [1] * outputs
        assert cases[:2] == examples
        assert len(cases) == 2 + hidden
        for given, expected in cases:
            assert expected == [given[NAMES.index(f[0][0])] + int(f[0][1:]) for f in found]
        assert set(f"{problem.prompt}{problem.thought}{problem.answer}") <= set(task.alphabet)
    assert len(set(task.alphabet)) == len(task.alphabet)


def test_hidden_inputs_are_beyond_the_examples() -> None:
    task = make_task("python_functions", {"arguments": 2, "outputs": 1}, 0)
    for problem in [task.problem("train", i) for i in range(300)]:
        shown, hidden = cases_of(problem)[:2], cases_of(problem)[2:]
        # One digit and two: a table of everything that an example can hold passes nothing.
        assert all(value < 10 for given, _ in shown for value in given)
        assert all(10 <= value < 100 for given, _ in hidden for value in given)


def check_search(problem: Problem, *, complete: bool) -> int:
    """Every step of the thought is true and in its place; returns how many there are."""
    examples = examples_of(problem)
    assert problem.thought is not None
    slots = problem.thought.split("|")
    assert len(slots) == len(examples[0][1])
    count = 0
    for output, slot in enumerate(slots):
        right = NAMES.index(fitting(examples, output)[0][0])
        steps = [step for step in slot.split(";") if step]
        places = [NAMES.index(step[0]) for step in steps]
        assert all(a < b for a, b in pairwise(places))
        assert all(place <= right for place in places)
        assert not complete or places == list(range(right + 1))
        for step, place in zip(steps, places, strict=True):
            assert step[1:] == ",".join(f"{shown[output] - given[place]:+}" for given, shown in examples)
        count += len(steps)
    return count


def test_a_complete_thought_goes_through_the_arguments() -> None:
    task = make_task("python_functions", {"arguments": 4}, 1)
    for i in range(200):
        check_search(task.problem("train", i), complete=True)


def test_mental_steps_leaves_out_that_share_of_true_steps() -> None:
    full = make_task("python_functions", {}, 2)
    task = make_task("python_functions", {"mental_steps": 0.35}, 2)
    written = sum(check_search(task.problem("train", i), complete=False) for i in range(1000))
    whole = sum(check_search(full.problem("train", i), complete=True) for i in range(1000))
    # About 6000 steps: the standard deviation of the share is 0.009.
    assert abs(written / whole - 0.65) < 0.045
    assert {task.problem("train", i).thought for i in range(20)} != {
        full.problem("train", i).thought for i in range(20)
    }
    none = make_task("python_functions", {"mental_steps": 1.0}, 2)
    assert none.problem("train", 0).thought == "||"


def test_heldout_problems_are_the_same_for_every_mental_steps() -> None:
    tasks = [make_task("python_functions", {"mental_steps": share}, 3) for share in (0.0, 0.35)]
    assert [tasks[0].problem("heldout", i) for i in range(50)] == [tasks[1].problem("heldout", i) for i in range(50)]
    for i in range(50):
        check_search(tasks[1].problem("heldout", i), complete=True)


def test_no_heldout_function_is_a_training_function() -> None:
    task = make_task("python_functions", {"outputs": 2}, 0)
    heldout = {task.problem("heldout", i).answer for i in range(150)}
    assert len(heldout) == 150
    # Of the 3249 functions 406 are held out: without the split, about 90 of 2000 problems would be among these 150.
    other = make_task("python_functions", {"outputs": 2}, 1)
    train = {other.problem("train", i).answer for i in range(2000)}
    assert not train & heldout


def test_right_answers_pass_the_sandbox() -> None:
    task = make_task("python_functions", {}, 0)
    for problem in [task.problem(split, i) for split in ("train", "heldout") for i in range(20)]:
        assert problem.answer is not None
        assert verify(problem, problem.answer).verdict is Verdict.CORRECT
        # Another way of writing it is as right.
        rows = ",".join(f"{value.replace('+', ' + 1*')}" for value in problem.answer.split("[")[1][:-1].split(","))
        assert verify(problem, f"def f(a, b, c):\n    return list(({rows},))").score == 1.0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: re.sub(r"([0-9])\]$", lambda found: f"{(int(found[1]) + 1) % 10}]", str(p.answer)),
        lambda p: re.sub(r"return(\[.*\])$", r"return str(\1)", str(p.answer)),
        lambda p: str(p.answer) + ")",
        lambda p: "def f(a,b,c):return None",
        lambda p: "def g" + str(p.answer)[5:],
        # Only what the prompt shows.
        lambda p: f"def f(*a):return{ {tuple(given): shown for given, shown in examples_of(p)} }[a]",
    ],
    ids=["another constant", "a text", "syntax", "nothing", "another name", "a table of the examples"],
)
def test_wrong_answers_fail_the_sandbox(spoil) -> None:  # type: ignore[no-untyped-def]
    task = make_task("python_functions", {}, 0)
    for problem in [task.problem("train", i) for i in range(5)]:
        answer = spoil(problem)
        assert answer != problem.answer
        assert verify(problem, answer).verdict is Verdict.WRONG


def test_a_tuple_is_what_json_has_for_it() -> None:
    """The expected list is JSON, which has no tuples (docs/sandbox.md)."""
    problem = make_task("python_functions", {}, 0).problem("train", 0)
    answer = str(problem.answer).replace("return[", "return(").replace("]", ")")
    assert answer != problem.answer
    assert verify(problem, answer).verdict is Verdict.CORRECT


def test_the_reference_alone_is_enough_for_the_checker() -> None:
    # As `rlreason score` reads it from a file.
    problem = make_task("python_functions", {"hidden": 1}, 0).problem("train", 0)
    assert isinstance(problem.reference, dict)
    assert problem.answer is not None
    assert check_program(problem.answer, problem.reference).score == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arguments": 7}, "python_functions: option 'arguments': Input should be less than or equal to 6"),
        ({"mental_steps": 1.5}, "option 'mental_steps': Input should be less than or equal to 1"),
        ({"mental": 0.5}, "python_functions: unknown option 'mental'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_task("python_functions", options, 0)


def test_options_without_enough_functions_say_so() -> None:
    task = make_task("python_functions", {"arguments": 1, "outputs": 1}, 0)
    with pytest.raises(UsageError, match=r"python_functions: these options allow only \d+ held-out problems"):
        task.problem("heldout", 19)

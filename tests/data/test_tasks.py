"""Procedural tasks, re-checked by computations that share no code with them."""

import ast
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest

from rlreason.errors import UsageError
from rlreason.streams import Stream, permutation
from rlreason.tasks.arithmetic import Step, work_out, written
from rlreason.tasks.procedural import make_task
from rlreason.tasks.task import split_of
from rlreason.types import Problem

PINNED_STREAM = [913, 559, 994, 150, 566]
PINNED_PERMUTATION = [2, 4, 1, 0, 5, 3]
PINNED_PROMPT = "2+2+1+7-6="


def value_of(expression: str) -> Fraction:
    """Exact value of an expression, by Python's own grammar."""

    def walk(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() as number):
                return Fraction(number)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -walk(operand)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = walk(left), walk(right)
                if isinstance(op, ast.Add):
                    return a + b
                if isinstance(op, ast.Sub):
                    return a - b
                return a * b if isinstance(op, ast.Mult) else a / b
        raise AssertionError(ast.dump(node))

    return walk(ast.parse(expression, mode="eval").body)


def test_streams_never_change() -> None:
    # Values written down once: another numpy or Python must give the same problems.
    stream = Stream("arithmetic", {"b": 1, "a": [2]}, 0)
    assert [stream.below(1000) for _ in range(5)] == PINNED_STREAM
    assert permutation(6, "x", 1) == PINNED_PERMUTATION
    assert make_task("arithmetic", {}, 0).problem("train", 17).prompt == PINNED_PROMPT


def test_stream_is_uniform() -> None:
    stream = Stream("uniform")
    counts = Counter(stream.below(10) for _ in range(20_000))
    # Ten cells of 2000, standard deviation 42: five of them.
    assert set(counts) == set(range(10))
    assert max(abs(count - 2000) for count in counts.values()) < 212


def steps_of(terms: list[int], signs: str, in_head: str = "") -> list[str]:
    steps = work_out(terms, signs)
    return written(steps, [mark == "x" for mark in in_head.ljust(len(steps), ".")])


def test_work_out_by_hand() -> None:
    assert work_out([3, 5, 2], "+-") == [Step(3, "+", 5, 8), Step(8, "-", 2, 6, left_step=0)]
    assert steps_of([3, 5, 2], "+-") == ["3+5=8", "8-2=6"]
    # 3 + 5*2*1 - 4*2: products first, each from the left.
    assert steps_of([3, 5, 2, 1, 4, 2], "+**-*") == ["5*2=10", "10*1=10", "4*2=8", "3+10=13", "13-8=5"]


def test_steps_in_the_head_are_folded_into_the_next() -> None:
    assert steps_of([3, 5, 2], "+-", "x.") == ["3+5-2=6"]
    assert steps_of([3, 5, 2, 4], "--+", ".x.") == ["3-5=-2", "-2-2+4=0"]
    # 5*2=10, 10*1=10, 4*2=8, 3+10=13, 13-8=5 with the first, third and fourth in the head.
    assert steps_of([3, 5, 2, 1, 4, 2], "+**-*", "x.xx.") == ["5*2*1=10", "3+10-4*2=5"]


def test_mental_steps_change_demonstrations_and_nothing_else() -> None:
    options = {"min_terms": 3, "max_terms": 6, "operators": "+-*", "max_total": 99}
    full = make_task("arithmetic", options, 0)
    terse = make_task("arithmetic", options | {"mental_steps": 0.5}, 0)
    none = make_task("arithmetic", options | {"mental_steps": 1.0}, 0)
    kept = left = 0
    for split in ("train", "heldout"):
        for i in range(400):
            a, b, c = full.problem(split, i), terse.problem(split, i), none.problem(split, i)
            assert replace(b, thought=a.thought) == replace(c, thought=a.thought) == a
            assert a.thought is not None
            assert b.thought is not None
            for step in b.thought.split(";"):
                left_side, right_side = step.split("=")
                assert value_of(left_side) == int(right_side)
            assert c.thought == f"{a.prompt}{a.answer}"
            kept += b.thought.count(";")
            left += a.thought.count(";") - b.thought.count(";")
    # 800 problems with 2.5 steps before the last on average: half of about 2000, standard deviation 22.
    assert abs(kept - left) < 5 * 2 * 22


def check_arithmetic(problem: Problem, low: int, high: int, largest: int) -> None:
    chain = problem.prompt.removesuffix("=")
    terms = re.fullmatch(r"[1-9](?:[-+*][1-9])*", chain)
    assert terms, problem
    count = len(re.findall("[0-9]", chain))
    assert low <= count <= high
    assert problem.tags == (f"terms={count}",)
    assert problem.verifier == "math"
    assert problem.reference == problem.answer == str(value_of(chain))
    assert problem.thought is not None
    steps = problem.thought.split(";")
    assert len(steps) == count - 1
    for step in steps:
        left, right = step.split("=")
        assert value_of(left) == int(right)
        assert abs(int(right)) <= largest
    assert steps[-1].split("=")[1] == problem.answer
    if "*" not in chain:
        for before, after in pairwise(steps):
            assert after.startswith(before.split("=")[1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"operators": "+-*", "max_terms": 8, "max_total": 200},
        {"operators": "-+", "negatives": False, "min_terms": 3, "max_total": 20},
        {"operators": "+", "max_terms": 12, "max_total": 60},
    ],
)
def test_arithmetic_is_right(options: dict[str, object]) -> None:
    task = make_task("arithmetic", options, 5)
    problems = [task.problem(split, i) for split in ("train", "heldout") for i in range(300)]
    for problem in problems:
        low, high, largest = options.get("min_terms", 2), options.get("max_terms", 6), options.get("max_total", 99)
        check_arithmetic(problem, int(str(low)), int(str(high)), int(str(largest)))
        if options.get("negatives") is False:
            assert "=-" not in str(problem.thought)
        assert set(problem.prompt + str(problem.thought) + str(problem.answer)) <= set(task.alphabet)
    assert len(set(task.alphabet)) == len(task.alphabet)


def test_growth_raises_the_longest_chain() -> None:
    task = make_task("arithmetic", {"min_terms": 2, "max_terms": 6, "growth": 400}, 0)
    lengths = [int(task.problem("train", i).tags[0].removeprefix("terms=")) for i in range(800)]
    # From 2 to 6 over 400: one term more every 100 problems.
    assert [max(lengths[a : a + 100]) for a in (0, 100, 200, 300, 400, 500)] == [2, 3, 4, 5, 6, 6]
    plain = make_task("arithmetic", {"min_terms": 2, "max_terms": 6}, 0)
    assert [task.problem("heldout", i) for i in range(50)] == [plain.problem("heldout", i) for i in range(50)]


def check_countdown(problem: Problem, operators: str) -> None:
    numbers, target = re.fullmatch(r"([0-9 ]+) -> ([0-9]+)", problem.prompt).groups()  # type: ignore[union-attr]
    given = [int(number) for number in numbers.split()]
    assert problem.reference == {"numbers": given, "target": int(target)}
    assert problem.verifier == "countdown"
    assert problem.answer is not None
    assert problem.thought is not None
    assert Counter(map(int, re.findall("[0-9]+", problem.answer))) == Counter(given)
    assert value_of(problem.answer) == int(target)
    assert set(re.findall("[-+*/]", problem.answer)) <= set(operators)
    attempts = problem.thought.split(";")
    results = []
    for attempt in attempts:
        have = Counter(given)
        for step in attempt.split(","):
            left, right = step.split("=")
            assert value_of(left) == int(right) > 0
            have.subtract(int(number) for number in re.findall("[0-9]+", left))
            have[int(right)] += 1
        assert min(have.values()) == 0
        assert +have == Counter([int(right)])
        results.append(int(right))
    assert results[-1] == int(target)
    assert int(target) not in results[:-1]


@pytest.mark.parametrize(
    ("options", "operators"),
    [
        ({}, "+-*"),
        ({"count": 4, "operators": "+-*/", "max_number": 12}, "+-*/"),
        ({"count": 2, "operators": "+", "max_number": 60, "max_target": 100}, "+"),
    ],
)
def test_countdown_is_right(options: dict[str, object], operators: str) -> None:
    task = make_task("countdown", options, 5)
    for problem in [task.problem(split, i) for split in ("train", "heldout") for i in range(150)]:
        check_countdown(problem, operators)
        assert set(problem.prompt + str(problem.thought) + str(problem.answer)) <= set(task.alphabet)
    assert len(set(task.alphabet)) == len(task.alphabet)


def test_countdown_shows_no_more_failures_than_asked() -> None:
    task = make_task("countdown", {"tries": 1}, 0)
    counts = {str(task.problem("train", i).thought).count(";") for i in range(100)}
    assert counts == {0, 1}


def test_train_and_heldout_never_share_a_problem() -> None:
    # Another seed's and another curriculum's training problems are kept apart as well.
    heldout = {make_task("arithmetic", {"max_terms": 4}, 1).problem("heldout", i).prompt for i in range(100)}
    for seed, options in ((0, {"max_terms": 4}), (1, {"max_terms": 5, "growth": 500})):
        task = make_task("arithmetic", options, seed)
        own = [task.problem("heldout", i).prompt for i in range(500)]
        assert len(set(own)) == 500
        train = {task.problem("train", i).prompt for i in range(10_000)}
        assert not train & (heldout | set(own))


def test_countdown_splits_by_content_not_by_order() -> None:
    task = make_task("countdown", {"max_number": 9}, 0)

    def content(problem: Problem) -> str:
        numbers, target = problem.prompt.split(" -> ")
        return " ".join(sorted(numbers.split())) + target

    heldout = [content(task.problem("heldout", i)) for i in range(200)]
    assert len(set(heldout)) == 200
    assert not {content(task.problem("train", i)) for i in range(2000)} & set(heldout)


def test_heldout_share_is_about_an_eighth() -> None:
    share = sum(split_of(f"problem {i}") == "heldout" for i in range(8000)) / 8000
    # Standard deviation 0.0037.
    assert abs(share - 0.125) < 0.0185


@pytest.mark.parametrize("options", [{}, {"max_steps": 1}, {"min_steps": 2, "max_number": 99, "max_result": 500}])
def test_word_problems_are_right(options: dict[str, int]) -> None:
    task = make_task("word_problems", options, 5)
    stories: dict[str, set[str]] = {}
    for split in ("train", "heldout"):
        for problem in [task.problem(split, i) for i in range(120)]:  # type: ignore[arg-type]
            steps = str(problem.thought).removesuffix(".").split(". ")
            assert options.get("min_steps", 1) <= len(steps) <= options.get("max_steps", 3)
            given = Counter(map(int, re.findall("[0-9]+", problem.prompt)))
            made: list[int] = []
            for step in steps:
                left, right = step.split(" = ")
                assert value_of(left) == int(right) > 0
                assert int(right) <= options.get("max_result", 200)
                assert all(int(number) in {*given, *made} for number in re.findall("[0-9]+", left))
                made.append(int(right))
            assert problem.answer == problem.reference == str(made[-1])
            # Each given number is used, and all but the last result.
            used = Counter(int(number) for step in steps for number in re.findall("[0-9]+", step.split("=")[0]))
            assert not (given + Counter(made[:-1])) - used
            assert any(number % 10 == 7 for number in given) == (split == "heldout")
            assert "{" not in problem.prompt
            stories.setdefault(split, set()).update(problem.tags[1:])
    assert not stories["train"] & stories["heldout"]
    assert min(map(len, stories.values())) >= 3


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "python_functions", "small_functions", "word_problems"])
def test_problems_depend_on_nothing_but_seed_split_and_index(name: str) -> None:
    one, other = make_task(name, {}, 3), make_task(name, {}, 3)
    forwards = [one.problem(split, i) for split in ("train", "heldout") for i in range(30)]
    backwards = [other.problem(split, i) for split in ("heldout", "train") for i in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert make_task(name, {}, 4).problem("train", 0) != one.problem("train", 0)
    code = f"from rlreason.tasks.procedural import make_task; print(make_task({name!r}, {{}}, 3).problem('train', 7))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == str(one.problem("train", 7))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "arithmatic",
            {},
            "unknown task 'arithmatic'; did you mean 'arithmetic'? "
            "(allowed: arithmetic, countdown, python_functions, small_functions, word_problems)",
        ),
        (
            "arithmetic",
            {"min_term": 3},
            "arithmetic: unknown option 'min_term'; did you mean 'min_terms'? "
            "(allowed: min_terms, max_terms, operators, max_total, negatives, growth, mental_steps)",
        ),
        ("arithmetic", {"operators": "+/"}, "arithmetic: option 'operators': '+/' must be one or more of + - *"),
        ("arithmetic", {"max_terms": "3"}, "arithmetic: option 'max_terms': Input should be a valid integer"),
        ("arithmetic", {"min_terms": 1}, "option 'min_terms': Input should be greater than or equal to 2"),
        ("arithmetic", {"min_terms": 5, "max_terms": 3}, "arithmetic: max_terms=3 is below min_terms=5"),
        ("countdown", {"numbers": 3}, "countdown: unknown option 'numbers'"),
        ("countdown", {"operators": ""}, "countdown: option 'operators': '' must be one or more of + - * /"),
    ],
)
def test_wrong_options_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_task(name, options, 0)


def test_options_without_enough_problems_say_so() -> None:
    task = make_task("arithmetic", {"max_terms": 2, "operators": "+"}, 0)
    with pytest.raises(UsageError, match=r"arithmetic: these options allow only \d+ held-out problems; ask for fewer"):
        task.problem("heldout", 80)
    with pytest.raises(UsageError, match="no chain of 12 terms found with max_total=9"):
        make_task("arithmetic", {"min_terms": 12, "max_terms": 12, "operators": "+", "max_total": 9}, 0).problem(
            "train", 0
        )
    with pytest.raises(UsageError, match="countdown: no problem found with these options"):
        make_task("countdown", {"count": 6, "operators": "+", "max_target": 5}, 0).problem("train", 0)
    with pytest.raises(ValueError, match="counted from 0"):
        task.problem("train", -1)

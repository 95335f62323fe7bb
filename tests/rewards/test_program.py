"""The code verifier: kinds of tests, comparison, verdicts, partial scores, and programs that forge."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlreason.rewards.jail import data as jail_data
from rlreason.rewards.jail.data import NotPlain
from rlreason.rewards.jail.jail import Limits, capabilities
from rlreason.rewards.programs.compare import same_output, same_value
from rlreason.rewards.programs.verifier import check_program, code
from rlreason.rewards.registry import resolve_verifier
from rlreason.types import Completion, Problem, RewardResult, Verdict

needs_jail = pytest.mark.skipif(capabilities().level == "none", reason=f"needs a jail: {capabilities()}")
pytestmark = needs_jail
LIMITS = Limits(wall_seconds=3.0, cpu_seconds=3.0, total_seconds=10.0)


def calls(*cases: tuple[list[object], object], entry_point: str = "f", **more: object) -> dict[str, object]:
    listed = [{"args": arguments, "expected": expected} for arguments, expected in cases]
    return {"type": "function", "entry_point": entry_point, "cases": listed, **more}


def stdin(*cases: tuple[str, str], **more: object) -> dict[str, object]:
    return {"type": "stdin", "cases": [{"input": a, "output": b} for a, b in cases], **more}


def asserts(*lines: str, setup: str = "") -> dict[str, object]:
    return {"type": "asserts", "setup": setup, "asserts": list(lines)}


def checked(body: str) -> dict[str, object]:
    return {"type": "function", "entry_point": "f", "code": f"def check(candidate):\n{body}"}


def verdict(source: str, tests: dict[str, object]) -> Verdict:
    return check_program(source, tests, limits=LIMITS).verdict


# --- comparison -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("5\n", b"5", True), ("1 2\n3\n", b"\n 1\t2 \r\n\n3", True), ("1 2\n3\n", b"1 2 3", False),
        ("5", b"5 6", False), ("5 6", b"5", False),
        ("0.5", b"0.5000004", True), ("0.5", b"0.51", False), ("1000000.5", b"1000001.4", True),
        ("0.5", b"5e-1", True), ("0.5", b"nan", False), ("0.5", b"inf", False), ("5", b"5.0", True),
        ("5", b"5.0000001", False), ("12345678901234567890", b"12345678901234567891", False), ("yes", b"YES", False),
        ("", b"\n", True), ("", b"x", False), ("1.5 7", b"1.5 7.0000001", False), ("5", b"\xff", False),
        ("5", b"0x5", False),
        ("5", "\u0665".encode(), False), ("1", b"1_0", False), ("é", "é".encode(), True), ("5", b"1e99999", False),
    ],
)  # fmt: skip
def test_outputs(expected: str, output: bytes, *, same: bool) -> None:
    assert same_output(expected, output) is same


VALUES: list[Any] = [
    None, True, 0, 1, -1, 2**70, -(2**400), 10**5000, 0.0, 0.1, math.inf, -math.inf, "", "a\n", "\ud800", b"\x00",
    1 + 2j, [], [1], [1, [2.5]], (), (1,), (1, (2,)), {1, 2}, frozenset({1}), set(), {}, {1: [2], "a": (3,)},
    {(1, 2): {3}}, range(3), [[]], [None], {(1, (2,)), "x"}, [True], "1", [1, 2], (1, 2),
    {1: 2}, [2, 1], {"a": 1}, {2**400}, {True: 2}, {1: True},
    {True, 2}, {(True,)}, {(1,)},
]  # fmt: skip


def bools(value: Any) -> Any:
    """The shape of ``value``, with whether it is a boolean for each leaf."""
    if isinstance(value, (set, frozenset, dict)):
        return sorted(str(bools(item)) for item in (value.items() if isinstance(value, dict) else value))
    return [bools(item) for item in value] if isinstance(value, (list, tuple)) else isinstance(value, bool)


@pytest.mark.parametrize("expected", VALUES, ids=range(len(VALUES)))
def test_values_compare_as_python_does_but_for_booleans(expected: object) -> None:
    for value in VALUES:
        tree = jail_data.loads(jail_data.dumps(jail_data.to_tree(value)))
        # JSON has no tuples: one will do where a list is expected.
        found = list(value) if isinstance(expected, list) and isinstance(value, tuple) else value
        assert same_value(expected, tree) == (expected == found and bools(expected) == bools(found)), value
        back = jail_data.from_tree(tree)
        assert (type(back), back) == (type(value), value)


def test_nan_equals_an_expected_nan_only() -> None:
    nan = jail_data.to_tree(math.nan)
    assert same_value(math.nan, nan)
    assert same_value([math.nan], ["l", math.nan])
    assert not any(same_value(value, nan) for value in VALUES)
    assert not same_value(math.nan, 1.0)


def test_tolerance() -> None:
    assert not same_value(0.3, 0.1 + 0.2)
    assert same_value([0.3], ["l", 0.1 + 0.2], 1e-9)
    assert not same_value(10**400, 1.5, 1e-9)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[" * 5000, b"[" * 500 + b"]" * 500, b"9" * 5000, b'["zz"]', b"[[]]", b'["c","x"]', b'["d",[],1]'],
)
def test_malformed_trees_are_refused(data: bytes) -> None:
    with pytest.raises(NotPlain):
        jail_data.from_tree(jail_data.loads(data))


def test_repeated_elements_do_not_make_a_set() -> None:
    assert not same_value({1, 2}, ["s", 1, 1])
    assert not same_value({1: 1, 2: 2}, ["d", 1, 1, 1, 1])
    assert not same_value({1: 1, 2: 2}, ["d", 1, 1, 3, 2])


# --- kinds of tests -------------------------------------------------------------------------------------------------


def test_function_results_by_exact_type() -> None:
    assert verdict("def f(x): return x", calls(([1], 1.0), ([[1, 2]], [1, 2]), ([None], None))) is Verdict.CORRECT
    assert verdict("def f(x): return tuple(x)", calls(([[1, 2]], [1, 2]))) is Verdict.CORRECT
    assert verdict("def f(x): return [x]", calls(([1], (1,)))) is Verdict.WRONG
    # What a subclass holds counts, not what it says of itself.
    liar = "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\ndef f(x): return I(x)"
    assert verdict(liar, calls(([1], 1))) is Verdict.CORRECT
    assert verdict(liar, calls(([1], 2))) is Verdict.WRONG
    assert verdict("def f(*a, **k): return [a, k]", calls(([1], [(1,), {}]))) is Verdict.CORRECT


def test_keyword_arguments_and_solution_classes() -> None:
    tests = {"type": "function", "entry_point": "f", "cases": [{"args": [1], "kwargs": {"k": 2}, "expected": 3}]}
    assert verdict("def f(x, k): return x + k", tests) is Verdict.CORRECT
    assert verdict("class Solution:\n    def f(self, x, k): return x + k", tests) is Verdict.CORRECT


def test_arguments_are_new_for_each_call() -> None:
    row = [1, 2]
    assert verdict("def f(x):\n    x.append(0)\n    return len(x)", calls(([row], 3), ([row], 3))) is Verdict.CORRECT


def test_wrong_types_of_numbers() -> None:
    assert verdict("def f(x): return True", calls(([1], 1))) is Verdict.WRONG
    assert verdict("def f(x): return 1", calls(([1], True))) is Verdict.WRONG
    assert verdict("def f(x): return True", {**calls(([1], 1)), "tolerance": 0.1}) is Verdict.WRONG


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_counting_calls_does_not_help(first: int) -> None:
    # Right answers in the tests' order, whatever the arguments.
    hack = (
        f"n = {first} - 1\nanswers = [7, 0, -3, 5]\ndef f(a, b):\n    global n\n    n += 1\n    return answers[n % 4]"
    )
    pairs = [((3, 4), 7), ((0, 0), 0), ((-1, -2), -3), ((2, 3), 5)]
    assert verdict(hack, calls(*(([a, b], c) for (a, b), c in pairs))) is Verdict.WRONG
    assert verdict(hack, asserts(*(f"assert f({a}, {b}) == {c}" for (a, b), c in pairs))) is Verdict.WRONG
    assert (
        verdict(hack, checked("".join(f"    assert candidate({a}, {b}) == {c}\n" for (a, b), c in pairs)))
        is Verdict.WRONG
    )


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("after", ["k % len(answers)", "min(k, len(answers) - 1)"], ids=["starts over", "stays"])
def test_answers_by_number_that_fit_every_case_do_not_pass(count: int, after: str) -> None:
    tests = calls(*(([at], at * at + 1) for at in range(count)))
    for salt in range(8):  # which cases are called again depends on the text
        hack = f"k, answers = -1, {[at * at + 1 for at in range(count)]}  # {salt}\n"
        hack += f"def f(x):\n    global k\n    k += 1\n    return answers[{after}]"
        result = check_program(hack, tests, limits=LIMITS)
        assert (result.verdict, result.score) == (Verdict.WRONG, 0.0)
        assert "called again" in result.detail
        partial = check_program(hack, tests, limits=LIMITS, partial=True)
        assert partial.score == (count - 1) / count


def test_random_answers_and_counters_pass_honest_tests() -> None:
    dice = "import random\ndef f(n): return random.randrange(n) or random.SystemRandom().random()"
    assert verdict(dice, asserts("assert 0 <= f(6) < 6", "assert 0 <= f(9) < 9")) is Verdict.CORRECT
    counter = "n = 0\ndef f():\n    global n\n    n += 1\n    return n"
    assert verdict(counter, asserts("assert f() == 1", "assert f() == 2")) is Verdict.CORRECT


def test_checker() -> None:
    checker = "def check(input, output, expected):\n    return sum(map(int, output.split())) == int(input)"
    tests = stdin(("7", "3 4"), ("9", "4 5"), checker=checker)
    assert verdict("n = int(input())\nprint(1, n - 1)", tests) is Verdict.CORRECT
    assert verdict("n = int(input())\nprint(1, n)", tests) is Verdict.WRONG


@pytest.mark.parametrize(
    "checker",
    [
        "def check(*_): return 'yes'",
        "def check(*_): return 1 / 0",
        "def check(a): return True",
        "check = None",
        "1 / 0",
    ],
)
def test_a_checker_that_fails_on_its_own_expected_output_is_broken(checker: str) -> None:
    result = check_program("print(1)", stdin(("7", "1"), checker=checker), limits=LIMITS)
    assert (result.verdict, result.score) == (Verdict.BROKEN, None)
    assert "checker" in result.detail


@pytest.mark.parametrize(
    "printed", ["", "x", "9" * 5000, "0", "7 " * 100_000, "\\x00", "slow", "exit", "text"], ids=lambda text: text[:5]
)
@pytest.mark.parametrize("expected", ["3", ""])
def test_a_program_can_not_break_its_checker_to_go_unscored(printed: str, expected: str) -> None:
    checker = (
        "import sys, os\ndef check(input, output, expected):\n    if output == 'slow': __import__('time').sleep(60)\n"
        "    if output == 'exit': os._exit(0)\n    if output == 'text': return 'True'\n"
        "    sys.setrecursionlimit(50)\n    return 12 % int(output or 'x') == 0 and len(output) < 3"
    )
    tests = stdin(("12", expected), checker=checker)
    assert verdict("print(3, end='')", tests) is Verdict.CORRECT
    result = check_program(f"print('{printed}', end='')", tests, limits=Limits(wall_seconds=1.0, cpu_seconds=1.0))
    assert (result.verdict, result.score) == (Verdict.WRONG, 0.0)
    assert "the checker" in result.detail or printed.startswith("9")


def test_asserts_with_setup_and_builtin_names() -> None:
    tests = asserts("assert math.isclose(f(2), 2 ** 0.5)", setup="import math")
    assert verdict("def f(x): return x ** 0.5", tests) is Verdict.CORRECT
    assert verdict("def sum(a, b): return a * b", asserts("assert sum(2, 3) == 6")) is Verdict.CORRECT


def test_results_that_are_no_plain_data() -> None:
    stack = "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
    stack += "    def __len__(self): return len(self.items)\n"
    tests = asserts("s = Stack(); s.push(3); s.push(4); assert s.items == [3, 4] and len(s) == 2")
    assert verdict(stack, tests) is Verdict.CORRECT
    assert verdict("def f(n):\n    yield from range(n)", asserts("assert list(f(3)) == [0, 1, 2]")) is Verdict.CORRECT
    assert verdict("def f(n): return lambda x: x + n", asserts("assert f(3)(4) == 7")) is Verdict.CORRECT
    result = check_program("def f(n): return map(str, range(n))", calls(([2], ["0", "1"])), limits=LIMITS)
    assert result.verdict is Verdict.WRONG
    assert "map is not plain data" in result.detail


def test_exceptions_cross_by_class() -> None:
    body = "    try: candidate(0)\n    except ZeroDivisionError as e: assert 'zero' in str(e)\n    else: assert False\n"
    assert verdict("def f(x): return 1 / x", checked(body)) is Verdict.CORRECT
    assert verdict("def f(x): raise ValueError('zero')", checked(body)) is Verdict.WRONG
    custom = "class Bad(ValueError): pass\ndef f(x): raise Bad(x)"
    raises = "    try: candidate(0)\n    except ValueError: return\n    assert False\n"
    assert verdict(custom, checked(raises)) is Verdict.CORRECT


def test_what_the_tests_cannot_hand_over_runs_together_and_says_so() -> None:
    tests = asserts("assert f(lambda x: x + 1) == 2")
    result = check_program("def f(g): return g(1)", tests, limits=LIMITS)
    assert result.verdict is Verdict.CORRECT
    assert "weaker: the tests shared the program's process" in result.detail
    for wrong in ("def f(g): return 3", "def f(g):\n    import os\n    os._exit(0)", "def f(g): raise SystemExit"):
        assert verdict(wrong, tests) is Verdict.WRONG


def test_unittest_files() -> None:
    text = (
        "import unittest\nfrom unittest import mock\nfrom solution import f\n\nclass T(unittest.TestCase):\n"
        "    def test_a(self): self.assertEqual(f(1), 2)\n    def test_b(self):\n"
        "        with self.assertRaises(TypeError): f('x')\n"
    )
    tests: dict[str, object] = {"type": "unittest", "code": text}
    assert verdict("def f(x): return x + 1", tests) is Verdict.CORRECT
    assert verdict("def f(x): return x", tests) is Verdict.WRONG
    skip = "import unittest\ndef f(x): raise unittest.SkipTest('no')"
    assert verdict(skip, tests) is Verdict.WRONG
    assert verdict("def f(x): return x + 1", {"type": "unittest", "code": "x = 1"}) is Verdict.BROKEN


# --- programs that try to talk their way out -----------------------------------------------------------------------

FRAME = "import os, struct\ndef frame(data): os.write(3, struct.pack('>I', len(data)) + data)\n"
FORGERIES = {
    "its own set": "def set(x): return 0\ndef f(x): return x",
    "its own math": "class math:\n    isclose = lambda *a: True\ndef f(x): return x",
    "a finder": "class E:\n    def __eq__(self, o): return True\n    def __contains__(self, o): return True\n"
    "    def __iter__(self): return iter(range(99))\n    __hash__ = None\ndef f(x): return E()",
    "frames nobody asked for": FRAME + 'for _ in range(50): frame(b\'["done","x"]\')\ndef f(x): return x',
    "a judge's words": FRAME + "def f(x):\n    frame(b'[\"passed\",1]')\n    frame(b'[\"finished\"]')\n"
    '    frame(b\'["done",""]\')\n    return x',
    "endless frame": "import os\ndef f(x):\n    os.write(3, b'\\xff' * 4)\n    while True: os.write(3, b' ' * 65536)",
    "deep frame": FRAME + "def f(x):\n    frame(b'[\"value\",' + b'[' * 900 + b']' * 900 + b']')\n    os._exit(0)",
    "deep result": "def f(x):\n    for _ in range(98): x = [x]\n    return x",
    "assertion": "def f(x): raise AssertionError",
    "exit": "def f(x): raise SystemExit(0)",
    "no such function": "g = 1",
    "syntax": "def f(x:",
    "forks": "import os\ndef f(x):\n    os.fork()\n    return 0",
    "closed channel": "import os\ndef f(x): os.close(3)",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_fail(name: str) -> None:
    source = FORGERIES[name]
    square = "    assert set(candidate([2, 3])) == {4, 9}\n    assert 100 in candidate([10])\n"
    for tests in (
        calls(([[2, 3]], [4, 9]), ([[]], [])),
        checked(square),
        asserts("assert set(f([2, 3])) == set([4, 9])", "assert f(f([2])) == [16]", "assert 100 in f([10])"),
        asserts("assert math.isclose(f(3), 9)", setup="import math"),
    ):
        result = check_program(source, tests, limits=LIMITS)
        assert result.verdict in {Verdict.WRONG, Verdict.TIMED_OUT}, result
        assert result.score == 0.0


# --- verdicts and scores --------------------------------------------------------------------------------------------


def test_first_failure_is_told_and_ends_the_check() -> None:
    tests = stdin(("1", "1"), ("2", "3"), ("3", "4"))
    result = check_program("print(input())", tests)
    assert (result.verdict, result.score) == (Verdict.WRONG, 0.0)
    assert result.detail == "case 2 of 3: expected '3', got '2\\n'"


@pytest.mark.parametrize(
    ("source", "tests", "share"),
    [
        ("print(input())", stdin(("1", "1"), ("2", "3"), ("3", "3"), ("4", "5")), 0.5),
        ("def f(x): return 1 // x", calls(([1], 1), ([0], 0), ([2], 0), ([3], 1)), 0.5),
        ("import os\ndef f(x): return x if x else os._exit(0)", calls(([1], 1), ([0], 0), ([2], 2), ([0], 1)), 0.5),
        ("def f(x): return x", asserts("assert f(1) == 1", "assert f(2) == 3", "assert f(3) == 3", "assert 0"), 0.5),
        ("def f(x): return x", asserts("assert f(1) == 1", "assert f(2) == 2"), 1.0),
        ("def f(x): return x", checked("    assert candidate(1) == 1\n    assert candidate(2) == 3\n"), 0.0),
    ],
)
def test_partial_score(source: str, tests: dict[str, object], share: float) -> None:
    result = check_program(source, tests, partial=True, limits=LIMITS)
    assert result.score == share
    assert result.verdict is (Verdict.CORRECT if share == 1.0 else Verdict.WRONG)
    assert check_program(source, tests, limits=LIMITS).score == float(share == 1.0)


def test_limits_of_time() -> None:
    limits = Limits(wall_seconds=1.0, total_seconds=2.5)
    nap = "import time\nn = int(input())\ntime.sleep(n / 10)\nprint(n)"
    assert check_program(nap, stdin(("1", "1"), ("30", "30")), limits=limits).verdict is Verdict.TIMED_OUT
    total = check_program(nap, stdin(*((str(8), str(8)) for _ in range(9))), limits=limits)
    assert total.verdict is Verdict.TIMED_OUT
    assert total.score == 0.0
    assert check_program("while True: pass", calls(([], 1)), limits=limits).verdict is Verdict.TIMED_OUT
    assert check_program("def f(x):\n    while True: pass", checked("    candidate(1)"), limits=limits).verdict is (
        Verdict.TIMED_OUT
    )


def test_a_crash_after_the_answer_is_wrong() -> None:
    assert verdict("print(7)\n1/0", stdin(("", "7"))) is Verdict.WRONG


@pytest.mark.parametrize(
    "tests",
    [
        {}, {"type": "riddle"}, {"type": "stdin", "cases": []}, {"type": "stdin", "cases": [{"input": "1"}]},
        {"type": "stdin", "cases": [{"input": 1, "output": "1"}]}, {"type": "function", "cases": [{"args": []}]},
        {"type": "function", "entry_point": "f", "cases": [{"args": [object()], "expected": 1}]},
        {"type": "function", "entry_point": "f", "cases": [{"args": [1]}]}, {"type": "asserts", "asserts": []},
        {"type": "asserts", "asserts": ["assert ("]}, {"type": "unittest"},
        {"type": "function", "entry_point": "f", "code": 1},
    ],
)  # fmt: skip
def test_malformed_tests_are_broken(tests: dict[str, object]) -> None:
    result = check_program("def f(x): return x", tests)
    assert (result.verdict, result.score) == (Verdict.BROKEN, None)
    assert "tests" in result.detail


def score(response: str, reference: object, **options: object) -> RewardResult:
    problem = Problem(id="1", prompt="", verifier="code", reference=reference)  # type: ignore[arg-type]
    completion = Completion(prompt_ids=(), token_ids=(), sampler_logprobs=None, text=response, finish_reason="stop")
    return code(problem, completion, **options)  # type: ignore[arg-type]


def test_the_verifier() -> None:
    tests = calls(([2], 4))
    right = score("<think>x</think>\n```python\ndef f(x): return x * x\n```", tests)
    assert (right.verdict, right.score) == (Verdict.CORRECT, 1.0)
    assert right.extracted is not None
    assert right.extracted.strip() == "def f(x): return x * x"
    assert score("I don't know", tests).verdict is Verdict.UNPARSED
    assert score("```python\npass\n```", "4").verdict is Verdict.BROKEN
    assert score("```python\nimport time; time.sleep(9)\n```", tests, timeout=1.0).verdict is Verdict.TIMED_OUT
    assert resolve_verifier("code").function is code

"""Rows in the shape of each public code data set are judged as the set's own grader does: right and broken programs.

The rows are made of what the shared data has: HumanEval, MBPP, CodeContests, and the formats of program_cases, whose
``want`` was found with plain Python.
"""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlreason.data.code_sets.sets import CODE_SETS
from rlreason.rewards.jail.jail import capabilities
from rlreason.rewards.programs.extract import extract_program
from rlreason.rewards.programs.verifier import check_program
from rlreason.types import Verdict

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the shared data sets in {DATA}"),
    pytest.mark.skipif(capabilities().level == "none", reason=f"needs a jail: {capabilities()}"),
]
Row = dict[str, Any]


def rows_of(name: str) -> Iterator[Row]:
    with (DATA / f"{name}.jsonl").open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def judged(name: str, row: Mapping[str, object], program: str | None = None) -> Verdict:
    """The verdict of ``program``, or of the reference solution, on a row of the set ``name``."""
    problem = CODE_SETS[name].problem(row)
    tests, solution = problem["tests"], problem.get("solution") if program is None else program
    assert isinstance(tests, Mapping)
    assert isinstance(solution, str)
    return check_program(solution, json.loads(json.dumps(tests)), packages=("numpy",)).verdict


PLUS = """
import numpy as np


def is_floats(x):
    if isinstance(x, float):
        return True
    return isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)


def assertion(out, exp, atol):
    exact_match = out == exp
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        np.testing.assert_allclose(out, exp, atol=atol)
    else:
        assert exact_match

"""


@pytest.mark.parametrize("name", ["humaneval", "humaneval_plus"])
def test_humaneval(name: str) -> None:
    """With every seventh problem: its solution, and its solution with nothing in the function."""
    for one in list(rows_of("humaneval"))[::7]:
        row = {
            "task_id": one["id"],
            "prompt": one["prompt"],
            "canonical_solution": one["solution"],
            "test": (PLUS if name == "humaneval_plus" else "") + one["tests"]["code"],
            "entry_point": one["tests"]["entry_point"],
        }
        assert judged(name, row) is Verdict.CORRECT, one["id"]
        assert judged(name, row, one["prompt"] + "    return 'never expected'\n") is Verdict.WRONG, one["id"]


def test_a_solution_without_the_prompts_imports_and_helpers() -> None:
    """As a model writes it that answers with the function alone: HumanEval/32 and 38 have a helper in the prompt."""
    for one in rows_of("humaneval"):
        if one["id"] in {"HumanEval/0", "HumanEval/32", "HumanEval/38"}:
            row = {"task_id": one["id"], "prompt": one["prompt"], **one["tests"], "test": one["tests"]["code"]}
            function = one["prompt"][one["prompt"].index(f"def {row['entry_point']}") :]
            for given in (row, one):  # as the hub has it, and as a row of a problem file
                assert judged("humaneval", given, function + one["solution"]) is Verdict.CORRECT, one["id"]
            cheat = f"def poly(xs, x): return 0\ndef {row['entry_point']}(*a): return 0\n"
            assert judged("humaneval", row, cheat) is Verdict.WRONG, one["id"]


def test_mbpp() -> None:
    for number, one in enumerate(list(rows_of("mbpp_sanitized"))[::20]):
        tests = one["tests"]
        full = number % 2
        row = {
            "task_id": number,
            "text" if full else "prompt": one["prompt"],
            "code": one["solution"],
            "test_list": tests["asserts"],
            "test_setup_code" if full else "test_imports": tests["setup"] if full else [tests["setup"]],
        }
        assert judged("mbpp", row) is Verdict.CORRECT, one["id"]
        assert judged("mbpp", row, one["solution"] + "\n\ndef len(*a): return 0\n") is not Verdict.BROKEN
        broken = "".join(f"def {name}(*a, **k): return 'never expected'\n" for name in functions(one["solution"]))
        assert judged("mbpp", row, broken) is Verdict.WRONG, one["id"]


def functions(program: str) -> list[str]:
    return [line.split("(")[0].removeprefix("def ").strip() for line in program.splitlines() if line.startswith("def ")]


def test_mbpp_plus() -> None:
    row = {
        "task_id": 2,
        "prompt": "Share of the elements that are even.",
        "code": "def share(a):\n    return sum(x % 2 == 0 for x in a) / len(a)",
        "test_imports": [],
        "test_list": ["assert share([1, 2]) == 0.5"],
        "test": PLUS
        + "inputs = [[[1, 2, 3]], [[2]]]\nresults = [0.3333333333, 1.0]\n"
        + "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(share(*inp), exp, 0)\n",
    }
    assert judged("mbpp_plus", row) is Verdict.CORRECT
    assert judged("mbpp_plus", row, "def share(a):\n    return 0.5") is Verdict.WRONG
    forged = "def share(a):\n    return 0.5\ndef assertion(*a): pass\nclass testing:\n    assert_allclose = print\n"
    assert judged("mbpp_plus", row, forged) is Verdict.WRONG


# --- programs --------------------------------------------------------------------------------------------------------

Cases = list[dict[str, str]]


def packed(cases: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def as_apps(cases: Cases) -> Row:
    tests = {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
    return {"problem_id": 1, "question": "q", "solutions": "", "input_output": json.dumps(tests), "starter_code": ""}


def as_livecodebench(cases: Cases, kind: str = "stdin") -> Row:
    typed = [{**case, "testtype": kind} for case in cases]
    return {
        "question_id": "1",
        "question_content": "q",
        "starter_code": "",
        "public_test_cases": json.dumps(typed[:1]),
        "private_test_cases": packed(typed[1:]),
        "metadata": "{}",
    }


def as_verifiable_coding(cases: Cases) -> Row:
    typed = [{"type": "stdin_stdout", **case} for case in cases]
    return {"problem_id": "1", "prompt": "q", "verification_info": json.dumps({"test_cases": typed})}


def as_code_contests(cases: Cases) -> Row:
    some, more = ({key: [case[key] for case in part] for key in ("input", "output")} for part in (cases[:1], cases[1:]))
    return {"name": "1", "description": "q", "public_tests": some, "private_tests": more, "generated_tests": None}


LAYOUTS: dict[str, Callable[[Cases], Row]] = {
    "apps": as_apps,
    "livecodebench": as_livecodebench,
    "verifiable_coding": as_verifiable_coding,
    "code_contests": as_code_contests,
}
#: Kinds that take long, that test the extraction of programs, or limits that a set's row does not have.
_OTHER = ("fence_", "time_", "memory", "hang_", "thread_stack", "recursion", "int_digits", "broken_by")


def stdin_cases() -> list[Row]:
    rows = [row for row in rows_of("program_cases_2026_11") if row["tests"]["type"] == "stdin"]
    return [row for row in rows if "checker" not in row["tests"] and not row["kind"].startswith(_OTHER)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_programs_of_public_formats(name: str) -> None:
    """Right and wrong programs of program_cases, their tests written as the set writes them."""
    checked = 0
    for row in stdin_cases():
        # CodeContests compares words in any case, whatever the lines: what is wrong elsewhere is right there.
        if name == "code_contests" and row["kind"] in {"cmp_lines", "cmp_case"}:
            continue
        program = extract_program(row["response"])
        assert program is not None
        verdict = judged(name, LAYOUTS[name](row["tests"]["cases"]), program)
        assert (verdict is Verdict.CORRECT) is (row["want"] == "pass"), (row["id"], verdict)
        checked += 1
    assert checked > 25


def test_code_contests_of_the_shared_data() -> None:
    """A program that knows the outputs is right, in any case and on other lines; with one word changed it is wrong."""
    for one in list(rows_of("code_contests_80"))[::8]:
        cases: Cases = one["tests"]["cases"]
        answers = {case["input"]: case["output"] for case in cases}
        program = f"import sys\nprint('\\n'.join({answers!r}[sys.stdin.read()].swapcase().split()))"
        row = as_code_contests(cases)
        assert judged("code_contests", row, program) is Verdict.CORRECT, one["id"]
        assert judged("code_contests", row, program + "\nprint('more')") is Verdict.WRONG, one["id"]


def test_a_checker_of_codeforces_decides() -> None:
    checker = (
        "import sys\n\n\ndef main():\n"
        "    given, wanted, found = (open(path).read().split() for path in sys.argv[1:4])\n"
        "    print(1 if sum(map(int, found)) == int(given[0]) and len(found) == len(wanted) else 0)\n\n\nmain()\n"
    )
    row = {
        "id": "1/A",
        "description": "Two numbers of the given sum.",
        "official_tests": [{"input": "5\n", "output": "2 3\n"}, {"input": "8\n", "output": "4 4\n"}],
        "generated_checker": checker,
    }
    assert judged("codeforces", row, "n = int(input())\nprint(1, n - 1)") is Verdict.CORRECT
    assert judged("codeforces", row, "n = int(input())\nprint(1, n)") is Verdict.WRONG
    assert judged("codeforces", row, "print(2, 3)") is Verdict.WRONG
    assert judged("codeforces", {**row, "generated_checker": None}, "print(2, 3)") is Verdict.WRONG


# --- calls -----------------------------------------------------------------------------------------------------------


def test_calls_as_apps_and_livecodebench_write_them() -> None:
    """TACO's is_anagram and LiveCodeBench's unequalTriplets, and a method whose name is also one of the header's."""
    taco = {"fn_name": "is_anagram", "inputs": [["foefet", "toffee"], ["apple", "pale"]], "outputs": [[True], [False]]}
    row = {
        "question": "q",
        "solutions": "",
        "starter_code": "def is_anagram(a, b):\n\t",
        "input_output": json.dumps(taco),
    }
    assert judged("taco", row, "def is_anagram(a, b):\n    return sorted(a) == sorted(b)") is Verdict.CORRECT
    assert judged("taco", row, "def is_anagram(a, b):\n    return True") is Verdict.WRONG
    counts = {"fn_name": "count", "inputs": [[[1, 1, 2]]], "outputs": [[{"1": 2, "2": 1}]]}
    row["input_output"] = json.dumps(counts)
    assert judged("taco", row, "def count(a):\n    return dict(Counter(a))") is Verdict.CORRECT
    assert judged("taco", row, "def count(a):\n    return {str(x): a.count(x) for x in a}") is Verdict.WRONG
    lists = {"fn_name": "merge", "inputs": [[[[1, 3], [2, 6]]]], "outputs": [[[1, 6], [7, 8]]]}
    row["input_output"] = json.dumps(lists)
    merge = "class Solution:\n    def merge(self, a):\n        return [(1, 6), [7, 8]]"
    assert judged("taco", row, merge) is Verdict.CORRECT
    triples = [{"input": "[4, 4, 2, 4, 3]", "output": "3"}, {"input": "[1, 1, 1]", "output": "0"}]
    lcb = as_livecodebench(triples, kind="functional")
    lcb["metadata"] = json.dumps({"func_name": "unequalTriplets"})
    body = "        return sum(len(set(t)) == 3 for t in combinations(a, 3))"
    right = f"class Solution:\n    def unequalTriplets(self, a: List[int]) -> int:\n{body}"
    assert judged("livecodebench", lcb, right) is Verdict.CORRECT
    assert judged("livecodebench", lcb, right.replace("== 3", ">= 2")) is Verdict.WRONG


@pytest.mark.parametrize("name", ["apps", "livecodebench"])
def test_functions_of_public_formats(name: str) -> None:
    """Right and wrong functions of program_cases, their tests written as the set writes them."""
    checked = 0
    for row in rows_of("program_cases_2026_11"):
        tests = row["tests"]
        if (
            tests["type"] != "function"
            or "cases" not in tests
            or "tolerance" in tests
            or row["kind"] == "stateful_cases"
        ):
            continue
        calls, entry_point = tests["cases"], tests["entry_point"]
        if name == "apps":
            outputs = [[call["expected"]] for call in calls]
            named = {"fn_name": entry_point, "inputs": [call["args"] for call in calls], "outputs": outputs}
            made = as_apps([]) | {"input_output": json.dumps(named)}
        else:
            lines = ["\n".join(map(json.dumps, call["args"])) for call in calls]
            cases = [
                {"input": one, "output": json.dumps(call["expected"])} for one, call in zip(lines, calls, strict=True)
            ]
            made = as_livecodebench(cases, kind="functional") | {"metadata": json.dumps({"func_name": entry_point})}
        verdict = judged(name, made, extract_program(row["response"]))
        assert (verdict is Verdict.CORRECT) is (row["want"] == "pass"), (row["id"], verdict)
        checked += 1
    assert checked > 12


HEADER = """
from typing import *
from heapq import *


class ListNode:
    def __init__(self, val=0, next=None):
        self.val = val
        self.next = next


def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head


def is_same_list(a, b):
    while a and b and a.val == b.val:
        a, b = a.next, b.next
    return a is None and b is None
"""


def test_leetcode_with_the_helpers_of_its_header() -> None:
    row = {
        "task_id": "reverse-linked-list",
        "problem_description": "Reverse it.",
        "starter_code": "class Solution:\n    def rev(self, head):\n        ",
        "prompt": HEADER,
        "completion": "class Solution:\n    def rev(self, head: Optional[ListNode]):\n        p = None\n"
        "        while head: head.next, p, head = p, head, head.next\n        return p",
        "entry_point": "Solution().rev",
        "test": "def check(candidate):\n"
        "    assert is_same_list(candidate(list_node([1, 2, 3])), list_node([3, 2, 1]))\n"
        "    assert is_same_list(candidate(head=list_node([])), list_node([]))\n",
    }
    assert judged("leetcode", row) is Verdict.CORRECT
    nothing = "class Solution:\n    def rev(self, head):\n        return head"
    assert judged("leetcode", row, nothing) is Verdict.WRONG
    forged = "def is_same_list(a, b): return True\nclass Solution:\n    def rev(self, head): return 0\n"
    assert judged("leetcode", row, forged) is Verdict.WRONG


def test_kodcode() -> None:
    test = (
        "import pytest\nfrom solution import mean\n\n\ndef test_mean():\n"
        "    assert mean([0.1, 0.2, 0.3]) == pytest.approx(0.2)\n\n\n"
        "def test_empty():\n    with pytest.raises(ValueError):\n        mean([])\n"
    )
    right = "def mean(x):\n    if not x: raise ValueError('empty')\n    return sum(x) / len(x)"
    row = {"question_id": "1", "question": "q", "solution": right, "test": test, "test_info": []}
    assert judged("kodcode", row) is Verdict.CORRECT
    assert judged("kodcode", row, "def mean(x):\n    return 0.2") is Verdict.WRONG
    assert judged("kodcode", row, "def mean(x): return 7\ndef approx(*a, **k): return 7\n") is Verdict.WRONG

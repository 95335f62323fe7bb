"""Rows of public code data sets, in the shape that the hub has them, become problems of the verifier ``code``."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from rlreason.config.data import DataConfig
from rlreason.data.code_sets import checkers, headers
from rlreason.data.code_sets.cells import BadRow, HubRow, megabytes, seconds
from rlreason.data.code_sets.packed import unpacked
from rlreason.data.code_sets.sets import CODE_SETS, code_set
from rlreason.data.files import read_file
from rlreason.data.rows import RowFormat
from rlreason.errors import UsageError
from rlreason.rewards.programs.tests import read_tests

Row = dict[str, object]


def packed(cases: object) -> str:
    """As LiveCodeBench packs its private test cases."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def case(given: str, wanted: str, kind: str = "stdin") -> Row:
    return {"input": given, "output": wanted, "testtype": kind}


def stdin_row(name: str) -> Row:
    """A row of each set whose programs double a number: 2 -> 4 and 5 -> 10."""
    both = {"inputs": ["2\n", "5\n"], "outputs": ["4\n", "10\n"]}
    pairs = [{"input": "2\n", "output": "4\n"}, {"input": "5\n", "output": "10\n"}]
    rows: dict[str, Row] = {
        "apps": {
            "problem_id": 7,
            "question": "Double it.",
            "solutions": json.dumps(["print(2*int(input()))"]),
            "input_output": json.dumps(both),
            "difficulty": "interview",
            "url": "https://example.org/7",
            "starter_code": "",
        },
        "taco": {
            "question": "Double it.",
            "solutions": json.dumps(["print(2*int(input()))"]),
            "starter_code": "",
            "input_output": json.dumps(both),
            "difficulty": "EASY",
            "time_limit": "2.0 seconds",
            "memory_limit": "256.0 megabytes",
            "Expected Auxiliary Space": None,
        },
        "livecodebench": {
            "question_title": "Double",
            "question_content": "Double it.",
            "platform": "atcoder",
            "question_id": "abc301_a",
            "contest_date": datetime(2023, 5, 13),
            "starter_code": "",
            "difficulty": "easy",
            "public_test_cases": json.dumps([case("2\n", "4\n")]),
            "private_test_cases": packed([case("5\n", "10\n")]),
            "metadata": "{}",
        },
        "code_contests": {
            "name": "1_A. Double",
            "description": "Double it.",
            "public_tests": {"input": ["2\n"], "output": ["4\n"]},
            "private_tests": {"input": [], "output": []},
            "generated_tests": {"input": ["5\n"], "output": ["10\n"]},
            "source": 2,
            "solutions": {"language": [2, 1, 3], "solution": ["int main(){}", "print 2", "print(2*int(input()))"]},
            "incorrect_solutions": {"language": [3], "solution": ["print(1)"]},
            "cf_rating": 800,
            "time_limit": {"seconds": 1, "nanos": 500000000},
            "memory_limit_bytes": 256 * 2**20,
            "input_file": "",
            "output_file": "",
        },
        "code_contests_plus": {
            "id": "1_A",
            "title": "Double",
            "description": "Double it.",
            "time_limit": 2000,
            "memory_limit": 256,
            "checker": TESTLIB["words"],
            "test_cases": pairs,
            "correct_submissions": [
                {"code": "int main(){}", "language": "cpp"},
                {"code": "print(2*int(input()))", "language": "py3"},
            ],
        },
        "codeforces": {
            "id": "1/A",
            "title": "Double",
            "description": "Double it.",
            "input_format": "A number.",
            "output_format": "Twice that.",
            "interaction_format": None,
            "note": None,
            "examples": [{"input": "2", "output": "4"}],
            "official_tests": pairs,
            "input_mode": "stdio",
            "generated_checker": None,
            "time_limit": 2.0,
            "memory_limit": 256.0,
        },
        "verifiable_coding": {
            "source": "apps",
            "task_type": "verifiable_code",
            "in_source_id": "7",
            "prompt": "Solve the following coding problem using the programming language python:\n\nDouble it.",
            "gold_standard_solution": "```python\nprint(2*int(input()))\n```",
            "verification_info": json.dumps(
                {"language": "python", "test_cases": [{"type": "stdin_stdout", **pair} for pair in pairs]}
            ),
            "metadata": json.dumps({"difficulty": "easy", "time_limit": "2 seconds", "memory_limit": "256 megabytes"}),
            "problem_id": "vfc_7",
        },
        "deepcoder": {
            "problem": "Double it.",
            "solutions": ["```python\nprint(2*int(input()))\n```"],
            "tests": json.dumps([{"type": "stdin_stdout", **pair} for pair in pairs]),
            "starter_code": None,
            "metadata": None,
        },
    }
    return rows[name]


TESTLIB = {
    "words": """
#include "testlib.h"
// reads inf? no: words of both
int main(int argc, char* argv[]) {
    registerTestlibCmd(argc, argv);
    while (!ans.seekEof()) {
        std::string j = ans.readToken(), p = ouf.readToken();
        if (j != p) quitf(_wa, "sort %s", p.c_str());
    }
    if (!ouf.seekEof()) quitf(_wa, "more");
    quitf(_ok, "fine");
}
""",
    "case": """
#include "testlib.h"
int main(int argc, char** argv) {
    registerTestlibCmd(argc, argv);
    std::string j = upperCase(ans.readWord()), p = upperCase(ouf.readWord());
    if (j != p) quitf(_wa, "no");
    quitf(_ok, "yes");
}
""",
    "within": """
#include "testlib.h"
const double EPS = 1E-4;
int main(int argc, char** argv) {
    registerTestlibCmd(argc, argv);
    double j = ans.readDouble(), p = ouf.readDouble();
    if (!doubleCompare(j, p, EPS)) quitf(_wa, "no");
    quitf(_ok, "yes");
}
""",
    "special": """
#include "testlib.h"
int main(int argc, char** argv) {
    registerTestlibCmd(argc, argv);
    int n = inf.readInt();
    int a = ouf.readInt(), b = ouf.readInt();
    if (a + b != n) quitf(_wa, "no");
    quitf(_ok, "yes");
}
""",
}
CONTESTS = (
    "apps",
    "taco",
    "livecodebench",
    "code_contests",
    "code_contests_plus",
    "codeforces",
    "verifiable_coding",
    "deepcoder",
)


@pytest.mark.parametrize("name", CONTESTS)
def test_programs_of_every_contest_set(name: str) -> None:
    row = CODE_SETS[name].problem(stdin_row(name))
    tests = row["tests"]
    assert isinstance(tests, Mapping)
    assert tests["type"] == "stdin"
    assert tests["cases"] == [{"input": "2\n", "output": "4\n"}, {"input": "5\n", "output": "10\n"}]
    assert "Double it." in str(row["prompt"])
    read_tests(tests)
    json.dumps(row)
    if name not in {"livecodebench", "codeforces"}:  # which have none
        assert row["solution"] == "print(2*int(input()))"
    wanted = {
        "apps": {"seconds": 4.0},
        "taco": {"seconds": 2.0, "memory_mb": 256.0},
        "livecodebench": {"seconds": 6.0},
        "code_contests": {"seconds": 1.5, "memory_mb": 256.0},
        "deepcoder": {"seconds": 6.0},
    }
    assert tests["limits"] == wanted.get(name, {"seconds": 2.0, "memory_mb": 256.0})
    assert tests.get("lines", True) is (name not in {"code_contests", "code_contests_plus", "codeforces"})


def test_what_nothing_is_made_of_stays_where_it_is_short() -> None:
    kept = CODE_SETS["livecodebench"].problem(stdin_row("livecodebench"))
    assert kept["contest_date"] == "2023-05-13T00:00:00"
    assert (kept["platform"], kept["difficulty"], kept["id"]) == ("atcoder", "easy", "abc301_a")
    long = CODE_SETS["kodcode"].problem(
        {"question": "q", "test": "def test_a(): pass", "r1_solution": "x" * 300, "gpt_pass_percentage": 0.4}
    )
    assert long["gpt_pass_percentage"] == 0.4
    assert "r1_solution" not in long


# --- calls -----------------------------------------------------------------------------------------------------------


def call_row(outputs: list[object], inputs: list[object], name: str = "f") -> Mapping[str, object]:
    row = {
        "problem_id": 1,
        "question": "q",
        "solutions": "",
        "starter_code": "def f(a):\n\t",
        "input_output": json.dumps({"fn_name": name, "inputs": inputs, "outputs": outputs}),
    }
    tests = CODE_SETS["apps"].problem(row)["tests"]
    assert isinstance(tests, Mapping)
    return tests


def verdict_of(tests: Mapping[str, object], function: object) -> str:
    """What ``check(candidate)`` says, run here: the tests are ours."""
    space: dict[str, object] = {}
    exec(str(tests["code"]), space)
    try:
        space["check"](function)  # type: ignore[operator]
    except AssertionError:
        return "wrong"
    return "right"


def test_results_that_are_no_lists_of_one_are_as_they_stand() -> None:
    tests = call_row([[0, 1], [1, 2]], [[[2, 7], 9], [[3, 2, 4], 6]])
    assert tests["cases"] == [
        {"args": [[2, 7], 9], "expected": [0, 1]},
        {"args": [[3, 2, 4], 6], "expected": [1, 2]},
    ]
    assert call_row([3], [["horse", "ros"]])["cases"] == [{"args": ["horse", "ros"], "expected": 3}]


def test_results_in_lists_of_one_are_accepted_with_and_without() -> None:
    """APPS's grader takes both, and its rows have both: a codewars result is wrapped, a list of one is a result."""
    tests = call_row([[4], [9]], [[2], [3]])
    assert verdict_of(tests, lambda a: a * a) == "right"
    assert verdict_of(tests, lambda a: [a * a]) == "right"
    assert verdict_of(tests, lambda a: (a * a,)) == "right"
    assert verdict_of(tests, lambda a: a + a) == "wrong"
    assert verdict_of(tests, lambda a: [[a * a]]) == "wrong"


def test_a_result_that_begins_with_the_right_one_is_not_accepted() -> None:
    """APPS's own grader compares with the first item of any list: a function that returns that alone would pass."""
    tests = call_row([[1, 2, 3]], [[3]])
    assert tests["cases"] == [{"args": [3], "expected": [1, 2, 3]}]


def test_keys_that_were_numbers_are_numbers() -> None:
    tests = call_row([[{"3": "c"}]], [[{"1": "a", "2": "b"}]])
    assert verdict_of(tests, lambda a: {sum(a): "c"} if set(a) == {1, 2} else None) == "right"
    assert verdict_of(tests, lambda a: {"3": "c"}) == "wrong"
    words = call_row([{"x": 1}], [[{"a": 1}]])
    assert words["cases"] == [{"args": [{"a": 1}], "expected": {"x": 1}}]


def test_livecodebench_functions_have_an_argument_on_each_line() -> None:
    row = stdin_row("livecodebench") | {
        "starter_code": "class Solution:\n    def f(self, a: List[int], k: str) -> int:\n        ",
        "public_test_cases": json.dumps([case('[1, 2]\n"a\u2028b"', "[3]", "functional")]),
        "private_test_cases": json.dumps([case('[]\n""', "0", "functional")]),
        "metadata": json.dumps({"func_name": "f"}),
    }
    converted = CODE_SETS["livecodebench"].problem(row)
    tests = converted["tests"]
    assert isinstance(tests, Mapping)
    assert tests["entry_point"] == "f"
    assert tests["cases"] == [{"args": [[1, 2], "a\u2028b"], "expected": [3]}, {"args": [[], ""], "expected": 0}]
    assert "class Solution" in str(converted["prompt"])
    with pytest.raises(BadRow, match="no name"):
        CODE_SETS["livecodebench"].problem(row | {"metadata": "{}"})


@pytest.mark.parametrize("as_text", [True, False], ids=["PrimeIntellect", "open-r1"])
def test_calls_of_verifiable_coding_problems(as_text: bool) -> None:
    calls = [{"type": "function_call", "fn_name": "f", "input": [[1, 2], 3], "output": "6"}]
    info: object = {"language": "python", "test_cases": calls}
    if as_text:
        info = json.dumps(info)
    else:
        info = {"language": "python", "test_cases": [calls[0] | {"input": "[[1, 2], 3]", "output": '"6"'}]}
    tests = CODE_SETS["verifiable_coding"].problem(stdin_row("verifiable_coding") | {"verification_info": info})[
        "tests"
    ]
    assert isinstance(tests, Mapping)
    assert tests["cases"] == [{"args": [[1, 2], 3], "expected": "6"}]


def test_the_three_forms_of_deepcoder() -> None:
    row = stdin_row("deepcoder")
    forms: list[tuple[object, object]] = [
        ({"inputs": [[2]], "outputs": [4], "fn_name": "f"}, None),
        ([case("2", "4", "functional") | {"metadata": {"func_name": "f"}}], None),
        ([case("2", "4", "functional")], json.dumps({"func_name": "f"})),
        ([{"type": "function_call", "fn_name": "f", "input": [2], "output": 4}], {}),
    ]
    for tests, metadata in forms:
        found = CODE_SETS["deepcoder"].problem(row | {"tests": json.dumps(tests), "metadata": metadata})["tests"]
        assert isinstance(found, Mapping)
        assert (found["entry_point"], found["cases"]) == ("f", [{"args": [2], "expected": 4}])


# --- tests in Python -------------------------------------------------------------------------------------------------

HUMANEVAL: Row = {
    "task_id": "HumanEval/32",
    "prompt": "import math\n\n\ndef poly(xs, x):\n    return sum(xs)\n\n\ndef find_zero(xs):\n    '''Of poly.'''\n",
    "canonical_solution": "    return 0\n",
    "test": "def check(candidate):\n    assert math.fabs(poly([1], candidate([1, 2]))) > 0\n",
    "entry_point": "find_zero",
}


def test_helpers_of_the_prompt_are_the_header_and_the_function_itself_is_not() -> None:
    row = CODE_SETS["humaneval"].problem(HUMANEVAL)
    assert row["tests"] == {
        "type": "function",
        "entry_point": "find_zero",
        "code": HUMANEVAL["test"],
        "prelude": "import math\ndef poly(xs, x):\n    return sum(xs)",
    }
    assert row["solution"] == f"{HUMANEVAL['prompt']}    return 0\n"
    assert headers.header_of("def f(x):\n    '''One.'''\n", "f") is None
    assert headers.header_of("from typing import List\ndef f(x: List[int]:\n", "f") == "from typing import List"


def test_mbpp_in_its_three_forms() -> None:
    full = {
        "task_id": 11,
        "text": "Square it.",
        "code": "def sq(a): return a * a",
        "test_list": ["assert sq(2) == 4", "assert sq(3) == 9"],
        "test_setup_code": "import math",
        "challenge_test_list": [],
    }
    sanitized = {
        "source_file": "Benchmark Questions Verification V2.ipynb",
        "task_id": 11,
        "prompt": "Square it.",
        "code": "def sq(a): return a * a",
        "test_imports": ["import math"],
        "test_list": ["assert sq(2) == 4", "assert sq(3) == 9"],
    }
    rows = [CODE_SETS["mbpp"].problem(row) for row in (full, sanitized)]
    for row in rows:
        tests = {"type": "asserts", "setup": "import math", "asserts": ["assert sq(2) == 4", "assert sq(3) == 9"]}
        assert (row["id"], row["tests"], row["solution"]) == ("mbpp/11", tests, "def sq(a): return a * a")
        assert "assert sq(2) == 4" in str(row["prompt"])
        assert "assert sq(3) == 9" not in str(row["prompt"])  # what is judged is not all in the question
    program = "import numpy as np\nassert np.allclose(sq(2), 4)\n"
    plus = CODE_SETS["mbpp_plus"].problem(sanitized | {"test": program})
    assert plus["tests"] == {"type": "asserts", "setup": "", "asserts": [program]}


def test_leetcode_and_kodcode() -> None:
    leetcode = CODE_SETS["leetcode"].problem(
        {
            "task_id": "two-sum",
            "problem_description": "Two numbers.",
            "starter_code": "class Solution:\n    def twoSum(self, nums, target):\n        ",
            "prompt": "from typing import *\n",
            "completion": "class Solution: ...",
            "entry_point": "Solution().twoSum",
            "test": "def check(candidate):\n    assert candidate([1, 2], 3) == [0, 1]\n",
            "input_output": [{"input": "nums = [1, 2], target = 3", "output": "[0, 1]"}],
            "difficulty": "Easy",
        }
    )
    assert leetcode["tests"] == {
        "type": "function",
        "entry_point": "Solution().twoSum",
        "code": "def check(candidate):\n    assert candidate([1, 2], 3) == [0, 1]\n",
        "prelude": "from typing import *\n",
    }
    test = "from solution import f\n\ndef test_f():\n    assert f(1) == 2\n"
    declared = [{"function_name": "f", "function_declaration": "def f(x):", "docstring": "", "parameter_list": "(x)"}]
    kodcode = CODE_SETS["kodcode"].problem(
        {"question_id": "Prefill_1_I", "question": "Add one.", "solution": "s", "test": test, "test_info": declared}
    )
    assert kodcode["tests"] == {"type": "pytest", "code": test}
    assert "def f(x):" in str(kodcode["prompt"])


# --- checkers --------------------------------------------------------------------------------------------------------


def accepts(checker: str | None, output: str, expected: str) -> bool:
    assert checker is not None
    space: dict[str, object] = {}
    exec(checker, space)
    return bool(space["check"]("", output, expected))  # type: ignore[operator]


def test_checkers_that_only_compare() -> None:
    assert checkers.comparison(TESTLIB["words"]).checker is None
    any_case = checkers.comparison(TESTLIB["case"]).checker
    assert accepts(any_case, "Yes", "YES")
    assert not accepts(any_case, "No", "YES")
    within = checkers.comparison(TESTLIB["within"]).checker
    assert accepts(within, "0.50004", "0.5")
    assert not accepts(within, "0.5002", "0.5")
    assert not accepts(within, "nan", "0.5")
    assert not accepts(within, "inf", "0.5")
    assert accepts(within, "2.00001", "2")
    mixed = checkers.comparison(TESTLIB["within"].replace("double j", "int n = ans.readInt(); double j")).checker
    assert accepts(mixed, "1000000007 0.50004", "1000000007 0.5")
    assert not accepts(mixed, "1000000008 0.5", "1000000007 0.5")
    with pytest.raises(BadRow, match=r"C\+\+"):
        checkers.comparison(TESTLIB["special"])
    with pytest.raises(BadRow, match="neither Python nor"):
        checkers.comparison("begin { }")
    python = "import sys\nprint(1)\n"
    assert checkers.comparison(python).checker == python


def test_code_contests_compares_words_in_any_case_and_fractions() -> None:
    assert checkers.for_code_contests(["1 2\n-3", "4"]) is None
    checker = checkers.for_code_contests(["YES", "0.5"])
    assert accepts(checker, "yes\n 0.500009", "YES 0.5")
    assert accepts(checker, "5.0", "5")
    assert not accepts(checker, "yes 0.50002", "YES 0.5")
    assert not accepts(checker, "1000000008", "1000000007")
    assert not accepts(checker, "11", "0011")
    assert not accepts(checker, "yes", "yes yes")


# --- what can't be read ----------------------------------------------------------------------------------------------


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_private_cases_are_read_and_never_run() -> None:
    text = json.dumps([case("1", "2")]) * 2000  # over the length at which pickle changes its framing
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        one = base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()
        assert unpacked(one) == text
    bomb = base64.b64encode(zlib.compress(pickle.dumps(_Bomb()))).decode()
    two = base64.b64encode(zlib.compress(pickle.dumps(["a", "b"]))).decode()
    cut = base64.b64encode(zlib.compress(pickle.dumps(text))[:-20]).decode()
    for wrong in (bomb, two, cut, "no base64!", ""):
        with pytest.raises(BadRow):
            unpacked(wrong)
    with pytest.raises(BadRow, match="more than"):
        unpacked(base64.b64encode(zlib.compress(pickle.dumps("x" * 4096))).decode(), largest=1024)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("apps", {"input_output": ""}, "'input_output' is empty"),
        ("apps", {"input_output": "{'inputs': []}"}, "no JSON"),
        ("apps", {"input_output": '{"inputs": ["1"], "outputs": []}'}, "not as many"),
        ("taco", {"input_output": '{"inputs": [], "outputs": []}'}, "no test cases"),
        ("taco", {"question": None}, "no 'question' or 'problem'"),
        ("code_contests", {"input_file": "in.txt"}, "files"),
        ("code_contests_plus", {"checker": TESTLIB["special"]}, "C++"),
        ("codeforces", {"interaction_format": "ask"}, "interactive"),
        ("codeforces", {"input_mode": "file"}, "files"),
        ("verifiable_coding", {"verification_info": '{"language": "cpp", "test_cases": []}'}, "in cpp"),
        ("livecodebench", {"public_test_cases": json.dumps([case("1", "1", "other")])}, "of types"),
        ("deepcoder", {"tests": None}, "no 'tests'"),
    ],
)
def test_a_bad_row_says_why(name: str, change: Row, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        CODE_SETS[name].problem(stdin_row(name) | change)
    assert reason in str(caught.value)


def test_cut_emoji_and_integers_of_many_digits() -> None:
    long = "9" * 5000
    row = stdin_row("taco") | {
        "question": "a \ud83d b",
        "input_output": '{"fn_name": "f", "inputs": [[1]], "outputs": [' + long + "]}",
    }
    found = CODE_SETS["taco"].problem(row)
    assert "a ? b" in str(found["prompt"])
    assert isinstance(found["tests"], Mapping)
    with pytest.raises(ValueError, match="4300"):
        int(long)  # the limit is back
    assert verdict_of(found["tests"], lambda a: 10**5000 - 1) == "right"
    assert verdict_of(found["tests"], lambda a: 10**5000) == "wrong"


def test_limits_as_sets_write_them() -> None:
    read = [
        seconds(one) for one in (2, "2.0 seconds", "500ms", "1 second", {"seconds": 3, "nanos": None}, None, "", True)
    ]
    assert read == [2.0, 2.0, 0.5, 1.0, 3.0, None, None, None]
    assert [megabytes(one) for one in (256, "256.0 megabytes", "1 GB", "512MB", "64 apples")] == [
        256,
        256,
        1024,
        512,
        None,
    ]


def test_a_recipe_reads_the_rows_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "apps.jsonl"
    bad = stdin_row("apps") | {"input_output": ""}
    path.write_text("".join(json.dumps(row) + "\n" for row in (stdin_row("apps"), bad)))
    table = read_file(path, RowFormat(convert="apps", verifier="code", skip_bad_rows=True))
    (problem,) = table.problems
    assert (problem.id, problem.verifier, problem.extra["difficulty"]) == ("apps/7", "code", "interview")
    assert isinstance(problem.reference, Mapping)
    assert (table.bad_rows, str(table.first_bad).partition(": ")[2]) == (1, "'input_output' is empty, as a row of apps")
    with pytest.raises(UsageError, match="did you mean 'apps'"):
        code_set("app")


def test_a_row_that_is_of_another_set_names_what_it_has() -> None:
    with pytest.raises(BadRow, match=r"no 'question' or 'problem' in it \(columns: a, b\)"):
        HubRow({"b": 1, "a": 2}).text("question", "problem")


def test_convert_in_a_recipe_is_checked_with_it() -> None:
    data = DataConfig.model_validate({"train": "apps.jsonl", "convert": "apps"})
    assert data.convert == "apps"
    with pytest.raises(ValidationError, match="did you mean 'apps'"):
        DataConfig.model_validate({"train": "apps.jsonl", "convert": "app"})
    with pytest.raises(ValidationError, match=r"leave data\.hard\.columns out"):
        DataConfig.model_validate({"hard": {"path": "a.jsonl", "convert": "taco", "columns": {"prompt": "question"}}})


def test_lists_of_cases_and_cases_of_lists() -> None:
    """``datasets`` writes a sequence of objects as one object of lists, and JSON exports the other way round."""
    lists = {"input": ["2\n", "5\n"], "output": ["4\n", 10]}
    for name, column in (("code_contests_plus", "test_cases"), ("codeforces", "official_tests")):
        tests = CODE_SETS[name].problem(stdin_row(name) | {column: lists})["tests"]
        assert isinstance(tests, Mapping)
        assert tests["cases"] == [{"input": "2\n", "output": "4\n"}, {"input": "5\n", "output": "10"}]
    contest = stdin_row("code_contests") | {"public_tests": json.dumps([{"input": ["2", "3"], "output": "5"}])}
    tests = CODE_SETS["code_contests"].problem(contest)["tests"]
    assert isinstance(tests, Mapping)
    assert tests["cases"][0] == {"input": "2\n3", "output": "5"}
    with pytest.raises(BadRow, match="not as many inputs"):
        CODE_SETS["codeforces"].problem(stdin_row("codeforces") | {"official_tests": {"input": ["1"], "output": []}})


def test_the_first_versions_of_leetcode_have_no_starter_code() -> None:
    row = {
        "task_id": "two-sum",
        "prompt": "from typing import *\n",
        "completion": "class Solution: ...",
        "entry_point": "Solution().twoSum",
        "test": "def check(candidate):\n    assert candidate([1, 2], 3) == [0, 1]\n",
        "query": "Two numbers.",
        "meta": {"question_id": 1},
    }
    prompt = CODE_SETS["leetcode"].problem(row)["prompt"]
    assert prompt == "Two numbers.\n\nWrite it in Python as a method `twoSum` of a class `Solution`."

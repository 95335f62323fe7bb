"""Every suite: rows as the hub has them, golds that score 100 % through the full path, corrupted ones that score 0."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlreason.check import CheckedRecipe
from rlreason.errors import UsageError
from rlreason.eval.suites import SUITES, detectable, find_suite
from rlreason.eval.summary import summarize
from rlreason.evaluation.plan import measurements
from rlreason.evaluation.request import EvalRequest, Measurement
from rlreason.evaluation.run import _checked
from rlreason.job import open_scorer
from rlreason.types import Completion, Group, Problem

DATA = (Path(__file__).parents[2] / "../shared/data").resolve()
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets for tests are not beside the repository")

CHOICES = {"question": "What melts first?", "subject": "physics", "choices": ["iron", "ice", "gold", "tin"]}
#: One row of every suite as the hub has it, and the answer or the kind of tests that it becomes.
HUB_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "gsm8k": ({"question": "Two eggs and three?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}, "5"),
    "math500": (
        {"problem": "Find $1/2 + 1/2$.", "solution": "It is $\\boxed{1}$.", "answer": "1", "subject": "Algebra",
         "level": 1, "unique_id": "test/algebra/1.json"},
        "1",
    ),
    "math": (
        {"problem": "Find $1/2$ of 3.", "level": "Level 1", "type": "Algebra",
         "solution": "Half of 3 is $\\boxed{\\frac32}$."},
        "Half of 3 is $\\boxed{\\frac32}$.",
    ),
    "aime24": (
        {"id": 60, "problem": "Find $s$.", "solution": "...", "answer": "204", "url": "u", "year": "2024"}, "204"
    ),
    "aime25": ({"problem": "Find $b$.", "answer": "70", "id": "0"}, "70"),
    "amc23": ({"id": 0, "question": "How many?", "answer": 27.0, "url": "u"}, "27.0"),
    "olympiadbench": (
        {"id": 1606, "question": "How many moves?", "solution": ["..."], "final_answer": ["$2$"], "unit": None}, "$2$"
    ),
    "mmlu": ({**CHOICES, "answer": 1}, "B"),
    "mmlu_stem": ({**CHOICES, "answer": 1}, "B"),
    "mmlu_pro": (
        {"question_id": 70, "question": "Which?", "options": list("abcdefghij"), "answer": "J", "answer_index": 9,
         "cot_content": "", "category": "law", "src": "x"},
        "J",
    ),
    "arc": (
        {"id": "M_1", "question": "Which?", "answerKey": "3",
         "choices": {"text": ["a", "b", "c", "d"], "label": ["1", "2", "3", "4"]}},
        "C",
    ),
    "gpqa_diamond": (
        {"Record ID": "rec1", "Question": "Which one?", "Correct Answer": "w\n", "Incorrect Answer 1": "x",
         "Incorrect Answer 2": "y", "Incorrect Answer 3": "z", "Subdomain": "s"},
        "gpqa",
    ),
    "humaneval": (
        {"task_id": "HumanEval/9", "prompt": "def f(a):\n    \"\"\" same \"\"\"\n", "canonical_solution": " return a",
         "test": "def check(candidate):\n    assert candidate(1) == 1\n", "entry_point": "f"},
        "function",
    ),
    "mbpp": (
        {"source_file": "x", "task_id": 2, "prompt": "Write f.", "code": "def f(a):\n    return a", "test_imports": [],
         "test_list": ["assert f(1) == 1"]},
        "asserts",
    ),
    "mbpp_plus": (
        {"task_id": 2, "code": "def f(a):\n    return a", "prompt": "Write f.", "source_file": "x", "test_imports": [],
         "test_list": ["assert f(1) == 1"], "test": "assert f(1) == 1"},
        "asserts",
    ),
    "livecodebench": (
        {"question_title": "t", "question_content": "Print n.", "platform": "x", "question_id": "a1",
         "contest_id": "c", "contest_date": "2024-09-01T00:00:00", "starter_code": "", "difficulty": "easy",
         "public_test_cases": json.dumps([{"input": "1\n", "output": "1\n", "testtype": "stdin"}]),
         "private_test_cases": json.dumps([{"input": "2\n", "output": "2\n", "testtype": "stdin"}]),
         "metadata": "{}"},
        "stdin",
    ),
    "code_contests": (
        {"name": "p", "description": "Print n.", "public_tests": {"input": ["1\n"], "output": ["1\n"]},
         "private_tests": {"input": [], "output": []}, "generated_tests": {"input": [], "output": []},
         "solutions": {"language": [], "solution": []}, "time_limit": {"seconds": 2, "nanos": 0},
         "memory_limit_bytes": 256000000},
        "stdin",
    ),
}  # fmt: skip
HUB_ROWS["humaneval_plus"] = HUB_ROWS["humaneval"]


def checked(suite: str, **fields: Any) -> tuple[Measurement, CheckedRecipe]:
    (one,) = measurements(EvalRequest(model="http", url="http://127.0.0.1:9/v1", suites=(suite,), **fields))
    return one, _checked(one)


def problems_of(suite: str, **fields: Any) -> list[Problem]:
    one, recipe = checked(suite, **fields)
    return recipe.data.of(one.stage.name).heldout(one.stage.problems)


@pytest.mark.parametrize("suite", [name for name, one in SUITES.items() if isinstance(one.data, tuple)])
def test_rows_as_the_hub_has_them(suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, expected = HUB_ROWS[suite]
    data = SUITES[suite].data
    assert isinstance(data, tuple)
    (tmp_path / data[0]).write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    (problem,) = problems_of(suite)
    if suite == "gpqa_diamond":  # the right answer's letter is by the question alone
        letter = problem.reference
        assert f"{letter}) w\n" in problem.prompt + "\n"
    elif isinstance(problem.reference, dict):
        assert problem.reference["type"] == expected
        assert problem.verifier == "code"
    else:
        assert problem.reference in (expected, (expected,))
    if SUITES[suite].convert == "mbpp":
        assert "assert f(1) == 1" in problem.prompt


def answered(problem: Problem, text: str) -> Group:
    return Group(group_id=problem.id, problem=problem, completions_G=(Completion.from_text(text),))


def scored(suite: str, texts: dict[str, str] | None, count: int | None, wrong: bool = False) -> Any:
    """Accuracy of each problem's own gold, or of one that is not it."""
    one, recipe = checked(suite, problems=count, workers=2)
    problems = recipe.data.of(one.stage.name).heldout(one.stage.problems)
    with open_scorer(recipe) as scorer:
        groups = [answered(problem, text_of(problem, texts, wrong)) for problem in problems]
        done = [future.result() for future in [scorer.submit(group) for group in groups]]
    return summarize(done, "gold", suite)


def text_of(problem: Problem, texts: dict[str, str] | None, wrong: bool) -> str:
    if texts is not None:
        code = texts[problem.id]
        if wrong:  # a reference that gives nothing back
            code += "\n" + "\n".join(f"def {name}(*a, **k): return None" for name in names_in(code))
        return f"```python\n{code}\n```"
    gold = problem.reference if isinstance(problem.reference, str) else problem.reference[0]  # type: ignore[index]
    if SUITES[problem_suite(problem)].convert:
        letter = chr(ord(str(gold)) + (1 if str(gold) < "D" else -1)) if wrong else gold
        return f"I compared the options.\n\nAnswer: {letter}"
    return f"So the answer is \\boxed{{{'-7131/917' if wrong else gold}}}."


def problem_suite(problem: Problem) -> str:
    found = {"arc_challenge": "arc", "mmlu_stem": "mmlu_stem"}
    return found.get(problem.source.partition("/")[0], "gsm8k")


def names_in(code: str) -> list[str]:
    return [line[4:].partition("(")[0] for line in code.splitlines() if line.startswith("def ")]


@pytest.fixture
def data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RLREASON_DATA", str(DATA))


@needs_data
@pytest.mark.parametrize(
    ("suite", "count"),
    [("gsm8k", 1319), ("math500", 500), ("math", 400), ("aime24", 30), ("aime25", 30), ("amc23", 40),
     ("olympiadbench", 675), ("mmlu_stem", 300), ("arc", 300)],
)  # fmt: skip
def test_golds_score_100_and_others_0(suite: str, count: int, data_folder: None) -> None:
    """Of the largest a part here; ``test_every_gold_of_the_largest`` has all of them."""
    report = scored(suite, None, count)
    assert (report.accuracy.value, report.accuracy.count) == (1.0, count), report.verdicts
    assert scored(suite, None, min(count, 60), wrong=True).accuracy.value == 0.0


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("suite", "count"), [("math", 5000), ("mmlu_stem", 3018), ("arc", 1172)])
def test_every_gold_of_the_largest(suite: str, count: int, data_folder: None) -> None:
    report = scored(suite, None, None)
    assert (report.accuracy.value, report.accuracy.count) == (1.0, count), report.verdicts


def references(name: str) -> dict[str, str]:
    rows = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    return {row["id"]: (row["prompt"] if row["tests"]["type"] == "function" else "") + row["solution"] for row in rows}


@needs_data
@pytest.mark.parametrize(
    ("suite", "file", "count"), [("humaneval", "humaneval.jsonl", 164), ("mbpp", "mbpp_sanitized.jsonl", 40)]
)
def test_reference_programs_pass_and_corrupted_ones_fail(suite: str, file: str, count: int, data_folder: None) -> None:
    texts = references(file)
    report = scored(suite, texts, count)
    assert (report.accuracy.value, report.accuracy.count) == (1.0, count), report.verdicts
    assert scored(suite, texts, 20, wrong=True).accuracy.value == 0.0


@needs_data
@pytest.mark.slow
def test_every_reference_of_mbpp_passes(data_folder: None) -> None:
    report = scored("mbpp", references("mbpp_sanitized.jsonl"), None)
    assert (report.accuracy.value, report.accuracy.count) == (1.0, 427), report.verdicts


OWN = """
name = "sums"
about = "sums of our own"
data = ["sums.jsonl", "us/sums:default:test"]
prompt = "question"
answer = "gold"
prompt_template = "{prompt} Answer in a box."
max_tokens = 64
samples = 4
temperature = 0.7
top_p = 0.9
"""


def test_a_suite_of_ones_own_is_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(OWN.strip().splitlines()) == 10
    (tmp_path / "ours.toml").write_text(OWN)
    (tmp_path / "sums.jsonl").write_text('{"question": "2+2=", "gold": "4"}\n')
    monkeypatch.chdir(tmp_path)
    one, recipe = checked("ours.toml")
    (problem,) = recipe.data.of("eval").heldout(9)
    assert recipe.prompt_format.turns(problem) == [("user", "2+2= Answer in a box.")]
    assert (one.suite.name, one.stage.samples_per_problem, one.stage.temperature) == ("sums", 4, 0.7)
    assert (one.stage.top_p, one.stage.max_tokens) == (0.9, 64)


def test_the_page_names_every_suite_and_its_own_one_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "eval.md").read_text(encoding="utf-8")
    for suite in SUITES.values():
        if suite.size is not None:
            shown = f"{100 / suite.size:.2f} points | {100 * detectable(suite.size):.1f} points"
            assert f"| `{suite.name}` | {suite.size:,} | {shown} |" in page
    (tmp_path / "ours.toml").write_text(page.split("```text\n")[1].split("```")[0])
    assert find_suite(str(tmp_path / "ours.toml")).prompt_template == "{prompt} Put your answer in \\boxed{}."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("max_tokens = 64", "max_token = 64"), "unknown key 'max_token'; did you mean 'max_tokens'"),
        (('"{prompt} Answer in a box."', '"Answer in a box."'), "no {prompt}"),
        (("top_p = 0.9", "top_p = 9"), "top_p"),
        (('name = "sums"', 'name = "gsm8k"'), "that of a shipped suite"),
        (('name = "sums"', "name = "), "not valid TOML"),
    ],
)
def test_what_is_wrong_with_a_suite_is_said(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(OWN.replace(*change))
    with pytest.raises(UsageError) as error:
        find_suite(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_the_protocol_of_r1() -> None:
    """Temperature 0.6, top-p 0.95, 32,768 tokens, 64 samples on AIME and GPQA, 16 on MATH-500, 8 on code."""
    for suite, samples in (("aime24", 64), ("gpqa_diamond", 64), ("math500", 16), ("livecodebench", 8)):
        (one,) = measurements(EvalRequest(model="m", url="http://x/v1", suites=(suite,), protocol="r1"))
        stage = one.stage
        assert (stage.samples_per_problem, stage.temperature, stage.top_p) == (samples, 0.6, 0.95)
        assert stage.max_tokens == 32768
    (fewer,) = measurements(EvalRequest(model="m", url="http://x/v1", suites=("aime24",), protocol="r1", samples=4))
    assert (fewer.stage.samples_per_problem, fewer.stage.temperature) == (4, 0.6)
    with pytest.raises(UsageError, match="did you mean 'r1'"):
        measurements(EvalRequest(model="m", url="http://x/v1", suites=("aime24",), protocol="r"))


def test_few_shot_prompts_show_solved_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"{i}+1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "gsm8k_test.jsonl").write_text(text.replace("+1?", "+ 1?"))
    (tmp_path / "gsm8k_train.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    _, recipe = checked("gsm8k", shots=2, prompt_template="")
    problem = recipe.data.of("eval").heldout(1)[0]
    assert recipe.prompt_format.turns(problem)[:4] == [
        ("user", "0+1?"),
        ("assistant", "0 + 1 = 1\nThe final answer is \\boxed{1}."),
        ("user", "1+1?"),
        ("assistant", "1 + 1 = 2\nThe final answer is \\boxed{2}."),
    ]
    assert recipe.prompt_format.turns(problem)[4] == ("user", problem.prompt)
    with pytest.raises(UsageError, match="has 5 solved problems"):
        checked("gsm8k", shots=6)
    with pytest.raises(UsageError, match="--shots-from"):
        checked("math500", shots=1, data="gsm8k_test.jsonl")


def test_a_window_of_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = HUB_ROWS["livecodebench"]
    days = ("2024-08-01", "2024-09-30", "2025-01-31")
    rows = [{**row, "question_id": f"q{n}", "question_content": f"Print {n}.", "contest_date": f"{day}T00:00:00"}
            for n, day in enumerate(days)]  # fmt: skip
    (tmp_path / "livecodebench.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    monkeypatch.chdir(tmp_path)
    kept = problems_of("livecodebench", since="2024-09-01", until="2024-12-31")
    assert [problem.id for problem in kept] == ["q1"]
    with pytest.raises(UsageError, match="its days are 2024-08-01 to 2025-01-31"):
        problems_of("livecodebench", since="2026-01-01")
    with pytest.raises(UsageError, match="written as 2024-08-01"):
        problems_of("livecodebench", since="August")
    with pytest.raises(UsageError, match="'gsm8k' says of none"):
        problems_of("gsm8k", since="2024-01-01")


def test_how_small_a_difference_a_suite_can_show() -> None:
    # 2.8016 · √(0.2 / 1319) and √(0.2 / 30); of 5 problems nothing can be said
    assert detectable(1319) == pytest.approx(0.0345, abs=5e-5)
    assert detectable(30) == pytest.approx(0.2287, abs=5e-5)
    assert detectable(5) == 1.0


def test_data_of_a_named_suite_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "2+2=", "answer": "2+2 is\\n#### 4"}\n')
    (problem,) = problems_of("gsm8k", data=str(tmp_path / "mine.jsonl"))
    assert problem.reference == "4"
    with pytest.raises(UsageError, match="problems of one suite"):
        measurements(EvalRequest(model="m", url="http://x/v1", suites=("gsm8k", "math500"), data="x.jsonl"))
    assert replace(problem, prompt="2+2=") == problem

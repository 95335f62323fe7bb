"""Our verdicts beside other evaluators' on the same completions, item by item.

Run it in an environment that has them (lm-eval==0.4.13, math-verify==0.9.0, which lighteval 0.13 scores with), with the
repository on PYTHONPATH: ``python bench/evaluation/third_party.py gsm8k_model_solutions.jsonl OUT.json``. The rows are
{id, answer, response, correct}: ``correct`` is the label that the solutions were published with.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlreason.rewards.math.answer import check
from rlreason.types import Verdict

Judge = Callable[[str, str], bool]


def judges() -> Iterator[tuple[str, Judge]]:
    """Every evaluator that can be imported here, by its name."""
    yield "rlreason", lambda response, answer: check(response, answer).verdict is Verdict.CORRECT
    try:
        yield from lm_eval_judges()
    except ImportError as error:
        print(f"lm-eval left out: {error}", file=sys.stderr)
    try:
        from math_verify import parse, verify
    except ImportError as error:
        print(f"math-verify left out: {error}", file=sys.stderr)
        return
    yield "math-verify", lambda response, answer: bool(verify(parse(f"\\boxed{{{answer}}}"), parse(response)))


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
    found: dict[str, object] = {"rows": len(rows)}
    for name, given in verdicts.items():
        differing = [
            {"id": row["id"], "answer": row["answer"], "end": row["response"][-120:], "theirs": a, "ours": b}
            for row, a, b in zip(rows, given, ours, strict=True)
            if a != b
        ]
        kinds = Counter(
            f"{'right' if a else 'wrong'} for it, {'right' if b else 'wrong'} for us"
            for a, b in zip(given, ours, strict=True)
        )
        found[name] = {
            "agrees with the labels": sum(a == row["correct"] for a, row in zip(given, rows, strict=True)),
            "agrees with rlreason": len(rows) - len(differing),
            "verdicts": dict(kinds),
            "differs": differing[:20],
        }
    return found


if __name__ == "__main__":
    read = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").split("\n") if line]
    Path(sys.argv[2]).write_text(json.dumps(compare(read), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

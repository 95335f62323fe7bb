"""One verifier over JSON lines on stdin: {"gold", "response"} in, {"correct", "cpu"} out, one line each.

Runs in the interpreter of the verifier's own environment: `python peer.py math_verify`. Imports nothing of rlreason
unless the verifier is `ours`.
"""

import json
import sys
import time
from collections.abc import Callable

Grade = Callable[[str, str], bool]


def ours() -> Grade:
    from rlreason.rewards.math.answer import check

    return lambda gold, response: check(response, gold).verdict == "correct"


def math_verify() -> Grade:
    """As its README has it; a bare gold goes into a box, its best setting on these cases."""
    from math_verify import parse, verify

    def grade(gold: str, response: str) -> bool:
        boxed = gold if "$" in gold or "boxed" in gold else f"\\boxed{{{gold}}}"
        return bool(verify(parse(boxed), parse(response)))

    return grade


def mathruler() -> Grade:
    from mathruler.grader import extract_boxed_content, grade_answer

    return lambda gold, response: bool(grade_answer(extract_boxed_content(response), gold))


def inspect_ai() -> Grade:
    """Its worker functions, without the asynchronous time limit around them."""
    from inspect_ai.scorer import _math

    def grade(gold: str, response: str) -> bool:
        targets, error = _math._parse_targets_worker((gold,))
        return error is None and _math._score_answer_worker(response, targets).status == "correct"

    return grade


def main() -> None:
    grade = {"ours": ours, "math_verify": math_verify, "mathruler": mathruler, "inspect_ai": inspect_ai}[sys.argv[1]]()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        row = json.loads(line)
        started = time.process_time()
        try:
            golds = row["gold"] if isinstance(row["gold"], list) else [row["gold"]]
            correct = any(grade(gold, row["response"]) for gold in golds)
        except Exception:  # a peer that raises has not verified
            correct = False
        print(json.dumps({"correct": correct, "cpu": time.process_time() - started}), flush=True)


if __name__ == "__main__":
    main()

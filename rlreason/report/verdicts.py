"""Every model that was evaluated against the one it was made from, on the same problems: a verdict a pair.

After training against before, and the student against its teacher: the pairs are those of the table of models.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlreason.eval.verdict import Contender, judge, sentence
from rlreason.report.findings import Suite
from rlreason.report.read import Evaluation, Run, as_dict, as_list


def verdicts(run: Run, suites: list[Suite]) -> list[str]:
    """One sentence a pair whose completions are there, corrected for how many pairs there are."""
    pairs = []
    for suite in suites:
        for model in suite.models:
            if model.base is None:
                continue
            first, second = (_contender(run.folder, one) for one in (model.base, model.result))
            if first is not None and second is not None:
                label = "held-out problems" if suite.name == "heldout" else suite.name
                pairs.append((label, first, second))
    return [sentence(one) for one in judge(pairs)]


def _contender(folder: Path, one: Evaluation) -> Contender | None:
    """None where its completions are not there, or can't be read."""
    if one.file is None:
        return None
    path = folder / "eval" / f"{one.file}.completions.jsonl"
    try:
        rows = [as_dict(json.loads(line)) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError, RecursionError):
        return None
    counts = {str(row.get("problem_id")): _counts(row) for row in rows}
    return Contender(model=one.model, counts=counts, truncated=one.truncated)


def _counts(row: dict[str, object]) -> tuple[int, int]:
    """(correct, verified) answers to one problem."""
    rewards = [as_dict(as_dict(answer).get("reward")) for answer in as_list(row.get("completions"))]
    verified = [reward.get("verified") for reward in rewards if reward.get("verified") is not None]
    return sum(one == "correct" for one in verified), len(verified)

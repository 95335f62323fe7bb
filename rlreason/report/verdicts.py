"""Every model that was evaluated against the one it was made from, on the same problems: a verdict a pair.

After training against before, and the student against its teacher: the pairs are those of the table of models.
"""

from __future__ import annotations

import json
from pathlib import Path

from rlreason.eval.verdict import Comparison, Contender, judge, sentence
from rlreason.report.findings import Suite, headline
from rlreason.report.read import Evaluation, Run, as_dict, as_list

#: By suite and the name of the later model.
Compared = dict[tuple[str, str], Comparison]


def compare_all(run: Run, suites: list[Suite]) -> Compared:
    """Every pair whose completions are there, corrected for how many pairs there are."""
    pairs, names = [], {}
    for suite in suites:
        label = "held-out problems" if suite.name == "heldout" else suite.name
        names[label] = suite.name
        for model in suite.models:
            if model.base is None:
                continue
            first, second = (_contender(run.folder, one) for one in (model.base, model.result))
            if first is not None and second is not None:
                pairs.append((label, first, second))
    return {(names[one.suite], one.second.model): one for one in judge(pairs)}


def verdicts(compared: Compared) -> list[str]:
    """One sentence a pair."""
    return [sentence(one) for one in compared.values()]


def result_line(run: Run, suites: list[Suite], compared: Compared) -> str | None:
    """``findings.headline``, told by the paired verdicts where there are any."""
    signs = {key: (1 if one.paired.gain.value > 0 else -1) if one.called else 0 for key, one in compared.items()}
    return headline(run, suites, signs)


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

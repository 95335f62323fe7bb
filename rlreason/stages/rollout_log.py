"""Which of a step's completions are kept in rollouts.jsonl, and how a row of it looks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rlreason.config import RolloutLog
from rlreason.stages.context import Context
from rlreason.stages.credit import StepCredit
from rlreason.types import Completion, Group, Problem, RewardResult, Verdict

FAILURES = frozenset({Verdict.BROKEN, Verdict.TIMED_OUT})
#: Characters of a column of the data set that is kept.
EXTRA = 10_000
#: Token ids -> text, special tokens written out.
Decode = Callable[[list[int]], str]


def log_groups(
    context: Context,
    stage: str,
    step: int,
    groups: Sequence[Group],
    *,
    keep: int | None = None,
    credit: StepCredit | None = None,
    decode: Decode | None = None,
) -> None:
    """Append a step's rows to the stage's rollouts.jsonl (.gz): every completion of the first ``keep`` groups (default
    ``logging.rollouts.groups``), and of the others some whose check failed.

    ``credit``: of ``groups``: advantages for people are made anew by the torch path, in float64. ``decode`` writes the
    prompt out as the model read it.
    """
    config = context.recipe.logging.rollouts
    name = "rollouts.jsonl.gz" if config.compress else "rollouts.jsonl"
    if step % _stride(context.run.stage_folder(stage) / name, config):
        return
    limit = config.groups if keep is None else keep
    none: list[list[float | None]] = [[None] * len(group.completions_G) for group in groups]
    advantages = none if credit is None else credit.by_group(groups)
    rows, failures = [], 0
    for place, (group, values_G) in enumerate(zip(groups, advantages, strict=True)):
        prompt = None
        for sample, (one, reward) in enumerate(zip(group.completions_G, group.rewards_G, strict=True)):
            failed = reward.verdict in FAILURES
            if place >= limit and not (failed and failures < config.failures):
                continue
            failures += failed and place >= limit
            row = rollout_row(step, group, sample, one, reward)
            row |= {"advantage": values_G[sample], "logged_for": "group" if place < limit else "failure"}
            if decode is not None and prompt is None:  # once a group: it is the same for all its completions
                prompt = row["rendered_prompt"] = decode(one.prompt_ids.tolist())
            rows.append(row)
    if rows:
        context.run.append_rows(stage, name, rows)


def rollout_row(
    step: int, group: Group, sample: int, completion: Completion, reward: RewardResult
) -> dict[str, object]:
    """One row, without its advantage."""
    return {
        "step": step,
        "group_id": group.group_id,
        "problem_id": group.problem.id,
        "prompt": group.problem.prompt,
        "rendered_prompt": None,
        "reference": group.problem.reference,
        **problem_columns(group.problem),
        "sample": sample,
        "response": completion.response,
        "verdict": reward.verdict,
        "verified": reward.verified,
        "score": reward.score,
        "extracted": reward.extracted,
        "parts": dict(reward.parts),
        "detail": reward.detail,
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "policy_version": completion.policy_version_max,
        "policy_version_min": completion.policy_version_min,
    }


def problem_columns(problem: Problem) -> dict[str, object]:
    """What another reward may ask for beside prompt and reference (``rlreason rescore``): columns that JSON can hold,
    and that are no longer than ``EXTRA`` characters."""
    extra: dict[str, object] = {}
    for name, value in problem.extra.items():
        try:
            if len(json.dumps(value, allow_nan=False)) <= EXTRA:
                extra[name] = value
        except (TypeError, ValueError):
            continue
    return {
        "verifier": problem.verifier,
        "source": problem.source,
        "data_set": problem.data_set,
        "messages": [{"role": one.role, "content": one.content} for one in problem.messages],
        "extra": extra,
    }


def _stride(path: Path, config: RolloutLog) -> int:
    """Steps of which one is written: 1, and twice as many each time that the file has filled half of what was left.

    The length of a file is part of a state, so a resumed stage writes the same steps.
    """
    size, limit = path.stat().st_size if path.is_file() else 0, config.max_mib * 2**20
    left = max(limit - size, 1.0)
    return int(2 ** max(0, math.floor(math.log2(limit / left))))

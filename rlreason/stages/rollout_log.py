"""Which of a step's completions are kept in rollouts.jsonl, and how a row of it looks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from rlreason.config import RolloutLog
from rlreason.stages.context import Context
from rlreason.stages.credit import StepAdvantages
from rlreason.types import Completion, Group, RewardResult, Verdict

FAILURES = frozenset({Verdict.BROKEN, Verdict.TIMED_OUT})
#: Token ids -> text, special tokens written out.
Decode = Callable[[list[int]], str]


def log_groups(
    context: Context,
    stage: str,
    step: int,
    groups: Sequence[Group],
    *,
    keep: int | None = None,
    earned: StepAdvantages | None = None,
    decode: Decode | None = None,
) -> None:
    """Append a step's rows to the stage's rollouts.jsonl (.gz): every completion of the first ``keep`` groups (default
    ``logging.rollouts.groups``), and of the others some whose check failed.

    ``earned``: the advantages of ``groups``, as trained on. ``decode`` writes the prompt out as the model read it.
    """
    config = context.recipe.logging.rollouts
    name = "rollouts.jsonl.gz" if config.compress else "rollouts.jsonl"
    if step % _stride(context.run.stage_folder(stage) / name, config):
        return
    limit = config.groups if keep is None else keep
    none: list[list[float | None]] = [[None] * len(group.completions_G) for group in groups]
    advantages = none if earned is None else earned.by_group(groups)
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


def _stride(path: Path, config: RolloutLog) -> int:
    """Steps of which one is written: 1, and twice as many each time that the file has filled half of what was left.

    The length of a file is part of a state, so a resumed stage writes the same steps.
    """
    size, limit = path.stat().st_size if path.is_file() else 0, config.max_mib * 2**20
    left = max(limit - size, 1.0)
    return int(2 ** max(0, math.floor(math.log2(limit / left))))

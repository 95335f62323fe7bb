"""Scored groups of a list of problems, kept one by one, so that reject and eval go on by problem after a break."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from rlreason.sampler.groups import draw_groups, group_ids
from rlreason.stages.context import Context
from rlreason.types import Completion, Group, Problem, RewardResult, Sampler, SamplingParams, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnJournal:
    """Scored groups of the part of a stage that is under way, one a line in the order in which they were drawn.

    Example: ``DrawnJournal(path=stage_folder / "drawn.journal")``. It is not one of the stage's *.jsonl files, which
    are cut back to a saved state: what it holds is in no state yet.
    """

    path: Path

    def read(self, problems: Sequence[Problem], stream: str) -> dict[str, Group]:
        """Groups of ``stream`` that are there, by id; a line that was torn, or is of another stream, is passed over."""
        if not self.path.exists():
            return {}
        by_id = dict(zip(group_ids(problems, stream), problems, strict=True))
        found = {}
        for line in self.path.read_text(encoding="utf-8").split("\n")[:-1]:  # what follows the last end is torn
            row = json.loads(line)
            if row["group_id"] in by_id:
                found[row["group_id"]] = _group(row, by_id[row["group_id"]])
        return found

    def add(self, group: Group) -> None:
        """Keep a scored group."""
        if self.path.exists():
            self._cut_torn_line()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(group_row(group), ensure_ascii=False) + "\n")

    def clear(self) -> None:
        """Forget all: the part is over."""
        self.path.unlink(missing_ok=True)

    def _cut_torn_line(self) -> None:
        with self.path.open("r+b") as file:
            size = file.seek(0, 2)
            if not size:
                return
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)


def scored_groups(
    context: Context, sampler: Sampler, problems: Sequence[Problem], params: SamplingParams, journal: DrawnJournal
) -> list[Group]:
    """The scored group of each problem, in order; those in the journal are not drawn again."""
    known = journal.read(problems, params.stream)
    scoring: deque[Future[Group]] = deque()
    for group in draw_groups(sampler, problems, params, done=known):
        scoring.append(context.scorer.submit(group))
        while scoring and scoring[0].done():
            _take(scoring, known, journal)
    while scoring:
        _take(scoring, known, journal)
    return [known[group_id] for group_id in group_ids(problems, params.stream)]


def _take(scoring: deque[Future[Group]], known: dict[str, Group], journal: DrawnJournal) -> None:
    group = scoring.popleft().result()
    journal.add(group)
    known[group.group_id] = group


def group_row(group: Group) -> dict[str, object]:
    """A scored group as JSON: everything but log-probabilities, which only training needs."""
    return {
        "group_id": group.group_id,
        "problem_id": group.problem.id,
        "completions": [
            {
                "text": completion.text,
                "prefill": completion.prefill,
                "token_ids": completion.token_ids.tolist(),
                "finish_reason": completion.finish_reason,
                "policy_version": completion.policy_version_max,
                "policy_version_min": completion.policy_version_min,
                "verdict": reward.verdict,
                "score": reward.score,
                "extracted": reward.extracted,
                "parts": dict(reward.parts),
                "detail": reward.detail,
                "seconds": reward.seconds,
            }
            for completion, reward in zip(group.completions_G, group.rewards_G, strict=True)
        ],
    }


def _group(row: dict[str, list[dict[str, object]]], problem: Problem) -> Group:
    completions, rewards = [], []
    for one in row["completions"]:
        completions.append(
            Completion(
                prompt_ids=(),
                token_ids=one["token_ids"],
                sampler_logprobs=None,
                text=str(one["text"]),
                prefill=str(one["prefill"]),
                finish_reason=one["finish_reason"],
                policy_versions=one["policy_version"],
            )
        )
        rewards.append(
            RewardResult(
                score=one["score"],
                verdict=Verdict(str(one["verdict"])),
                extracted=one["extracted"],
                parts=one["parts"],
                detail=str(one["detail"]),
                seconds=one["seconds"],
            )
        )
    return Group(
        group_id=str(row["group_id"]), problem=problem, completions_G=tuple(completions), rewards_G=tuple(rewards)
    )

"""Scored groups of a list of problems, kept one by one, so that reject and eval go on by problem after a break."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter

from rlreason.sampler.groups import draw_groups, group_ids
from rlreason.types import Completion, Group, Problem, RewardResult, Sampler, SamplingParams, Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnCompletion:
    """A scored completion without its log-probabilities; see ``Completion`` and ``RewardResult``."""

    text: str
    prefill: str
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    policy_version: int
    reward: RewardResult
    #: Tokens of its prompt, for the ledger; 0 in lines from before they were counted.
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnGroup:
    """A line of the journal, and of an evaluation's completions."""

    group_id: str
    problem_id: str
    completions: tuple[DrawnCompletion, ...]


#: Told how many problems are done, of how many.
Watch = Callable[[int, int], None]

_JSON = TypeAdapter(DrawnGroup)


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
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what follows the last end of a line is torn
        rows = [_JSON.validate_json(line) for line in lines]
        return {row.group_id: _group(row, by_id[row.group_id]) for row in rows if row.group_id in by_id}

    def add(self, group: Group) -> None:
        """Keep a scored group."""
        if self.path.exists():
            self._cut_torn_line()
        with self.path.open("ab") as file:
            file.write(as_line(group))

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


def as_line(group: Group) -> bytes:
    """A scored group as a line of JSON."""
    return _JSON.dump_json(group_row(group)) + b"\n"


def scored_groups(
    scorer: Scorer,
    sampler: Sampler,
    problems: Sequence[Problem],
    params: SamplingParams,
    journal: DrawnJournal,
    watch: Watch = lambda done, total: None,
) -> list[Group]:
    """The scored group of each problem, in order; those in the journal are not drawn again. ``watch`` is told how many
    are there."""
    known = journal.read(problems, params.stream)
    scoring: deque[Future[Group]] = deque()
    watch(len(known), len(problems))
    for group in draw_groups(sampler, problems, params, done=known):
        scoring.append(scorer.submit(group))
        while scoring and scoring[0].done():
            _take(scoring, known, journal)
            watch(len(known), len(problems))
    while scoring:
        _take(scoring, known, journal)
        watch(len(known), len(problems))
    return [known[group_id] for group_id in group_ids(problems, params.stream)]


def _take(scoring: deque[Future[Group]], known: dict[str, Group], journal: DrawnJournal) -> None:
    group = scoring.popleft().result()
    journal.add(group)
    known[group.group_id] = group


def group_row(group: Group) -> DrawnGroup:
    """A scored group as JSON has it: everything but log-probabilities, which only training needs."""
    return DrawnGroup(
        group_id=group.group_id,
        problem_id=group.problem.id,
        completions=tuple(
            DrawnCompletion(
                text=completion.text,
                prefill=completion.prefill,
                token_ids=tuple(completion.token_ids.tolist()),
                finish_reason=completion.finish_reason,
                policy_version=completion.policy_version_max,
                reward=reward,
                prompt_tokens=len(completion.prompt_ids),
            )
            for completion, reward in zip(group.completions_G, group.rewards_G, strict=True)
        ),
    )


def _group(row: DrawnGroup, problem: Problem) -> Group:
    completions = tuple(
        Completion(
            prompt_ids=np.zeros(one.prompt_tokens, dtype=np.int32),  # only how many they are is known
            token_ids=np.asarray(one.token_ids, dtype=np.int32),
            sampler_logprobs=None,
            text=one.text,
            prefill=one.prefill,
            finish_reason=one.finish_reason,
            policy_versions=np.full(len(one.token_ids), one.policy_version, dtype=np.int32),
        )
        for one in row.completions
    )
    rewards = tuple(one.reward for one in row.completions)
    return Group(group_id=row.group_id, problem=problem, completions_G=completions, rewards_G=rewards)

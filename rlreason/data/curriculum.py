"""An online curriculum: problems that are always solved are passed over, and asked again later.

A group whose completions are all right has no advantage, so time spent on it teaches nothing; DAPO (arXiv 2503.14476,
section 3.2) draws such groups and throws them away, which costs the drawing. Here a problem is not drawn again until
the policy has had time to change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from rlreason.data.source import ProblemSource
from rlreason.types import Group, Problem, Verdict

__all__ = ["Curriculum", "solved"]


def solved(groups: Sequence[Group]) -> dict[str, bool]:
    """Whether all completions of each problem are right, by its id."""
    found: dict[str, bool] = {}
    for group in groups:
        right = all(reward.verdict is Verdict.CORRECT for reward in group.rewards_G)
        found[group.problem.id] = right and found.get(group.problem.id, True)
    return found


@dataclass(slots=True, kw_only=True)
class Curriculum:
    """The problems of each step: those of the stream in turn, but for those that are passed over now.

    What it knows changes only in ``learned``, so a step that was asked for and never trained is asked for again just
    the same. Example: ``Curriculum(source=source, cursor=0, skip_solved_after=2, retry_after=100)``.
    """

    source: ProblemSource
    #: Item of the training stream that comes next.
    cursor: int
    #: Times in a row that a problem must be solved before it is passed over, and steps until it is asked again.
    skip_solved_after: int
    retry_after: int
    #: Problem id -> (times in a row that it was solved, the last step of these).
    solved: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Where the step that was asked for last ends in the stream, and how many problems it passed over.
    _end: int = 0
    passed_over: int = 0

    def ask(self, step: int, count: int) -> list[Problem]:
        """The ``count`` problems of ``step``. A step is asked for once the one before it is learned."""
        self._end, self.passed_over = self.cursor, 0
        return self.more(step, count)

    def more(self, step: int, count: int) -> list[Problem]:
        """``count`` more of the step that was asked for last."""
        found: list[Problem] = []
        in_a_row, size = 0, self.source.train_size
        assert size is not None, "a stream without end has no problem twice"
        while len(found) < count:
            (problem,) = self.source.train(self._end, 1)
            self._end += 1
            if self._is_passed_over(problem, step) and in_a_row < size:
                in_a_row += 1
                self.passed_over += 1
                continue
            in_a_row = 0  # or a whole epoch is solved: then the next is asked all the same
            found.append(problem)
        return found

    def learned(self, step: int, outcome: Mapping[str, bool]) -> None:
        """``step`` is trained; ``outcome``: whether all completions of a problem were right, by its id."""
        self.cursor = self._end
        for problem_id, right in outcome.items():
            if right:
                times, _ = self.solved.get(problem_id, (0, 0))
                self.solved[problem_id] = (times + 1, step)
            else:
                self.solved.pop(problem_id, None)

    def state(self) -> dict[str, JsonValue]:
        """All that it knows, as JSON has it."""
        return {"cursor": self.cursor, "solved": {name: list(entry) for name, entry in self.solved.items()}}

    def load(self, state: Mapping[str, JsonValue]) -> None:
        """Go on from what ``state()`` gave."""
        cursor, known = state["cursor"], state["solved"]
        assert isinstance(cursor, int)
        assert isinstance(known, dict)
        self.cursor = cursor
        self.solved = {name: _entry(entry) for name, entry in known.items()}

    def _is_passed_over(self, problem: Problem, step: int) -> bool:
        if problem.id not in self.solved:
            return False
        times, last = self.solved[problem.id]
        return times >= self.skip_solved_after and step < last + self.retry_after


def _entry(entry: JsonValue) -> tuple[int, int]:
    assert isinstance(entry, list)
    times, step = (int(str(number)) for number in entry)
    return times, step

"""One text that was scored, and what was seen of it."""

from __future__ import annotations

from dataclasses import dataclass

from rlreason.rewards.audit.subject import Answer, Record
from rlreason.types import Completion, Problem, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Example: ``Case(name="empty", problem=…, completion=completion_of(""), verdict=Verdict.WRONG)``."""

    name: str
    problem: Problem
    completion: Completion
    #: What a right verifier says: rewards that ask for the main part's verdict are given it.
    verdict: Verdict = Verdict.WRONG
    #: Of an odd kind of answer: a reward may be for others.
    optional: bool = False

    @property
    def blank(self) -> bool:
        """Whether the response is nothing but white space."""
        return not self.completion.response.strip()

    def shown(self, answer: Answer) -> str:
        """For people: the text, cut short, and what it got."""
        text = self.completion.response
        cut = text if len(text) <= 160 else f"{text[:100]} … ({len(text):,} characters)"
        got = f"{answer.score:g}" if answer.score is not None else answer.shown
        return f"{self.name}: {cut!r} -> {got}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A case and the record of the call that scored it."""

    case: Case
    record: Record

    @property
    def answer(self) -> Answer:
        """What its completion got."""
        return self.record.answers[0]

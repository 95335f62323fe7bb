"""Prompts and demonstrations against the positions that a model and its sampler have.

A prompt must leave room for ``max_tokens`` of answer, a demonstration must fit the model. Which rows don't is found out
before the first stage, the same for every engine: such a row is refused by name, or left out and counted
(``data.overlong_prompts``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rlreason.config import (
    EvalStage,
    GrpoStage,
    OpdStage,
    Recipe,
    RejectStage,
    SftStage,
    Stage,
    TrainingStage,
)
from rlreason.data.prompts import PromptFormat
from rlreason.data.source import ProblemSource
from rlreason.errors import UsageError
from rlreason.policy.policies import Policy
from rlreason.types import Problem

#: Problems of an endless task that stand for all of them.
SPECIMENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlong:
    """A problem that doesn't fit. Example: ``Overlong(problem=..., reason="its prompt has 1122 tokens, …")``."""

    problem: Problem
    reason: str


@dataclass(slots=True)
class LengthCheck:
    """Finds what doesn't fit. Prompts are rendered once for all stages of models that share a tokenizer."""

    recipe: Recipe
    prompt_format: PromptFormat
    #: (tokenizer's vocabulary and template, problem's id and prompt) -> tokens of its prompt.
    _known: dict[tuple[object, ...], int] = field(default_factory=dict, init=False)

    def overlong(self, stage: Stage, source: ProblemSource, policy: Policy, longest: int | None) -> Iterator[Overlong]:
        """Problems of ``stage`` that don't fit a model of ``longest`` positions.

        Raises UsageError where an answer of ``max_tokens`` alone doesn't.
        """
        if isinstance(stage, SftStage) and longest is not None:
            yield from self._rows(stage, source, policy, longest)
        limit = self.recipe.sampler.max_length or longest
        if limit is None:
            return
        for problems, max_tokens, key in _drawn(stage, source):
            if max_tokens >= limit:
                raise UsageError(
                    f"stage {stage.name!r}: {key} = {max_tokens} leaves no room for a prompt in the {limit} positions "
                    f"of {'sampler.max_length' if self.recipe.sampler.max_length else 'its model'}"
                )
            for problem in problems:
                length = self._prompt_length(problem, policy)
                if length + max_tokens > limit:
                    yield Overlong(
                        problem=problem,
                        reason=f"has a prompt of {length} tokens, and {key} = {max_tokens}: together more than {limit}",
                    )

    def untaught(self, stage: OpdStage, source: ProblemSource, policy: Policy, longest: int) -> Iterator[Overlong]:
        """Problems whose answers may be longer than a teacher of ``longest`` positions can score."""
        for problem in _some(source):
            length = self._prompt_length(problem, policy)
            if length + stage.max_tokens > longest:
                yield Overlong(
                    problem=problem,
                    reason=f"has a prompt of {length} tokens, and max_tokens = {stage.max_tokens}: together more than "
                    f"the {longest} that a teacher of the stage can score",
                )

    def _rows(self, stage: SftStage, source: ProblemSource, policy: Policy, longest: int) -> Iterator[Overlong]:
        for problem in _some(source):
            if problem.answer is None:
                continue
            length = len(self.prompt_format.supervised(problem, policy.tokenizer).token_ids)
            if length > longest:
                yield Overlong(
                    problem=problem, reason=f"is a demonstration of {length} tokens, and the model has {longest}"
                )

    def _prompt_length(self, problem: Problem, policy: Policy) -> int:
        tokenizer = policy.tokenizer
        key = (len(tokenizer), tokenizer.chat_template, tokenizer.name_or_path, problem.id, problem.prompt)
        if key not in self._known:
            self._known[key] = len(self.prompt_format.render(problem, tokenizer).ids)
        return self._known[key]


def _drawn(stage: Stage, source: ProblemSource) -> Iterator[tuple[Sequence[Problem], int, str]]:
    """(problems that the stage draws answers to, longest answer, the key that says it)."""
    if isinstance(stage, (GrpoStage, RejectStage, OpdStage)):
        yield _some(source), stage.max_tokens, "max_tokens"
    if isinstance(stage, EvalStage):
        yield _heldout(source, stage.problems), stage.max_tokens, "max_tokens"
    if isinstance(stage, TrainingStage) and stage.eval_every:
        inherited = stage.eval_max_tokens is None and isinstance(stage, (GrpoStage, OpdStage))
        key = "max_tokens" if inherited else "eval_max_tokens"
        yield _heldout(source, stage.eval_problems), stage.longest_evaluated, key


def _some(source: ProblemSource) -> Sequence[Problem]:
    """All rows; of an endless task the first."""
    return source.train_specimens if source.alphabet is None else source.train(0, SPECIMENS)


def _heldout(source: ProblemSource, count: int) -> Sequence[Problem]:
    return source.heldout(count if source.alphabet is None else min(count, SPECIMENS))

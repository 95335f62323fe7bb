"""The cost ledger of a stage: what is drawn, learnt and scored, in tokens and floating-point operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlreason.errors import UsageError
from rlreason.policy.policies import PolicySource
from rlreason.run.manifest import StageEntry
from rlreason.sizing.flops import pass_of, training
from rlreason.sizing.shape import ModelShape, shape_of
from rlreason.trainer.counts import Passes
from rlreason.trainer.protocol import Trainer
from rlreason.types import Group, TrainingSample


def shape_or_none(source: PolicySource) -> ModelShape | None:
    """The shape of a model; None where it can't be counted."""
    try:
        return shape_of(source.inspect().model)
    except UsageError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model whose work is counted. Example: ``Measured(name="policy", shape=shape_or_none(source))``."""

    name: str
    #: None: it can't be counted.
    shape: ModelShape | None


@dataclass(slots=True, kw_only=True)
class Meter:
    """Adds to ``entry``, whose counts are those of the state that the stage goes on from."""

    entry: StageEntry
    model: Measured = field(default_factory=lambda: Measured(name="", shape=None))
    #: Of a trainer: layers are computed again in the backward pass; an adapter is trained.
    recompute: bool = False
    lora: bool = False
    #: By name; "": the one of a stage that has one.
    teachers: dict[str, Measured] = field(default_factory=dict)
    trainer: Trainer | None = None
    _trained: Passes = field(default_factory=Passes, init=False)
    _scored: Passes = field(default_factory=Passes, init=False)

    def drawn(self, groups: Sequence[Group]) -> None:
        """Completions that the stage is for."""
        self.entry.sampled_tokens += self._draw(groups)

    def evaluated(self, groups: Sequence[Group]) -> None:
        """Completions of an evaluation while it trains."""
        self.entry.work.evaluated_tokens += self._draw(groups)

    def _draw(self, groups: Sequence[Group]) -> int:
        passes = Passes()
        for group in groups:
            for one in group.completions_G:
                length = len(one.prompt_ids) + len(one.token_ids)
                passes.tokens += length
                passes.pairs += length**2 / 2
                passes.loss_tokens += len(one.token_ids)
        self.entry.work.sampling_flops += self._forward(self.model, passes)
        return passes.loss_tokens

    def taught(self, samples: Sequence[TrainingSample], teacher: str = "") -> None:
        """Rows that a teacher said something of; nothing where the stage has none."""
        if teacher not in self.teachers:
            return
        passes = Passes()
        passes.add(samples)
        self._score(self.teachers[teacher], passes)

    def bring_up_to_date(self) -> None:
        """Take in what the trainer has computed since the last time."""
        if self.trainer is None:
            return
        now = self.trainer.counts
        trained, self._trained = _since(self._trained, now.trained)
        scored, self._scored = _since(self._scored, now.scored)
        self._note(self.model, trained)
        if self.model.shape is not None:
            forward = pass_of(self.model.shape, trained.tokens, trained.pairs, trained.loss_tokens)
            self.entry.work.training_flops += training(forward, recompute=self.recompute, lora=self.lora)
        self._score(self.model, scored)

    def _score(self, model: Measured, passes: Passes) -> None:
        self.entry.work.scored_tokens += passes.loss_tokens
        self.entry.work.scoring_flops += self._forward(model, passes)

    def _forward(self, model: Measured, passes: Passes) -> float:
        self._note(model, passes)
        if model.shape is None:
            return 0.0
        return pass_of(model.shape, passes.tokens, passes.pairs, passes.loss_tokens).total

    def _note(self, model: Measured, passes: Passes) -> None:
        """Say of a model that its work is left out."""
        if model.shape is None and passes.tokens and model.name not in self.entry.work.uncounted:
            self.entry.work.uncounted.append(model.name)


def _since(before: Passes, now: Passes) -> tuple[Passes, Passes]:
    """(what was added, a copy of what there is)."""
    added = Passes(now.tokens - before.tokens, now.pairs - before.pairs, now.loss_tokens - before.loss_tokens)
    return added, Passes(now.tokens, now.pairs, now.loss_tokens)

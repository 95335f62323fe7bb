"""How much a trainer has computed, as far as cost goes: counted from the samples that it was given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlreason.types import TrainingSample


@dataclass(slots=True)
class Passes:
    """Rows that went through a model, added up."""

    #: Positions; a prompt that rows of one group share counts once a call.
    tokens: int = 0
    #: Pairs of a query and a key that it sees.
    pairs: float = 0.0
    #: Tokens with loss, for which the head is computed.
    loss_tokens: int = 0

    def add(self, samples: Sequence[TrainingSample]) -> None:
        """Take in the samples of one call."""
        prompts: set[str] = set()
        for sample in samples:
            prompt, length = sample.prompt_length, len(sample.token_ids)
            if not sample.group_id or sample.group_id not in prompts:
                prompts.add(sample.group_id)
                self.tokens += prompt
                self.pairs += prompt**2 / 2
            behind = length - prompt
            self.tokens += behind
            self.pairs += behind * (prompt + behind / 2)
            self.loss_tokens += int(sample.loss_mask.sum())


@dataclass(slots=True)
class Counts:
    """Of one trainer since it was opened."""

    #: Forward and backward.
    trained: Passes = field(default_factory=Passes)
    #: Log-probabilities alone, of the policy and its reference.
    scored: Passes = field(default_factory=Passes)

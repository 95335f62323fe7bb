"""Who draws completions and who scores them, as every room may ask: the protocols beside the nouns of ``types``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from rlreason.types import Completion, Group, Request


class Sampler(Protocol):
    """Draws completions: a pool of rollout workers with the policy's weights, or a server that has a model of its own.

    Engines: ``rlreason.sampler``.
    """

    @property
    def version(self) -> int:
        """Version of the weights that the next token will be drawn with; 0 where they never change."""
        ...

    @property
    def gives_logprobs(self) -> bool:
        """Whether completions carry ``sampler_logprobs``, without which nothing can be trained on them."""
        ...

    def ask(self, requests: Sequence[Request]) -> None:
        """Have these completions drawn."""
        ...

    def poll(self, seconds: float) -> list[tuple[Request, Completion]]:
        """What has been drawn since the last call, waiting up to ``seconds`` for the first."""
        ...

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int, expected: Sequence[Tensor] = ()) -> None:
        """Take over new weights; every later token is drawn with them and stamped ``version``.

        ``expected``: what the trainer says after each of the sampler's probe prompts, log-probabilities [V] float32,
        which the delivery is proved with. Raises UsageError where the sampler takes no weights.
        """
        ...

    def close(self) -> None:
        """End what was started for it."""
        ...


class Scorer(Protocol):
    """Gives every completion of every group its reward; never raises for what a completion contains."""

    def submit(self, group: Group, together: Sequence[str] = ()) -> Future[Group]:
        """The group with ``rewards_G`` filled, some time. ``together``: ids of all that are drawn for its step."""
        ...

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The same groups with ``rewards_G`` filled."""
        ...

"""The difference between the sampler's and the trainer's log-probabilities, link by link.

    trainer --staleness--> weights that drew the token --precision--> in the sampler's dtype, same experts
            --router--> with the sampler's experts --transform--> at the sampler's temperature --residual--> sampler

A part is what one link changes; the parts add up to log π_trainer − log π_sampler of every token.
N = tokens, L = layers with experts, K = experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlreason.diagnose.mismatch_advice import NEGLIGIBLE
from rlreason.trainer.rescoring import Precision, Rescorer, Scores
from rlreason.types import Completion

CAUSES = ("staleness", "precision", "router", "transform", "residual")
#: Another explanation is believed where it leaves at most this share of the difference.
EXPLAINED = 0.5

#: Whose choice of experts stands for the sampler's. dense: there are none. own: that of the same weights in its dtype.
#: reported: its own. unknown: the routers can't be read, so precision holds their part.
Experts = Literal["dense", "own", "reported", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The chain: log π at its six points, [N] each, float64, from the trainer to the sampler."""

    points: tuple[Tensor, ...]
    #: The recipe's temperature, or 1 where that is what the sampler's log-probabilities fit.
    sampler_temperature: float
    experts: Experts
    #: Share of (token, layer) that the trainer and the sampler send to different experts; None without experts.
    rerouted: float | None
    #: Whether the weights of one version earlier fit the sampler far better than those it was said to hold.
    looks_undelivered: bool

    @property
    def parts(self) -> dict[str, Tensor]:
        """Signed difference [N] that each cause makes."""
        return {cause: before - after for cause, (before, after) in zip(CAUSES, pairwise(self.points), strict=True)}


def split(
    rescorer: Rescorer,
    completions: Sequence[Completion],
    version: int,
    temperature: float,
    precisions: tuple[Precision, Precision],
) -> Split:
    """Re-score ``completions``, those of ``rescorer``. ``version``: the trainer's; ``precisions``: the trainer's and
    the sampler's. Links that change nothing are not computed."""
    ours, theirs = precisions
    sampler_N = torch.from_numpy(np.concatenate([_logprobs(one) for one in completions])).double()
    drawn_N = torch.from_numpy(np.concatenate([one.policy_versions for one in completions])).long()
    reported_NLK = _reported(completions, rescorer)
    forced = None if reported_NLK is None else rescorer.routing_of(reported_NLK)
    versions = sorted(set(drawn_N.tolist()))

    def sampler_like(at: float, lag: int = 0) -> dict[int, Scores]:
        return {one: rescorer.score(max(one - lag, 0), theirs, at, forced) for one in versions}

    trainer_N = rescorer.score(version, ours, temperature).logprobs_N
    drawn = {one: rescorer.score(one, ours, temperature) for one in versions}
    rounded = drawn
    if theirs != ours:
        rounded = {one: rescorer.score(one, theirs, temperature, drawn[one].routing) for one in versions}
    # Without routers a second pass would repeat the one before, as it would where nothing forces other experts.
    routed = rounded
    if rescorer.routers is not None and (theirs != ours or forced is not None):
        routed = sampler_like(temperature)
    points = [trainer_N, *(_merged(scores, drawn_N) for scores in (drawn, rounded, routed))]
    fitted, fitted_N = temperature, points[-1]
    if temperature != 1.0:
        plain_N = _merged(sampler_like(1.0), drawn_N)
        if _explains(plain_N, fitted_N, sampler_N):
            fitted, fitted_N = 1.0, plain_N
    undelivered = False
    if _size(fitted_N - sampler_N, largest=True) > NEGLIGIBLE and all(rescorer.has(max(v - 1, 0)) for v in versions):
        undelivered = _explains(_merged(sampler_like(fitted, lag=1), drawn_N), fitted_N, sampler_N)
    return Split(
        points=(*points, fitted_N, sampler_N),
        sampler_temperature=fitted,
        experts=_experts(rescorer, reported=forced is not None),
        rerouted=_rerouted(drawn, routed, drawn_N),
        looks_undelivered=undelivered,
    )


def _merged(scores: Mapping[int, Scores], drawn_N: Tensor) -> Tensor:
    """Each token's log-probability under the version that drew it."""
    merged_N = torch.empty(len(drawn_N), dtype=torch.float64)
    for version, score in scores.items():
        merged_N[drawn_N == version] = score.logprobs_N[drawn_N == version]
    return merged_N


def _explains(other_N: Tensor, now_N: Tensor, sampler_N: Tensor) -> bool:
    return _size(other_N - sampler_N) < EXPLAINED * _size(now_N - sampler_N)


def _logprobs(completion: Completion) -> npt.NDArray[np.float32]:
    assert completion.sampler_logprobs is not None  # the doctor leaves out completions without
    return completion.sampler_logprobs


def _size(difference_N: Tensor, *, largest: bool = False) -> float:
    sizes_N = difference_N.abs()
    return float(sizes_N.max() if largest else sizes_N.mean())


def _reported(completions: Sequence[Completion], rescorer: Rescorer) -> Tensor | None:
    """Experts that the sampler reported, [N, L, K]; None where it did not, or of another shape than the model's."""
    if rescorer.routers is None:
        return None
    found = [completion.routed_experts for completion in completions if completion.routed_experts is not None]
    if len(found) < len(completions):
        return None
    experts_NLK = torch.from_numpy(np.concatenate(found)).long()
    shape = (rescorer.count, rescorer.routers.layers, rescorer.routers.chosen)
    return experts_NLK if experts_NLK.shape == shape else None


def _experts(rescorer: Rescorer, *, reported: bool) -> Experts:
    if not rescorer.experts:
        return "dense"
    if rescorer.routers is None:
        return "unknown"
    return "reported" if reported else "own"


def _rerouted(before: Mapping[int, Scores], after: Mapping[int, Scores], drawn_N: Tensor) -> float | None:
    changed, count = 0, 0
    for version, score in before.items():
        first_NLK, second_NLK = score.experts_NLK, after[version].experts_NLK
        if first_NLK is None or second_NLK is None:
            return None
        mine_N = drawn_N == version
        moved_ML = (first_NLK[mine_N].sort(dim=-1).values != second_NLK[mine_N].sort(dim=-1).values).any(dim=-1)
        changed, count = changed + int(moved_ML.sum()), count + moved_ML.numel()
    return changed / count

"""Sampler against trainer of one model, by how deep in its context a token stands, in units that can be compared.

v1 = mean(log π_sampler − log π_trainer) and v2 = mean((log π_sampler − log π_trainer)²)/2 over tokens that the sampler
drew: two estimates of KL(sampler || trainer) in nats a token, as tinker-cookbook's ``kl_sample_train_v1`` and ``_v2``
(v1 has no bias and may be negative by chance; v2 has little variance). N = tokens, L = layers with experts, K = experts
per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from rlreason.policy.batch import trained_tokens
from rlreason.trainer.rescoring import Precision, Rescorer, WeightHistory
from rlreason.types import Completion

#: Depths at which a new row of the table begins: tokens before the one that is drawn.
DEPTHS = (0, 128, 512, 2048, 8192, 32_768, 131_072)
#: v1 of sound set-ups, by tinker-cookbook's rl_numerics_check: a dense model of 27B, and a mixture of 35B.
HEALTHY_DENSE, HEALTHY_EXPERTS = 2e-4, 2e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The tokens whose depth is from ``first`` to before ``end``. Example: ``Band(first=0, end=128, tokens=512,
    v1=1e-5, error=2e-5, v2=3e-5, largest=0.02, off=0.0, agree=None)``."""

    first: int
    #: None: the deepest that there is.
    end: int | None
    tokens: int
    v1: float
    #: Standard error of v1.
    error: float
    v2: float
    #: Largest |log π_sampler − log π_trainer|.
    largest: float
    #: Share of tokens whose probability is off by more than a tenth.
    off: float
    #: Of a mixture of experts that says where its tokens went: share of (token, layer) with the trainer's own choice.
    agree: float | None


def measure(
    model: PreTrainedModel, completions: Sequence[Completion], temperature: float, micro_batch_tokens: int = 8192
) -> list[Band]:
    """The whole first, then each depth that has tokens. ``model`` holds the weights that drew ``completions``.

    Completions without a finite log-probability for each token are left out; raises ValueError where none is left.
    """
    taken = [one for one in completions if len(one.token_ids) and bool(trained_tokens(one).all())]
    sampler = [one.sampler_logprobs for one in taken if one.sampler_logprobs is not None]
    if not sampler or len(sampler) < len(taken):
        raise ValueError("no completion has a log-probability for each of its tokens")
    rescorer = Rescorer(model, 0, WeightHistory(1), taken, micro_batch_tokens)
    found = rescorer.score(0, Precision.of(model), temperature)
    away_N = np.concatenate(sampler).astype(np.float64) - found.logprobs_N.numpy()
    depth_N = np.concatenate([len(one.prompt_ids) + np.arange(len(one.token_ids)) for one in taken])
    agree_NL = None
    told = [one.routed_experts for one in taken if one.routed_experts is not None]
    if found.experts_NLK is not None and len(told) == len(taken):
        agree_NL = same_experts(np.concatenate(told), found.experts_NLK.cpu().numpy())
    bands = [band(away_N, agree_NL, 0, None)]
    for first, end in zip(DEPTHS, (*DEPTHS[1:], None), strict=True):
        inside_N = (depth_N >= first) & (depth_N < (math.inf if end is None else end))
        if inside_N.any():
            agree = None if agree_NL is None else agree_NL[inside_N]
            bands.append(band(away_N[inside_N], agree, first, end))
    return bands


def same_experts(one_NLK: npt.NDArray[np.integer], other_NLK: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Whether both sets of experts are the same, [N, L]; in whatever order."""
    same: npt.NDArray[np.bool_] = (np.sort(one_NLK, axis=-1) == np.sort(other_NLK, axis=-1)).all(axis=-1)
    return same


def band(away_N: npt.NDArray[np.float64], agree_NL: npt.NDArray[np.bool_] | None, first: int, end: int | None) -> Band:
    """The numbers of some tokens. ``away_N``: log π_sampler − log π_trainer."""
    count = len(away_N)
    return Band(
        first=first,
        end=end,
        tokens=count,
        v1=float(away_N.mean()),
        error=float(away_N.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf,
        v2=float(0.5 * np.square(away_N).mean()),
        largest=float(np.abs(away_N).max()),
        off=float((np.abs(np.expm1(-away_N)) > 0.1).mean()),
        agree=None if agree_NL is None else float(agree_NL.mean()),
    )


def is_healthy(one: Band, *, experts: bool) -> bool:
    """Whether v2, and v1 beyond twice its error, are within what sound set-ups have."""
    limit = HEALTHY_EXPERTS if experts else HEALTHY_DENSE
    return one.v2 <= limit and abs(one.v1) - 2 * one.error <= limit

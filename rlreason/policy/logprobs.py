"""Token log-probabilities of a policy: float32, from float32 logits, at the sampling temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """What one forward pass says of a batch. Shapes [B, T]; ``entropy_BT`` is detached, in nats."""

    logprobs_BT: Tensor
    entropy_BT: Tensor


def target_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Float32 logits [B, T, V] that predict ``batch.targets_BT``.

    Right padding needs no mask under causal attention: a real token never sees the padding after it, and padded
    positions are masked out of every loss. Leaving the mask out keeps the fast attention kernel.
    """
    output = model(input_ids=batch.token_ids_BT, use_cache=False)
    logits: Tensor = output.logits
    return logits.float()


def target_logprobs(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """log softmax(logits) of each target, [B, T], float32."""
    chosen_BT = logits_BTV.gather(-1, batch.targets_BT.unsqueeze(-1)).squeeze(-1)
    return chosen_BT - torch.logsumexp(logits_BTV, dim=-1)


def token_logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> TokenLogprobs:
    """log π(target | prefix) of every target, under softmax(logits / temperature)."""
    logits_BTV = target_logits(model, batch) / temperature
    with torch.no_grad():
        all_BTV = torch.log_softmax(logits_BTV, dim=-1)
        entropy_BT = -(all_BTV.exp() * all_BTV).sum(dim=-1)
    return TokenLogprobs(logprobs_BT=target_logprobs(logits_BTV, batch), entropy_BT=entropy_BT)

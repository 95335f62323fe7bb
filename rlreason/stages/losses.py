"""Forward pass and loss of one micro-batch: through the fused head where a model's head is a plain product, through
whole logits where it is not."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.objective.dispatch import linear_logprobs, linear_policy_loss, linear_supervised_loss, policy_loss
from rlreason.objective.linear import HeadOptions
from rlreason.objective.loss import supervised_loss
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.logprobs import hidden_states, plain_head, target_entropy, target_logits, target_logprobs
from rlreason.types import Batch, LossOutput


def rollout_loss(
    model: PreTrainedModel,
    batch: Batch,
    spec: ObjectiveSpec,
    temperature: float,
    old_logprobs_BT: Tensor | None = None,
    reference_logprobs_BT: Tensor | None = None,
) -> LossOutput:
    """The objective's loss of ``model``, under softmax(logits / temperature), with the sum of entropies beside it.

    ``old_logprobs_BT`` None means on-policy: the ratio is 1 with a gradient.
    """
    weight_VH = plain_head(model)
    if weight_VH is None:
        logits_BTV = target_logits(model, batch) / temperature
        now_BT = target_logprobs(logits_BTV, batch)
        output = policy_loss(now_BT, old_logprobs_BT, batch, spec, reference_logprobs_BT)
        entropy = (target_entropy(logits_BTV) * batch.loss_mask_BT).sum()
    else:
        hidden_BTH = hidden_states(model, batch)
        options = HeadOptions(temperature=temperature)
        output = headed = linear_policy_loss(
            hidden_BTH, weight_VH, batch, spec, old_logprobs_BT, reference_logprobs_BT, options
        )
        entropy = headed.entropy_BT.sum()
    return LossOutput(loss=output.loss, sums={**output.sums, "entropy": entropy}, maxima=output.maxima)


def demonstration_loss(model: PreTrainedModel, batch: Batch, denominator: float) -> LossOutput:
    """Cross-entropy of the batch's loss tokens, divided by ``denominator``."""
    weight_VH = plain_head(model)
    if weight_VH is None:
        return supervised_loss(target_logprobs(target_logits(model, batch), batch), batch.loss_mask_BT, denominator)
    return linear_supervised_loss(hidden_states(model, batch), weight_VH, batch, denominator)


@torch.no_grad()
def loss_logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π of every loss token under softmax(logits / temperature), [B, T], float32; 0 where masked."""
    weight_VH = plain_head(model)
    if weight_VH is None:
        now_BT = target_logprobs(target_logits(model, batch) / temperature, batch)
        return now_BT.masked_fill(batch.loss_mask_BT == 0, 0.0)
    hidden_BTH = hidden_states(model, batch)
    return linear_logprobs(hidden_BTH, weight_VH, batch, HeadOptions(temperature=temperature))[0]

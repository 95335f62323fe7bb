"""Advantages that need no teacher and no reward: a constant on the least probable tokens of each response.

The baseline that on-policy distillation must beat (arXiv 2608.31046): on a set of improbable words of each state it is
a cooling of the policy, so its control is the start decoded at a lower temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.dispatch import linear_logprobs, linear_policy_loss, policy_loss
from rlreason.objective.linear import HeadOptions
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.logprobs import hidden_states, plain_head, target_entropy, target_logits, target_logprobs
from rlreason.trainer.experts import counts_of, routed_pass
from rlreason.trainer.protocol import Models

_SPEC = ObjectiveSpec(ratio="on_policy", clip="none", correction="none")


def lowest_tokens(logprobs_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """The ⌈share · n⌉ least probable of each row's n loss tokens, bool [B, T]; among equals the earlier ones."""
    mask_BT = mask_BT > 0
    masked_BT = logprobs_BT.masked_fill(~mask_BT, torch.inf)
    rank_BT = masked_BT.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    count_B1 = torch.ceil(share * mask_BT.sum(dim=1, keepdim=True).double() - 1e-9)
    return (rank_BT < count_B1) & mask_BT


def entropy_advantages(entropy_BT: Tensor, chosen_BT: Tensor) -> Tensor:
    """−½ − (H − H_min) / (2 (H_max − H_min)) of the chosen tokens, the bounds those of each row's; 0 elsewhere."""
    low_B1 = entropy_BT.masked_fill(~chosen_BT, torch.inf).amin(dim=1, keepdim=True)
    high_B1 = entropy_BT.masked_fill(~chosen_BT, -torch.inf).amax(dim=1, keepdim=True)
    wide_B1 = high_B1 - low_B1
    place_BT = torch.where(wide_B1 > 0, (entropy_BT - low_B1) / wide_B1, torch.zeros_like(entropy_BT))
    return torch.where(chosen_BT, -0.5 - 0.5 * place_BT, torch.zeros_like(entropy_BT))


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedAdvantageLoss:
    """−A log p averaged over the chosen tokens of the step, whose number is ``denominator``."""

    advantage: Literal["fixed", "fixed_entropy"]
    value: float
    lowest: float
    denominator: float
    takes_packed: bool = True
    scores: None = None

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        """See ``Loss``."""
        model, options = models.policy, HeadOptions(rows_R=batch.loss_rows_R)
        weight_VH, routed = plain_head(model), routed_pass(model, batch)
        if weight_VH is None:
            logits_BTV = target_logits(model, batch, routed=routed)
            logprobs_BT = target_logprobs(logits_BTV, batch)
            given = self._with(batch, logprobs_BT.detach(), target_entropy(logits_BTV.detach()))
            output = policy_loss(logprobs_BT, None, given, _SPEC)
        else:
            hidden_BTH = hidden_states(model, batch, routed=routed)
            now_BT, entropy_BT = linear_logprobs(hidden_BTH, weight_VH, batch, options)
            given = self._with(batch, now_BT, entropy_BT)
            output = linear_policy_loss(hidden_BTH, weight_VH, given, _SPEC, options=options)
        chosen = (given.advantages_BT != 0).sum()
        return LossOutput(
            loss=output.loss,
            sums={**output.sums, "tokens/chosen": chosen},
            maxima=output.maxima,
            experts=counts_of(model, routed, batch),
        )

    def _with(self, batch: Batch, logprobs_BT: Tensor, entropy_BT: Tensor) -> Batch:
        chosen_BT = lowest_tokens(logprobs_BT, batch.loss_mask_BT, self.lowest)
        advantages_BT = torch.where(chosen_BT, self.value, 0.0)
        if self.advantage == "fixed_entropy":
            advantages_BT = entropy_advantages(entropy_BT, chosen_BT)
        weights_BT = torch.full_like(batch.weights_BT, 1.0 / self.denominator)
        return replace(batch, advantages_BT=advantages_BT.to(weights_BT.dtype), weights_BT=weights_BT)

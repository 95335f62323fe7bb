"""Forward pass and loss of one micro-batch: through the fused head where a model's head is a plain product, through
whole logits where it is not. The losses of the stages are here as plain data (``trainer.protocol.Loss``)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.centering import centred_output
from rlreason.objective.dispatch import linear_logprobs, linear_policy_loss, linear_supervised_loss, policy_loss
from rlreason.objective.linear import HeadOptions
from rlreason.objective.loss import supervised_loss
from rlreason.objective.scores import StepScores
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.logprobs import hidden_states, plain_head, target_entropy, target_logits, target_logprobs
from rlreason.policy.token_rows import cut_logits
from rlreason.routing import RoutedPass
from rlreason.trainer.balance import with_router_loss
from rlreason.trainer.experts import counts_of, routed_pass
from rlreason.trainer.protocol import Models


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradientLoss:
    """The objective's loss under softmax(logits / temperature), with the sum of entropies beside it.

    Samples without ``old_logprobs`` are on-policy: the ratio is 1 with a gradient.
    """

    spec: ObjectiveSpec
    temperature: float = 1.0
    takes_packed: bool = True
    #: Send every token to the experts that its sample names (routing replay).
    replay: bool = False
    #: What the trainer makes the advantages of; None: the samples' own stand.
    scores: StepScores | None = None

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        """See ``Loss``."""
        model, old_BT, reference_BT = models.policy, batch.old_logprobs_BT, batch.reference_logprobs_BT
        if self.spec.kl_in != "loss":
            reference_BT = None
        weight_VH, routed = plain_head(model), routed_pass(model, batch, replay=self.replay)
        if weight_VH is None:
            logits_BTV = cut_logits(target_logits(model, batch, routed=routed) / self.temperature, batch)
            output = policy_loss(target_logprobs(logits_BTV, batch), old_BT, batch, self.spec, reference_BT)
            if self.spec.centering != "off":
                output = centred_output(output, logits_BTV, batch, self.spec, old_BT)
            with_gradient = logits_BTV if self.spec.entropy_coef else logits_BTV.detach()
            entropy_BT = target_entropy(with_gradient) * batch.loss_mask_BT
            if self.spec.entropy_coef:
                bonus = self.spec.entropy_coef * (entropy_BT * batch.weights_BT).sum()
                output = replace(output, loss=output.loss - bonus)
            entropy = entropy_BT.detach().sum()
        else:
            hidden_BTH = hidden_states(model, batch, routed=routed)
            options = HeadOptions(temperature=self.temperature, rows_R=batch.loss_rows_R)
            output = headed = linear_policy_loss(hidden_BTH, weight_VH, batch, self.spec, old_BT, reference_BT, options)
            entropy = headed.entropy_BT.sum()
        sums = {**output.sums, "entropy": entropy}
        experts = counts_of(model, routed, batch)
        return LossOutput(loss=output.loss, sums=sums, maxima=output.maxima, experts=experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropyLoss:
    """Cross-entropy of the loss tokens, divided by ``denominator``: the step's loss tokens."""

    denominator: float
    takes_packed: bool = True
    scores: None = None

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        """See ``Loss``."""
        model = models.policy
        routing: list[Tensor] | None = [] if models.router_aux_loss else None
        weight_VH, routed = plain_head(model), routed_pass(model, batch)
        if weight_VH is None:
            logprobs_BT = target_logprobs(target_logits(model, batch, routing, routed), batch)
            output = supervised_loss(logprobs_BT, batch.loss_mask_BT, self.denominator)
        else:
            hidden_BTH = hidden_states(model, batch, routing, routed)
            options = HeadOptions(rows_R=batch.loss_rows_R)
            output = linear_supervised_loss(hidden_BTH, weight_VH, batch, self.denominator, options)
        output = replace(output, experts=counts_of(model, routed, batch))
        return _balanced(output, models, batch, routing, self.denominator)


def _balanced(
    output: LossOutput, models: Models, batch: Batch, routing: list[Tensor] | None, denominator: float
) -> LossOutput:
    if routing is None:
        return output
    return with_router_loss(output, models.policy, routing, batch, models.router_aux_loss, denominator)


@torch.no_grad()
def loss_logprobs(
    model: PreTrainedModel, batch: Batch, temperature: float = 1.0, routed: RoutedPass | None = None
) -> Tensor:
    """log π of every loss token under softmax(logits / temperature), [B, T], float32; 0 where masked."""
    weight_VH = plain_head(model)
    if weight_VH is None:
        logits_BTV = cut_logits(target_logits(model, batch, routed=routed) / temperature, batch)
        now_BT = target_logprobs(logits_BTV, batch)
        return now_BT.masked_fill(batch.loss_mask_BT == 0, 0.0)
    hidden_BTH = hidden_states(model, batch, routed=routed)
    options = HeadOptions(temperature=temperature, rows_R=batch.loss_rows_R)
    return linear_logprobs(hidden_BTH, weight_VH, batch, options)[0]

"""Forward pass and loss of one micro-batch: through the fused head where a model's head is a plain product, through
whole logits where it is not. The losses of the stages are here as plain data (``trainer.protocol.Loss``)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.dispatch import linear_logprobs, linear_policy_loss, linear_supervised_loss, policy_loss
from rlreason.objective.linear import HeadOptions
from rlreason.objective.loss import distillation_loss, supervised_loss
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.logprobs import hidden_states, plain_head, target_entropy, target_logits, target_logprobs
from rlreason.trainer.balance import with_router_loss
from rlreason.trainer.protocol import Models


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradientLoss:
    """The objective's loss under softmax(logits / temperature), with the sum of entropies beside it.

    Samples without ``old_logprobs`` are on-policy: the ratio is 1 with a gradient.
    """

    spec: ObjectiveSpec
    temperature: float = 1.0
    takes_packed: bool = True

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        """See ``Loss``."""
        model, old_BT, reference_BT = models.policy, batch.old_logprobs_BT, batch.reference_logprobs_BT
        if self.spec.kl_in != "loss":
            reference_BT = None
        weight_VH = plain_head(model)
        if weight_VH is None:
            logits_BTV = target_logits(model, batch) / self.temperature
            output = policy_loss(target_logprobs(logits_BTV, batch), old_BT, batch, self.spec, reference_BT)
            entropy = (target_entropy(logits_BTV) * batch.loss_mask_BT).sum()
        else:
            hidden_BTH = hidden_states(model, batch)
            options = HeadOptions(temperature=self.temperature, rows_R=batch.loss_rows_R)
            output = headed = linear_policy_loss(hidden_BTH, weight_VH, batch, self.spec, old_BT, reference_BT, options)
            entropy = headed.entropy_BT.sum()
        return LossOutput(loss=output.loss, sums={**output.sums, "entropy": entropy}, maxima=output.maxima)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropyLoss:
    """Cross-entropy of the loss tokens, divided by ``denominator``: the step's loss tokens."""

    denominator: float
    takes_packed: bool = True

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        """See ``Loss``."""
        model = models.policy
        routing: list[Tensor] | None = [] if models.router_aux_loss else None
        weight_VH = plain_head(model)
        if weight_VH is None:
            logprobs_BT = target_logprobs(target_logits(model, batch, routing), batch)
            output = supervised_loss(logprobs_BT, batch.loss_mask_BT, self.denominator)
        else:
            hidden_BTH = hidden_states(model, batch, routing)
            options = HeadOptions(rows_R=batch.loss_rows_R)
            output = linear_supervised_loss(hidden_BTH, weight_VH, batch, self.denominator, options)
        return _balanced(output, models, batch, routing, self.denominator)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherKlLoss:
    """(1 − w) cross-entropy + w KL(teacher || policy), averaged over ``denominator`` loss tokens (Hinton et al. 2015,
    arXiv 1503.02531). Whole logits of both models: for small vocabularies and short rows."""

    denominator: float
    #: w.
    teacher_kl: float
    #: Tokens of the tokenizer that both share. Heads may have more rows than that, each as many as its size asks for
    #: (Qwen2.5 7B has 152,064 and 1.5B 151,936 of one tokenizer): both distributions are over the shared ones.
    vocabulary: int | None = None
    takes_packed: bool = False

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        """See ``Loss``. Needs a teacher."""
        assert models.teacher is not None
        routing: list[Tensor] | None = [] if models.router_aux_loss else None
        logits_BTV = target_logits(models.policy, batch, routing)
        output = supervised_loss(target_logprobs(logits_BTV, batch), batch.loss_mask_BT, self.denominator)
        with torch.no_grad():
            teacher_BTV = target_logits(models.teacher, batch)
        shared = self.vocabulary
        divergence = distillation_loss(
            logits_BTV[..., :shared], teacher_BTV[..., :shared], batch.loss_mask_BT, self.denominator
        )
        loss = (1.0 - self.teacher_kl) * output.loss + self.teacher_kl * divergence.loss
        mixed = LossOutput(loss=loss, sums={**output.sums, **divergence.sums})
        return _balanced(mixed, models, batch, routing, self.denominator)


def _balanced(
    output: LossOutput, models: Models, batch: Batch, routing: list[Tensor] | None, denominator: float
) -> LossOutput:
    if routing is None:
        return output
    return with_router_loss(output, models.policy, routing, batch, models.router_aux_loss, denominator)


@torch.no_grad()
def loss_logprobs(model: PreTrainedModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """log π of every loss token under softmax(logits / temperature), [B, T], float32; 0 where masked."""
    weight_VH = plain_head(model)
    if weight_VH is None:
        now_BT = target_logprobs(target_logits(model, batch) / temperature, batch)
        return now_BT.masked_fill(batch.loss_mask_BT == 0, 0.0)
    hidden_BTH = hidden_states(model, batch)
    options = HeadOptions(temperature=temperature, rows_R=batch.loss_rows_R)
    return linear_logprobs(hidden_BTH, weight_VH, batch, options)[0]

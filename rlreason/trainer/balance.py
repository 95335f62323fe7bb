"""The load-balancing loss of mixture-of-experts models, which keeps a supervised stage from starving experts.

Switch Transformer (arXiv 2101.03961, eq. 4-6): experts · Σ_e f_e p_e, with f_e the tokens that expert e was chosen for
and p_e the mean probability that the router gives it, both as shares of the tokens. It is computed by transformers' own
function of the model, of each layer's tokens in one micro-batch, and the layers' mean is weighed by the micro-batch's
share of the step's loss tokens. (transformers' models join the tokens of all layers first: that sum is at its minimum
although each layer sends everything to the same experts, where these are others in every layer.) A product of means is
no sum over tokens: with other micro-batches it is another (noisier) estimate of the same thing, so this term alone is
not exactly invariant to ``micro_batch_tokens``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.errors import UsageError
from rlreason.objective.batch import Batch, LossOutput
from rlreason.routing import chosen_count, expert_count

if TYPE_CHECKING:
    from rlreason.config import PolicyConfig

_COEFFICIENT = "router_aux_loss_coef"


def router_coefficient(setting: float | Literal["auto", "off"], config: PolicyConfig, model: PreTrainedModel) -> float:
    """What the load-balancing loss is multiplied with in supervised stages; 0: it is not computed.

    auto: ``router_aux_loss_coef`` of a loaded model's config; of a model built from nothing where the recipe sets it in
    ``[policy.model]``. Raises UsageError where a number is asked for of a model that has no such loss.
    """
    if setting in {"off", 0.0} or not expert_count(model):
        return 0.0
    known = _loss_function(model) is not None
    if not known and setting != "auto":
        raise UsageError(
            f"trainer.router_aux_loss = {setting}: transformers has no load-balancing loss for "
            f'{type(model).__name__}; say "auto" or "off"'
        )
    if setting != "auto":
        return float(setting)
    if not known or (config.path is None and _COEFFICIENT not in config.model):
        return 0.0
    settings = model.config.to_dict()
    return float(settings[_COEFFICIENT] or 0.0) if _COEFFICIENT in settings else 0.0


def with_router_loss(
    output: LossOutput,
    model: PreTrainedModel,
    router_logits: Sequence[Tensor],
    batch: Batch,
    coefficient: float,
    denominator: float,
) -> LossOutput:
    """``output`` with coefficient · load-balancing loss added. ``router_logits``: [tokens, experts] of each layer."""
    function = _loss_function(model)
    assert function is not None
    mask = None if batch.packing is not None else _tokens_of_rows(batch)
    experts, chosen = expert_count(model), chosen_count(model)
    balance = torch.stack([function((one,), experts, chosen, mask) for one in router_logits]).mean()
    tokens = batch.loss_mask_BT.sum()
    loss = output.loss + coefficient * balance * tokens / denominator
    return replace(output, loss=loss, sums={**output.sums, "router_aux_loss": balance.detach() * tokens})


def _tokens_of_rows(batch: Batch) -> Tensor:
    """1 for what a row reads up to its last loss token, [B, T]; 0 for the padding behind."""
    return (batch.loss_mask_BT.flip(1).cumsum(1).flip(1) > 0).to(torch.float32)


def _loss_function(model: PreTrainedModel) -> Callable[..., Tensor] | None:
    """``load_balancing_loss_func`` of the file that defines the model; None where it has none (DeepSeek, GLM)."""
    found: Callable[..., Tensor] | None = vars(sys.modules[type(model).__module__]).get("load_balancing_loss_func")
    return found

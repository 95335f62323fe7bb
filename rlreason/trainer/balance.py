"""The load-balancing loss of mixture-of-experts models, which keeps a supervised stage from starving experts.

Switch Transformer (arXiv 2101.03961, eq. 4-6): experts · Σ_e f_e p_e, with f_e the tokens that expert e was chosen for
and p_e the mean probability that the router gives it, both as shares of the tokens. It is computed by transformers' own
function of the model, of each layer's tokens in one micro-batch, and the layers' mean is weighed by the micro-batch's
share of the step's loss tokens. (transformers' models join the tokens of all layers first: that sum is at its minimum
although each layer sends everything to the same experts, where these are others in every layer.) A product of means is
no sum over tokens: with other micro-batches it is another (noisier) estimate of the same thing, so this term alone is
not exactly invariant to ``micro_batch_tokens``.

What it weighs in a step is measured where it acts, at the router logits of each layer: with b the gradient of the
layer's own term (with its coefficient) and r that of all the rest of the loss, both with respect to the logits of all
tokens of the step,

    balance_share = ||b|| / (||b|| + ||r||)

The terms of later layers reach these logits through the network, and count as the rest. Logits of micro-batches and
ranks are of different tokens, so squares of norms add up. Both are taken by hooks in the one backward pass that there
is: the term reads each layer's logits through a view of its own, whose gradient is b, and the gradient of the logits
themselves is b + r. With bfloat16 logits that is rounded, so that r, where it is below 2 ** -9 of b, is that rounding.
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
    """``output`` with coefficient · load-balancing loss added, and with what that weighs, once its backward pass is
    over. ``router_logits``: [tokens, experts] of each layer."""
    function = _loss_function(model)
    assert function is not None
    squares_L2 = torch.zeros((len(router_logits), 2), dtype=torch.float64, device=router_logits[0].device)
    watched = [_watched(one, squares_L2[layer]) for layer, one in enumerate(router_logits)]
    mask = None if batch.packing is not None else _tokens_of_rows(batch)
    experts, chosen = expert_count(model), chosen_count(model)
    balance = torch.stack([function((one,), experts, chosen, mask) for one in watched]).mean()
    tokens = batch.loss_mask_BT.sum()
    loss = output.loss + coefficient * balance * tokens / denominator
    sums = {**output.sums, "router_aux_loss": balance.detach() * tokens}
    return replace(output, loss=loss, sums=sums, balance_L2=squares_L2)


def _watched(logits_NE: Tensor, squares_2: Tensor) -> Tensor:
    """The logits, for the balancing loss to read. In the backward pass the squared norms of its gradient and of the
    rest's are added to ``squares_2``; never where the logits get no gradient."""
    if not logits_NE.requires_grad:
        return logits_NE
    view_NE, own = logits_NE.view_as(logits_NE), list[Tensor]()

    def take(total_NE: Tensor) -> None:
        balance_NE = own.pop().double()
        rest_NE = total_NE.double() - balance_NE
        squares_2.add_(torch.stack([balance_NE.square().sum(), rest_NE.square().sum()]))

    # Before the logits' own, which wait for all that reads them.
    view_NE.register_hook(own.append)  # type: ignore[no-untyped-call]
    logits_NE.register_hook(take)  # type: ignore[no-untyped-call]
    return view_NE


def _tokens_of_rows(batch: Batch) -> Tensor:
    """1 for what a row reads up to its last loss token, [B, T]; 0 for the padding behind."""
    return (batch.loss_mask_BT.flip(1).cumsum(1).flip(1) > 0).to(torch.float32)


def _loss_function(model: PreTrainedModel) -> Callable[..., Tensor] | None:
    """``load_balancing_loss_func`` of the file that defines the model; None where it has none (DeepSeek, GLM)."""
    # The class of a sharded model is torch's, with the model's own beneath.
    file = next(kind.__module__ for kind in type(model).__mro__ if not kind.__module__.startswith("torch."))
    found: Callable[..., Tensor] | None = vars(sys.modules[file]).get("load_balancing_loss_func")
    return found

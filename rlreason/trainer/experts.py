"""What a trainer tells a model with experts of its routing, and what it counts of it.

N = input tokens of a micro-batch, R = its loss tokens, L = layers with experts, K = experts per token, E = experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlreason.objective.batch import Batch, ExpertCounts
from rlreason.routing import FREE, RoutedPass, find_routers, is_router, routers_in
from rlreason.trainer.optimizer import Trainable
from rlreason.trainer.options import TrainerOptions, of_tokens
from rlreason.trainer.protocol import Routed
from rlreason.types import TrainingSample


def routed_pass(model: PreTrainedModel, batch: Batch, *, replay: bool = False) -> RoutedPass | None:
    """What a forward pass over ``batch`` is given; None for a model without experts, or whose can't be followed.

    ``replay``: force the experts of the batch's samples. Raises ValueError where they have none: a replay that silently
    did nothing would look like one.
    """
    if find_routers(model) is None:
        if replay:
            raise ValueError("routing is to be replayed in a model whose routers can't be followed")
        return None
    if replay and batch.routed_experts_NLK is None:
        raise ValueError("routing is to be replayed, and the samples have none")
    return RoutedPass(given_NLK=batch.routed_experts_NLK, replay=replay)


@torch.no_grad()
def counts_of(model: PreTrainedModel, routed: RoutedPass | None, batch: Batch) -> ExpertCounts | None:
    """Counts over the positions that predict the batch's loss tokens."""
    known = find_routers(model)
    if routed is None or known is None:
        return None
    at_R = _sources(batch)
    load_LE = torch.zeros((known.layers, known.experts), dtype=torch.int64, device=at_R.device)
    compared_L = torch.zeros(known.layers, dtype=torch.int64, device=at_R.device)
    agreed_L = torch.zeros_like(compared_L)
    for layer in range(known.layers):
        chosen = routed.used[layer][at_R].flatten()
        load_LE[layer].scatter_add_(0, chosen, torch.ones_like(chosen))
        if routed.given_NLK is not None:
            given_RK = routed.given_NLK[at_R, layer].long()
            set_R = (given_RK != FREE).any(dim=1)
            same_R = (given_RK.sort(dim=1).values == routed.own[layer][at_R].sort(dim=1).values).all(dim=1)
            compared_L[layer] = set_R.sum()
            agreed_L[layer] = (same_R & set_R).sum()
    return ExpertCounts(chosen=known.chosen, load_LE=load_LE, compared_L=compared_L, agreed_L=agreed_L)


def _sources(batch: Batch) -> Tensor:
    """Places of the input tokens that predict the loss tokens, [R]."""
    rows_R = batch.loss_rows_R
    if rows_R is None:
        rows_R = batch.loss_mask_BT.flatten().nonzero()[:, 0]
    return rows_R if batch.packing is None else batch.packing.source_BT.flatten()[rows_R]


def experts_of(routed: RoutedPass, batch: Batch, samples: Sequence[TrainingSample]) -> list[npt.NDArray[np.uint8]]:
    """Where the pass sent the tokens of each of the batch's rows, as ``TrainingSample.routed_experts``.

    ``samples``: what ``batch.places`` are places of.
    """
    used_NLK = routed.used_NLK().cpu().numpy()
    found = []
    for place, at in zip(batch.places, batch.predicted_by, strict=True):
        experts = np.full((len(samples[place].token_ids), *used_NLK.shape[1:]), FREE, dtype=np.uint8)
        experts[1:] = used_NLK[at[1:]]
        found.append(experts)
    return found


def routed_rows(
    logprobs_BT: npt.NDArray[np.float32], routed: RoutedPass, batch: Batch, samples: Sequence[TrainingSample]
) -> dict[int, Routed]:
    """What a pass without gradients said of the batch's rows, by their places among ``samples``."""
    experts = experts_of(routed, batch, samples)
    whole = batch.packing is None
    return {
        place: Routed(logprobs=of_tokens(logprobs_BT[row], samples[place], whole=whole), experts=experts[row])
        for row, place in enumerate(batch.places)
    }


def hold_still(trainable: Trainable, model: nn.Module, options: TrainerOptions, step: int) -> None:
    """Take the gradients away from what ``step`` (from 0) must not change: AdamW leaves it and its moments alone then.

    The clipped norm is that of the rest.
    """
    if not options.freeze_router and step >= options.router_steps:
        return
    routers = [name for name, _ in routers_in(model)]
    for name, parameter in zip(trainable.names, trainable.parameters, strict=True):
        if is_router(name, routers) == options.freeze_router:
            parameter.grad = None

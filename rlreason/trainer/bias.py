"""Experts balanced without a loss (DeepSeek-V3, arXiv 2412.19437, section 2.1.2; arXiv 2408.15664, algorithm 1).

Routers of DeepSeek-V3, GLM-4-MoE and alike add a correction bias b_e to an expert's score when they pick the experts of
a token, and to nothing else: it gets no gradient. After each optimizer step, in each layer,

    b_e += u · sign(mean load − load_e)

with load_e the loss tokens of the step that were sent to expert e: of all its micro-batches and ranks, each counted
once, after its forward pass (``experts.counts_of``), whatever the backward pass computes again. With routing replay
these are the experts that were forced, as they are the ones that were used: the load is then of the sampler's routers,
or of the old pass', and not of the router as it is now.

L = layers with experts, E = experts.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from rlreason.errors import UsageError
from rlreason.objective.batch import ExpertCounts
from rlreason.routing import correction_biases, find_routers


class RouterBias:
    """The steps of one model's biases. ``update``: u; 0: they stay as they are. ``mesh``: of sharded models, all ranks,
    which hold equal biases and take equal steps."""

    def __init__(self, model: PreTrainedModel, update: float, mesh: DeviceMesh | None = None) -> None:
        """Raises UsageError where the model has no such bias, or its routers can't be followed."""
        self._model, self._update, self._mesh = model, update, mesh
        self._load_LE = torch.zeros((0, 0), dtype=torch.int64)
        if not update:
            return
        known = find_routers(model)
        if known is None or not correction_biases(model):
            raise UsageError(
                f"trainer.router_bias_update: the routers of {type(model).__name__} have no correction bias, or choose "
                "in a way that can't be followed (docs/models.md says of which types it can)"
            )
        self._load_LE = torch.zeros((known.layers, known.experts), dtype=torch.int64, device=model.device)

    def count(self, experts: ExpertCounts | None) -> None:
        """Take in where micro-batches of this process sent their tokens; None: there were none."""
        if self._update and experts is not None:
            self._load_LE += experts.load_LE

    @torch.no_grad()
    def step(self, *, skipped: bool) -> None:
        """Change the biases by what was counted since the last step, and forget it. ``skipped``: the optimizer changed
        nothing, and nor does this. With ranks called on all of them."""
        if not self._update:
            return
        load_LE = self._load_LE.clone()
        self._load_LE.zero_()
        if skipped:
            return
        if self._mesh is not None:  # tensor-parallel neighbours count the same tokens: every load times their number
            load_LE = load_LE.to(self._mesh.device_type)
            dist.all_reduce(load_LE, group=self._mesh.get_group())
        for bias_E, sign_E in zip(correction_biases(self._model), _directions(load_LE), strict=True):
            bias_E.add_(sign_E.to(bias_E), alpha=self._update)


def _directions(load_LE: Tensor) -> Tensor:
    """sign(mean load − load_e), exactly, of integers."""
    return (load_LE.sum(dim=1, keepdim=True) - load_LE.shape[1] * load_LE).sign()

"""Precision: float32 parameters that the optimizer changes, and the compute dtype that the model runs in.

With bfloat16 compute the model holds bfloat16 copies of float32 master parameters; each micro-batch's gradients are
added to the masters' in float32, and every optimizer step rounds the masters into the model anew. That is what
``MixedPrecisionPolicy(param_dtype=bfloat16, reduce_dtype=float32)`` of FSDP2 computes (Micikevicius et al. 2018, arXiv
1710.03740). A bfloat16 parameter of 0.02 has a spacing of 1.2e-4, so that an AdamW step of 1e-6 on it would be rounded
away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlreason.policy.model import cast_parameters
from rlreason.wide_routers import wide_names

#: Weights that ``moved`` looks at, over all parameters.
SAMPLED_WEIGHTS = 8192
#: Share of weights exactly between two bfloat16 numbers from which on they come of fewer bits: of float32 numbers that
#: were trained it is 2 ** -16, of float16 ones an eighth.
TIES = 1e-3


class Masters:
    """The trainable parameters of ``model`` in float32, which computes in ``dtype`` from here on."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        trainable = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
        for _, one in trainable:
            one.data = one.data.to(torch.float32)
        self.names = [name for name, _ in trainable]
        self._computed = [one for _, one in trainable]
        self.split = dtype != torch.float32
        #: What ``round_ties`` gives.
        self.rounded = 0.0
        if self.split:
            self.parameters = [nn.Parameter(one.detach().clone()) for one in self._computed]
            wide = wide_names(model)  # the model computes with these as they are
            pairs = zip(self.names, self.parameters, strict=True)
            self.rounded = round_ties([one for name, one in pairs if name not in wide])
            cast_parameters(model, dtype)
        else:
            self.parameters = self._computed
            cast_parameters(model, torch.float32)
        self._sampled = sampled_places(self.parameters)

    @property
    def computed(self) -> Sequence[nn.Parameter]:
        """The model's own parameters, in the compute dtype: those that autograd gives gradients of."""
        return self._computed

    def accumulate(self, gradients: Sequence[Tensor | None]) -> None:
        """Add one micro-batch's gradients, in the order of ``parameters``, in float32."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient.to(torch.float32)
            else:
                parameter.grad.add_(gradient)

    def take_gradients(self) -> None:
        """Move what ``backward()`` left in the model's own ``.grad`` to the masters."""
        if self.split:
            self.accumulate([one.grad for one in self._computed])
            for one in self._computed:
                one.grad = None

    @torch.no_grad()
    def round_into_model(self) -> None:
        """Have the model compute with the masters as they are now."""
        if self.split:
            for master, one in zip(self.parameters, self._computed, strict=True):
                one.copy_(master)

    @torch.no_grad()
    def sample(self) -> Tensor:
        """Some of the weights, [about 8,192] float32: always the same ones."""
        return torch.cat([one.detach().reshape(-1)[at] for one, at in zip(self.parameters, self._sampled, strict=True)])

    def compare(self, before: Tensor) -> tuple[float, bool]:
        """(share of the sampled weights that differ from ``before``, what ``sample`` gave, whether all are finite)."""
        after = self.sample()
        moved, finite = torch.stack([(after != before).float().mean(), after.isfinite().all().float()]).tolist()
        return float(moved), bool(finite)

    def finite(self, tensor: Tensor) -> bool:
        """Whether every element is finite."""
        return bool(tensor.isfinite().all())

    @contextmanager
    def in_model(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside, the model's parameters are the masters in ``dtype``: for saving."""
        if not self.split and dtype == torch.float32:
            yield
            return
        computed = [one.data for one in self._computed]
        for master, one in zip(self.parameters, self._computed, strict=True):
            one.data = master.detach().to(dtype)
        try:
            yield
        finally:
            for data, one in zip(computed, self._computed, strict=True):
                one.data = data


@torch.no_grad()
def round_ties(parameters: Sequence[Tensor]) -> float:
    """Round float32 masters of float16 or dequantised weights to bfloat16, in place, before the first step.

    Many of those lie exactly between two bfloat16 numbers (8 % of SmolLM2's from a Q4_1 file). The model computes with
    each rounded, so that the first step, however small, would move every such weight by half a spacing downhill, which
    is no step of the optimizer. Rounded masters give the same model. Returns the share that was on a tie; 0 where it is
    below ``TIES`` and nothing was changed.
    """
    ties = sum(int(((one.view(torch.int32) & 0xFFFF) == 0x8000).sum()) for one in parameters)
    share = ties / max(1, sum(one.numel() for one in parameters))
    if share < TIES:
        return 0.0
    for one in parameters:
        one.copy_(one.to(torch.bfloat16))
    return share


def sampled_places(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Evenly spaced places of each parameter, in proportion to its size and at least one."""
    total = sum(one.numel() for one in parameters) or 1
    counts = [min(one.numel(), max(1, SAMPLED_WEIGHTS * one.numel() // total)) for one in parameters]
    return [
        torch.linspace(0, one.numel() - 1, count, dtype=torch.float64).round().long().to(one.device)
        for one, count in zip(parameters, counts, strict=True)
    ]

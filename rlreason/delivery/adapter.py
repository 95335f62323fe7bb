"""An adapter (LoRA, arXiv 2106.09685) on its way: its matrices alone, for a worker that holds the weights beneath.

The worker keeps what was frozen in host memory and adds every new adapter to that, W + scaling · B A, so that nothing
of an older one is left behind. The engine takes the sums as it takes any weights.

O = out, I = in, R = rank, E = experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from rlreason.delivery.packing import DeliveryError, Factor, Manifest, few


class AdaptedWeights(ABC):
    """Weights of which most are frozen: merged as they are iterated, or apart."""

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, with the adapter in it."""

    @property
    @abstractmethod
    def factors(self) -> tuple[Factor, ...]:
        """Where the adapter's matrices go; none: there is no adapter."""

    @abstractmethod
    def base(self) -> Iterable[tuple[str, Tensor]]:
        """Every tensor without the adapter. They never change, and may be the model's own."""

    @abstractmethod
    def adapter(self) -> Iterable[tuple[str, Tensor]]:
        """A, then B of each of ``factors``, in their order, as they are now."""


def delta(factor: Factor, a: Tensor, b: Tensor) -> Tensor:
    """scaling · B A, float32, in the shape of the weight. ``a``: [R, I] or [E·R, I]; ``b``: [O, R] or [O, R·E]."""
    a, b = a.float(), b.float()
    if not factor.experts:
        return factor.scaling * (b @ a)
    a_ERI, b_ORE = a.reshape(factor.experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, factor.experts)
    delta_EOI = torch.einsum("ore,eri->eoi", b_ORE, a_ERI)
    return factor.scaling * (delta_EOI.transpose(1, 2) if factor.input_first else delta_EOI)


class KeptBase:
    """The worker's side: the frozen weights, kept in host memory, and what a new adapter makes of them."""

    def __init__(self, device: str = "cpu") -> None:
        """``device``: where the sums are computed, and lie afterwards."""
        self._device = device
        self._tensors: dict[str, Tensor] | None = None

    def drop(self) -> None:
        """Other weights come, without an adapter."""
        self._tensors = None

    def merged(self, manifest: Manifest, arriving: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the model with the adapter that arrives, first, and where ``manifest`` holds all also the
        frozen weights, each behind it. Raises DeliveryError where those are not here."""
        arriving, factors = iter(arriving), {factor.weight: factor for factor in manifest.factors}
        matrices = dict(islice(arriving, 2 * len(factors)))
        if manifest.on_base and self._tensors is None:
            raise DeliveryError(f"version {manifest.version} is an adapter alone, and the worker holds no base for it")
        base = (self._tensors or {}).items() if manifest.on_base else self._taken(arriving)
        for name, tensor in base:
            factor = factors.pop(name, None)
            if factor is None:
                yield name, tensor
                continue
            a, b = (matrices[one].to(self._device) for one in factor.names)
            weight = tensor.to(self._device)
            yield name, (weight.float() + delta(factor, a, b)).to(tensor.dtype)
        if factors:
            raise DeliveryError(f"version {manifest.version}: no tensor for the adapter of {few(list(factors))}")

    def _taken(self, arriving: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The frozen weights as they arrive; held once they are all here."""
        self._tensors = None
        taken: dict[str, Tensor] = {}
        for name, tensor in arriving:
            taken[name] = tensor.cpu().clone()
            yield name, taken[name]
        self._tensors = taken

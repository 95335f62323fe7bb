"""The weights of a model with an adapter, in this process: merged, or base and adapter apart for their way."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.delivery.adapter import AdaptedWeights
from rlreason.delivery.packing import Factor
from rlreason.policy.lora import Gather, adapter_factors, adapter_matrices, base_weights, merged_weights


@dataclass(frozen=True, slots=True)
class ModelWeights(AdaptedWeights):
    """See ``AdaptedWeights``. ``whole`` makes a whole tensor of a shard; of shards every method is called on all ranks,
    and every iterator used up. ``wide``: parameters that are not rounded to ``dtype``."""

    model: PreTrainedModel
    dtype: torch.dtype
    whole: Gather
    wide: Collection[str] = ()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """See ``AdaptedWeights``."""
        return merged_weights(self.model, self.dtype, self.whole, wide=self.wide)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """See ``AdaptedWeights``."""
        return adapter_factors(self.model)

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """See ``AdaptedWeights``."""
        return base_weights(self.model, self.dtype, self.whole, self.wide)

    def adapter(self) -> Iterator[tuple[str, Tensor]]:
        """See ``AdaptedWeights``."""
        return adapter_matrices(self.model, self.whole)

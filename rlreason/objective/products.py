"""The two products of a tile's gradient by its logits: by the hidden states, and by the head's weight.

C = rows of a tile, H = hidden size, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Products:
    """``tile_CV``: dL/dlogits, or what it is but for a factor of each row. ``weight_VH``: of one dtype with it.

    On a CPU a head in bfloat16 multiplies in it, about three times as fast where there are instructions for it: the
    tile is rounded once, as an operand, and each product once, as all other layers of such a model have it. Sums over
    tiles are float32.
    """

    tile_CV: Tensor
    weight_VH: Tensor

    @staticmethod
    def of(tile_CV: Tensor, weight_VH: Tensor, wide_VH: Tensor) -> Products:
        """``wide_VH``: ``weight_VH`` in the dtype of the tile, float32 or float64. float16 has no range for a tile."""
        if weight_VH.dtype == torch.bfloat16 and weight_VH.device.type == "cpu":
            return Products(tile_CV.to(torch.bfloat16), weight_VH)
        return Products(tile_CV, wide_VH)

    def by_hidden(self, out_CH: Tensor) -> None:
        """tile · weight."""
        if out_CH.dtype == self.tile_CV.dtype:
            torch.mm(self.tile_CV, self.weight_VH, out=out_CH)
        else:
            out_CH.copy_(self.tile_CV @ self.weight_VH)

    def by_weight(self, hidden_CH: Tensor, out_VH: Tensor, *, add: bool) -> None:
        """tileᵀ · hidden, in place of what is in ``out_VH`` or added to it."""
        if out_VH.dtype == self.tile_CV.dtype:
            torch.addmm(out_VH, self.tile_CV.t(), hidden_CH, beta=float(add), out=out_VH)
        else:
            found_VH = self.tile_CV.t() @ hidden_CH.to(self.tile_CV.dtype)
            out_VH.add_(found_VH) if add else out_VH.copy_(found_VH)

"""Which completions belong together, as the device wants it: group by group, sizes of results known to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """G groups over N completions. Example, sizes 2 and 3: ``starts_G1 = (0, 2, 5)``.

    The number of groups is a shape, so nothing waits for the device to learn it.
    """

    #: Where each group begins, and N: int64 [G + 1], on the device.
    starts_G1: Tensor
    #: Completions in the order of their groups, int64 [N]. None: they lie group by group already.
    order_N: Tensor | None = None

    @property
    def count(self) -> int:
        """G."""
        return self.starts_G1.shape[0] - 1

    @staticmethod
    def of_sizes(sizes: Sequence[int], device: torch.device) -> Groups:
        """Contiguous groups of these sizes, which the host knows; one copy to the device."""
        starts = torch.tensor([0, *accumulate(sizes)], dtype=torch.int64)
        if device.type == "cuda":
            return Groups(starts_G1=starts.pin_memory().to(device, non_blocking=True))
        return Groups(starts_G1=starts.to(device))

    @staticmethod
    def even(groups: int, size: int, device: torch.device) -> Groups:
        """``groups`` contiguous groups of ``size``."""
        return Groups(starts_G1=torch.arange(groups + 1, dtype=torch.int64, device=device) * size)

    @staticmethod
    def of_ids(group_N: Tensor, count: int | None = None) -> Groups:
        """Any numbers in any order, by a stable sort on the device. Groups come in the order of their numbers.

        ``count``: with it the numbers are 0..count−1 (a group may be empty) and nothing waits for the device; without
        it the distinct numbers are counted, which is one synchronisation.
        """
        if count is None:
            numbers, group_N = torch.unique(group_N, return_inverse=True)
            count = len(numbers)
        sorted_N, order_N = torch.sort(group_N, stable=True)
        bounds = torch.arange(count + 1, dtype=sorted_N.dtype, device=group_N.device)
        return Groups(starts_G1=torch.searchsorted(sorted_N, bounds), order_N=order_N)

"""The numbers of a step are read from the device once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlreason.objective.batch import LossOutput
from rlreason.trainer.protocol import LossSums


class NoReads(TorchDispatchMode):
    """Fails where one number of a tensor is asked for, which a device would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        assert "local_scalar_dense" not in str(func), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def test_metrics_are_one_read() -> None:
    sums = LossSums()
    for loss, clipped, ratio in ((0.5, 3.0, 1.5), (0.25, 4.0, 1.25)):
        output = LossOutput(
            loss=torch.tensor(loss),
            sums={"clip_fraction": torch.tensor(clipped, dtype=torch.float64)},
            maxima={"ratio/max": torch.tensor(ratio)},
        )
        with NoReads():
            sums.add(output)
    with NoReads():  # tolist() of the one tensor is the read
        found = sums.read(7.0)
    assert found == {"loss": 0.75, "clip_fraction": 1.0, "ratio/max": 1.5}
    assert LossSums().read(7.0) == {}


def test_the_mode_sees_a_read() -> None:
    with pytest.raises(AssertionError, match="waits for the device"), NoReads():
        float(torch.ones(3).sum())

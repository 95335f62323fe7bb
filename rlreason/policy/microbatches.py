"""Gradients of a step's micro-batches, on several CPU cores where there are: same bits for any number of threads.

Small tensors gain little from threads inside an operation; whole micro-batches side by side gain almost all of a
second core. Every thread returns its own gradients and they are summed in the order of the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlreason.types import Batch, LossOutput

LossOf = Callable[[int, Batch], LossOutput]


def backward_all(
    model: PreTrainedModel, batches: Sequence[Batch], loss_of: LossOf, threads: int = 1
) -> list[LossOutput]:
    """Add the gradient of every batch's loss to ``.grad`` and return the (detached) outputs in order.

    ``loss_of(index, batch)`` runs the forward pass. On an accelerator, or with one thread, batches run in turn and
    only one batch's activations are held.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def one(index: int) -> tuple[LossOutput, tuple[Tensor | None, ...]]:
        output = loss_of(index, batches[index])
        gradients = torch.autograd.grad(output.loss, parameters, allow_unused=True)
        return LossOutput(loss=output.loss.detach(), sums=output.sums, maxima=output.maxima), gradients

    outputs = []
    if threads == 1 or len(batches) == 1 or parameters[0].device.type != "cpu":
        for index in range(len(batches)):
            output, gradients = one(index)
            _accumulate(parameters, gradients)
            outputs.append(output)
        return outputs
    with ThreadPoolExecutor(threads) as pool:
        for output, gradients in pool.map(one, range(len(batches))):
            _accumulate(parameters, gradients)
            outputs.append(output)
    return outputs


def _accumulate(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

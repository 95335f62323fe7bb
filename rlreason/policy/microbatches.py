"""Gradients of a step's micro-batches, on several CPU cores where there are: same bits for any number of threads.

Small tensors gain little from threads inside an operation; whole micro-batches side by side gain almost all of a
second core. Every thread returns its own gradients and they are summed in the order of the batches.

H = hidden size, V = vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
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
    outputs = []
    with _EmbeddedRows(model) as embedded:

        def one(index: int) -> tuple[LossOutput, tuple[Tensor | None, ...], list[_Rows]]:
            embedded.forget()
            output = loss_of(index, batches[index])
            looked_up = embedded.forget()
            wanted = [*parameters, *(seen.states for seen in looked_up)]
            found = torch.autograd.grad(output.loss, wanted, allow_unused=True)
            gradients, of_rows = found[: len(parameters)], found[len(parameters) :]
            rows = [_Rows(seen.ids, of) for seen, of in zip(looked_up, of_rows, strict=True) if of is not None]
            return LossOutput(loss=output.loss.detach(), sums=output.sums, maxima=output.maxima), gradients, rows

        def add(result: tuple[LossOutput, tuple[Tensor | None, ...], list[_Rows]]) -> None:
            output, gradients, rows = result
            _accumulate(parameters, gradients)
            embedded.accumulate(rows)
            outputs.append(output)

        if threads == 1 or len(batches) == 1 or parameters[0].device.type != "cpu":
            for index in range(len(batches)):
                add(one(index))
            return outputs
        with ThreadPoolExecutor(threads) as pool:
            for result in pool.map(one, range(len(batches))):
                add(result)
    return outputs


def _accumulate(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tokens that were looked up, and their states or the gradients of those, [..., H]."""

    ids: Tensor
    states: Tensor


class _EmbeddedRows:
    """While open, the embedding's gradient is taken of the rows that a micro-batch looked up, and only those are added.

    autograd would make a whole [V, H] of it for each micro-batch: with a vocabulary of 150,000 that, cleared and added
    to the head's, costs a CPU a twentieth of a step. An embedding that is more than a table is left to autograd.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._embedding = model.get_input_embeddings()
        self._local = threading.local()  # micro-batches come from several threads

    def __enter__(self) -> Self:
        self._hook = self._embedding.register_forward_hook(self._look_up) if _is_table(self._embedding) else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._hook is not None:
            self._hook.remove()

    def forget(self) -> list[_Rows]:
        """What this thread looked up since the last call."""
        seen: list[_Rows] = getattr(self._local, "seen", [])
        self._local.seen = []
        return seen

    def accumulate(self, gradients: Sequence[_Rows]) -> None:
        """Add the gradients of looked-up rows to the table's."""
        for one in gradients:
            weight, padding = self._embedding.weight, self._embedding.padding_idx
            ids, rows = one.ids.flatten(), one.states.flatten(0, -2).to(weight.dtype)
            if padding is not None:  # as torch has it: its row is never learned by being looked up
                rows = rows.masked_fill((ids == padding).unsqueeze(1), 0.0)
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.index_put_((ids,), rows, accumulate=True)

    def _look_up(self, _: nn.Module, inputs: tuple[Tensor, ...], states: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        leaf = states.detach().requires_grad_()
        self._local.seen = [*getattr(self._local, "seen", []), _Rows(inputs[0], leaf)]
        return leaf


def _is_table(embedding: nn.Module) -> bool:
    return (
        type(embedding) is nn.Embedding
        and embedding.weight.requires_grad
        and embedding.max_norm is None
        and not embedding.scale_grad_by_freq
        and not embedding.sparse
    )

"""Gradients of a step's micro-batches: in turn by autograd's ``backward()``, or side by side on the cores of a CPU.

On a CPU small tensors gain little from threads inside an operation; whole micro-batches side by side gain almost all of
a second core. Every thread returns its own gradients and they are summed in the order of the batches, so that the
result has the same bits for any number of threads.

H = hidden size, V = vocabulary.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlreason.objective.batch import Batch, LossOutput
from rlreason.trainer.masters import Masters

LossOf = Callable[[Batch], LossOutput]


def accumulate_gradients(
    model: PreTrainedModel, masters: Masters, batches: Sequence[Batch], loss_of: LossOf, threads: int = 1
) -> list[LossOutput]:
    """Add the gradient of every batch's loss to the masters' ``.grad``; returns the detached outputs in order.

    ``loss_of(batch)`` runs the forward pass. Only one batch's activations are held at a time, or one a thread; of
    gradients that are not added yet one set, or one a thread and one more.
    """
    if model.device.type == "cpu":
        return _side_by_side(model, masters, batches, loss_of, threads)
    return in_turn(masters, batches, loss_of)


def in_turn(masters: Masters, batches: Sequence[Batch], loss_of: LossOf) -> list[LossOutput]:
    """The way of accelerators: ``backward()`` of one micro-batch after the other, whatever hangs on its hooks."""
    outputs = []
    for batch in batches:
        output = loss_of(batch)
        output.loss.backward()  # type: ignore[no-untyped-call]
        masters.take_gradients()
        outputs.append(_detached(output))
    return outputs


def _detached(output: LossOutput) -> LossOutput:
    return replace(output, loss=output.loss.detach())


def _side_by_side(
    model: PreTrainedModel, masters: Masters, batches: Sequence[Batch], loss_of: LossOf, threads: int
) -> list[LossOutput]:
    outputs = []
    with _EmbeddedRows(model, masters) as embedded:

        def one(batch: Batch) -> tuple[LossOutput, tuple[Tensor | None, ...], list[_Rows]]:
            embedded.forget()
            output = loss_of(batch)
            looked_up = embedded.forget()
            wanted = [*masters.computed, *(seen.states for seen in looked_up)]
            found = torch.autograd.grad(output.loss, wanted, allow_unused=True)
            gradients, of_rows = found[: len(masters.computed)], found[len(masters.computed) :]
            rows = [_Rows(seen.ids, of) for seen, of in zip(looked_up, of_rows, strict=True) if of is not None]
            return _detached(output), gradients, rows

        def add(result: tuple[LossOutput, tuple[Tensor | None, ...], list[_Rows]]) -> None:
            output, gradients, rows = result
            masters.accumulate(gradients)
            embedded.accumulate(rows)
            outputs.append(output)

        if threads == 1 or len(batches) == 1:
            for batch in batches:
                add(one(batch))
            return outputs
        running: deque[Future[tuple[LossOutput, tuple[Tensor | None, ...], list[_Rows]]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for batch in batches:
                if len(running) > threads:  # each holds gradients as large as the model until they are added
                    add(running.popleft().result())
                running.append(pool.submit(one, batch))
            while running:
                add(running.popleft().result())
    return outputs


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tokens that were looked up, and their states or the gradients of those, [..., H]."""

    ids: Tensor
    states: Tensor


class _EmbeddedRows:
    """While open, the embedding's gradient is taken of the rows that a micro-batch looked up, and only those are added.

    autograd would make a whole [V, H] of it for each micro-batch: with a vocabulary of 150,000 that, cleared and added
    to the head's, costs a CPU a twentieth of a step. Subclasses of nn.Embedding (Gemma's scaled one, say) keep the
    default path.
    """

    def __init__(self, model: PreTrainedModel, masters: Masters) -> None:
        self._embedding = model.get_input_embeddings()
        places = [at for at, one in enumerate(masters.computed) if one is self._embedding.weight]
        self._master = masters.parameters[places[0]] if places else None
        self._local = threading.local()  # micro-batches come from several threads

    def __enter__(self) -> Self:
        table = self._master is not None and _is_table(self._embedding)
        self._hook = self._embedding.register_forward_hook(self._look_up) if table else None
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
        """Add the gradients of looked-up rows to the table's master, in float32."""
        for one in gradients:
            master, padding = self._master, self._embedding.padding_idx
            assert master is not None
            ids, rows = one.ids.flatten(), one.states.flatten(0, -2).to(torch.float32)
            if padding is not None:  # as torch has it: its row is never learned by being looked up
                rows = rows.masked_fill((ids == padding).unsqueeze(1), 0.0)
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            master.grad.index_put_((ids,), rows, accumulate=True)

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

"""Which experts vLLM sends tokens to, noted inside of its worker: of vLLM 0.32's model runner on a CPU.

vLLM's own option (``enable_return_routed_experts``) needs its second model runner, which a CPU has not; with a GPU that
option is used (``vllm_engine``). Here the routers' own hook is, and what a step computed is cut by requests. A prompt's
tokens that were found in the prefix cache were computed for an earlier request: what was noted of them is kept by
their places in the cache.

L = layers with experts, K = experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

#: Of a position that nothing is known of: the trainer's router chooses by itself there.
FREE = 255
Experts = npt.NDArray[np.uint8]


class ExpertCapture:
    """Notes the experts of every request under way, position by position."""

    def __init__(self, runner: Any) -> None:
        """``runner``: vLLM's model runner, which goes on as it did. Raises RuntimeError where no router has a hook."""
        self._runner = runner
        self._layers: dict[int, Tensor] = {}
        #: By request: pieces, in order and without a gap. A position that is computed again, as after an update of the
        #: weights, keeps what its token was drawn with.
        self._noted: dict[str, list[Experts]] = {}
        self._slots: Experts | None = None
        self._order = _hooked(runner.get_model(), self._take)
        self._execute: Callable[..., Any] = runner.execute_model
        runner.execute_model = self._executed

    def of(self, requests: Sequence[str]) -> list[Experts]:
        """Of each request, [computed positions, L, K]; they are forgotten."""
        return [np.concatenate(self._noted.pop(one)) for one in requests]

    def _take(self, layer: int, chosen_NK: Tensor) -> None:
        self._layers[layer] = chosen_NK

    def _executed(self, scheduled: Any, *args: Any, **options: Any) -> Any:
        for request in scheduled.finished_req_ids:
            self._noted.pop(request, None)
        self._layers.clear()
        result = self._execute(scheduled, *args, **options)
        if self._layers:
            self._cut(scheduled)
        return result

    def _cut(self, scheduled: Any) -> None:
        """What the step computed, request by request in the order of its batch."""
        batch, start = self._runner.input_batch, 0
        table = np.stack([self._layers[layer].cpu().numpy() for layer in self._order], axis=1).astype(np.uint8)
        for row, request in enumerate(batch.req_ids):
            count = scheduled.num_scheduled_tokens[request]
            first = int(batch.num_computed_tokens_cpu[row])
            experts, start = table[start : start + count], start + count
            self._keep(request, row, first, experts)

    def _keep(self, request: str, row: int, first: int, experts: Experts) -> None:
        pieces = self._noted.setdefault(request, [])
        known = sum(map(len, pieces))
        if first > known:  # a prefix that an earlier request had computed
            pieces.append(self._cached(row, known, first, experts.shape[1:]))
            known = first
        if first + len(experts) > known:
            pieces.append(experts[known - first :].copy())
        slots = self._slots_of(row, first, first + len(experts))
        if slots is not None:
            self._memory(experts.shape[1:])[slots] = experts

    def _cached(self, row: int, first: int, end: int, shape: tuple[int, ...]) -> Experts:
        slots = self._slots_of(row, first, end)
        if slots is None:
            return np.full((end - first, *shape), FREE, dtype=np.uint8)
        return self._memory(shape)[slots]

    def _slots_of(self, row: int, first: int, end: int) -> npt.NDArray[np.int64] | None:
        """Places in the cache; None for a model whose layers cache in different ways, and may forget."""
        tables = self._runner.input_batch.block_table
        if len(tables.block_tables) > 1:
            return None
        table = tables[0]
        places = np.arange(first, end)
        blocks = table.get_numpy_array()[row][places // table.block_size]
        slots: npt.NDArray[np.int64] = np.asarray(blocks, dtype=np.int64) * table.block_size + places % table.block_size
        return slots

    def _memory(self, shape: tuple[int, ...]) -> Experts:
        if self._slots is None:
            count = self._runner.kv_cache_config.num_blocks * self._runner.input_batch.block_table[0].block_size
            self._slots = np.full((count, *shape), FREE, dtype=np.uint8)
        return self._slots


def _hooked(model: nn.Module, take: Callable[[int, Tensor], None]) -> list[int]:
    """Hook every router of ``model``; the numbers of their layers, in order."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    found = []
    for module in model.modules():
        if isinstance(module, MoERunner) and isinstance(module.router, BaseRouter):
            module.router.set_capture_fn(partial(take, module.layer_id))
            found.append(module.layer_id)
    if not found:
        raise RuntimeError(f"vLLM's {type(model).__name__} has no router that says which experts it chose")
    return sorted(found)

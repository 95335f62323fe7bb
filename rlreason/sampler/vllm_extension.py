"""Runs inside vLLM's worker process, next to the model: takes weights over and says what it did not take.

vLLM finds it by name (``worker_extension_cls``) and mixes it into its own worker class; ``collective_rpc`` calls its
methods. It reaches into vLLM 0.32's model runner, as every weight update there does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from rlreason.sampler.trace import Trace
from rlreason.sampler.vllm_experts import ExpertCapture


class WeightReceiver:
    """Mixed into vLLM's worker: ``model_runner`` and ``vllm_config`` are the worker's own."""

    model_runner: Any
    vllm_config: Any

    def receive_weights(self, weights: Iterable[tuple[str, Tensor]]) -> list[str]:
        """Load tensors in place, as they arrive; returns the parameters of vLLM's model that none went into."""
        from vllm.config import set_current_vllm_config

        model = self.model_runner.get_model()
        wanted = {name for name, _ in model.named_parameters()}
        loaded: set[str] = set()
        broken: list[Exception] = []
        with set_current_vllm_config(self.vllm_config), _Recording(model, loaded):
            self._unpack_experts(model)
            self.model_runner.reload_weights(weights_iterator=_ends_early(self._tensors(weights), broken))
            self._repack_head(model)
        if broken:
            raise broken[0]
        return sorted(wanted - loaded)

    def _tensors(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        return iter(weights)

    def _unpack_experts(self, model: nn.Module) -> None:
        """Have the experts' kernel built anew from the new weights.

        vLLM 0.32 packs the experts for its CPU kernel only where no kernel exists yet; on a reload it would run the
        kernel for packed weights on weights that are not packed, without a word.
        """
        for module in model.modules():
            method = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None  # type: ignore[union-attr]

    def _repack_head(self, model: nn.Module) -> None:
        """Pack a head anew that is tied to the embedding.

        Its weight is the embedding's, so no tensor is loaded into it, and vLLM 0.32 would keep the copy that it packed
        for its CPU kernel when the model was built.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def cut_vocabulary(self, words: int) -> None:
        """Leave out the logits of ids from ``words`` on, before any softmax."""
        from vllm.model_executor.layers.logits_processor import LogitsProcessor

        for module in self.model_runner.get_model().modules():
            if isinstance(module, LogitsProcessor):
                module.org_vocab_size = min(module.org_vocab_size, words)

    def note_experts(self) -> None:
        """From now on, note which experts every token is sent to."""
        self._experts = ExpertCapture(self.model_runner)

    def take_experts(self, requests: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
        """What was noted of requests that have ended, by vLLM's own names for them; see ``ExpertCapture.of``."""
        return self._experts.of(requests)

    def trace_begin(self) -> None:
        """Record what every attention and MLP puts out, from the next step on."""
        self._trace = Trace(self.model_runner.get_model())

    def trace_end(self) -> dict[str, Tensor]:
        """What was recorded since ``trace_begin``; see ``Trace``."""
        return self._trace.end()


def _ends_early(weights: Iterator[tuple[str, Tensor]], broken: list[Exception]) -> Iterator[tuple[str, Tensor]]:
    """``weights``; where they raise, they end, and ``broken`` says why. A reload that is left in the middle would leave
    vLLM's model taken apart: it is finished with what there is, and the next one finds all parameters."""
    try:
        yield from weights
    except Exception as error:
        broken.append(error)


class _Recording:
    """While open, ``model.load_weights`` notes the parameters that it filled."""

    def __init__(self, model: nn.Module, loaded: set[str]) -> None:
        self._model, self._loaded = model, loaded

    def __enter__(self) -> None:
        original = self._model.load_weights

        def load_weights(weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            names: set[str] = original(weights)  # type: ignore[operator]
            self._loaded.update(names)
            return names

        self._model.load_weights = load_weights  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        del self._model.load_weights

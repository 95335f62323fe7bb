"""Which experts a mixture-of-experts model sends each token to: recorded, and forced.

Routers of transformers 5 are modules of their own that choose by one top-k over their experts and return the chosen
indices with their weights (Qwen, OLMoE, Mixtral, DeepSeek, GLM…). So a forward pass is replayed with another
choice by answering that top-k: the router still computes the weights of the forced experts, in its own way and from
its own logits, as in rollout routing replay (R3, arXiv 2510.11370). Models that choose otherwise are found out by a
trial. N = tokens of a forward pass in the order of its input, K = experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

#: Experts chosen in one forward pass, [N, K] int64 for each layer that has them. A row of −1: the router's own choice.
Routing = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routers:
    """The routers of a model, layer by layer. Example: 2 layers with 4 experts, of which each token takes 2."""

    modules: tuple[nn.Module, ...]
    experts: int
    chosen: int

    @contextmanager
    def record(self) -> Iterator[list[Tensor]]:
        """The list fills with the [N, K] of each layer during one forward pass."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Sequence[Tensor]) -> None:
            indices = _indices(output)
            assert indices is not None
            found.append(indices.detach().clone())

        hooks = [module.register_forward_hook(keep) for module in self.modules]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def replay(self, routing: Routing) -> Iterator[None]:
        """Every forward pass inside, of the tokens of ``routing``, sends them where it says."""
        with ExitStack() as stack:
            for module, forced_NK in zip(self.modules, routing, strict=True):
                stack.enter_context(_forced(module, forced_NK, self.experts))
            yield


def find_routers(model: PreTrainedModel) -> Routers | None:
    """The routers of ``model``; None of a dense model, and of one whose routers can't be recorded and forced."""
    modules = tuple(module for module in model.modules() if type(module).__name__.endswith("Router"))
    if not modules:
        return None
    try:
        return _tried(model, modules)
    except (RuntimeError, TypeError, AttributeError, IndexError):  # what a router of another build raises
        return None


@torch.no_grad()
def _tried(model: PreTrainedModel, modules: tuple[nn.Module, ...]) -> Routers | None:
    """Route two tokens freely and then to the next experts: both must be what the routers report."""
    ids = torch.tensor([[0, 1]], device=model.device)
    outputs: list[Any] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for module in modules
    ]
    try:
        model.base_model(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    own = [_indices(output) for output in outputs]
    if len(own) != len(modules) or any(indices is None for indices in own):
        return None
    experts = max(one.shape[-1] for one in outputs[0] if one.is_floating_point())
    free = tuple(indices for indices in own if indices is not None)
    routers = Routers(modules=modules, experts=experts, chosen=free[0].shape[-1])
    forced = tuple((indices + 1) % experts for indices in free)
    with routers.replay(forced), routers.record() as found:
        model.base_model(input_ids=ids, use_cache=False)
    return routers if all(map(torch.equal, found, forced)) else None


def _indices(output: Any) -> Tensor | None:
    """The only integers [N, K] that a router returns; None where there is no such thing."""
    if not isinstance(output, tuple) or not all(isinstance(one, Tensor) and one.ndim == 2 for one in output):
        return None
    integers = [one for one in output if one.dtype in (torch.int64, torch.int32)]
    return integers[0] if len(integers) == 1 else None


@contextmanager
def _forced(module: nn.Module, forced_NK: Tensor, experts: int) -> Iterator[None]:
    """``module``'s top-k over ``experts`` answers ``forced_NK``."""
    own, before = module.forward, vars(module).get("forward")

    def forward(*args: Any, **options: Any) -> Any:
        with _Answer(forced_NK, experts):
            return own(*args, **options)

    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before


class _Answer(TorchFunctionMode):
    """Answers the top-k that chooses experts. Others, such as DeepSeek's over groups of experts, are left alone."""

    def __init__(self, forced_NK: Tensor, experts: int) -> None:
        super().__init__()
        self._forced_NK = forced_NK
        self._experts = experts

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func not in (torch.topk, Tensor.topk):
            return found
        values_NE: Tensor = args[0]
        chosen_NK: Tensor = found.indices
        if values_NE.ndim != 2 or values_NE.shape[1] != self._experts:
            return found
        if chosen_NK.shape != self._forced_NK.shape:
            raise ValueError(f"routing of {tuple(self._forced_NK.shape)} for a choice of {tuple(chosen_NK.shape)}")
        chosen_NK = torch.where(self._forced_NK < 0, chosen_NK, self._forced_NK)
        return torch.return_types.topk((values_NE.gather(1, chosen_NK), chosen_NK))

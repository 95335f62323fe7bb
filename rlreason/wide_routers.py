"""Routers of experts in float32, in a model that computes in bfloat16 (``trainer.router_dtype``; Megatron and verl call
it moe_router_dtype).

A router of bfloat16 rounds its weights, what it sums up and its logits: two experts that are closer than that are
chosen between by the rounding. A wide router keeps its weights in float32, is handed float32 hidden states, and gives
float32 logits; gate weights leave it in the dtype that the model's own router gives them in, so that experts compute
what they did. That is two hooks and the dtype of a few parameters, which copies of a model have too.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from rlreason.routing import routers_in

#: Tokens of a trial; a router may take a top-k over them by mistake of the axis.
_TRIED = 64
_NOW = threading.local()


def widen_routers(model: PreTrainedModel) -> None:
    """Have the routers of ``model``, of any device, in float32; those that are already stay as they are. Before a model
    is sharded."""
    logits = _place_of_logits(model)
    for _, router in routers_in(model):
        if not is_wide(router):
            router.register_forward_pre_hook(_Enter())
            router.register_forward_hook(_Leave(_narrow_outputs(router) - {logits}), always_call=True)
        for parameter in router.parameters():
            parameter.data = parameter.data.float()


def narrow_routers(model: PreTrainedModel) -> None:
    """Undo ``widen_routers`` but for the parameters' dtype, which ``cast_parameters`` then changes with the others'."""
    for _, router in routers_in(model):
        for hooks in (router._forward_pre_hooks, router._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, _Enter | _Leave)]:
                del hooks[key]
                router._forward_hooks_always_called.pop(key, None)


def is_wide(module: nn.Module) -> bool:
    """Whether it is a router that ``widen_routers`` has been at."""
    return any(isinstance(hook, _Enter) for hook in module._forward_pre_hooks.values())


def wide_names(model: nn.Module) -> frozenset[str]:
    """The parameters that are float32 whatever ``model`` computes in, by its own names."""
    wide = [(name, module) for name, module in model.named_modules() if is_wide(module)]
    return frozenset(f"{name}.{own}" for name, module in wide for own, _ in module.named_parameters())


def why_not_wide(model: PreTrainedModel) -> str:
    """Why the routers of a model with experts can't be found, or "". It may be on the meta device."""
    sparse = {name.partition(".experts.")[0] for name, _ in model.named_parameters() if ".experts." in name}
    found = len(routers_in(model))
    if found == len(sparse):
        return ""
    return f"of its {len(sparse)} layers with experts {found or 'none'} have a router that is known here"


def _place_of_logits(model: PreTrainedModel) -> int:
    """Which of a router's outputs is its logits, as the model's own file says: nothing but losses reads them."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            recorder = (module._can_record_outputs or {}).get("router_logits")
            if isinstance(recorder, OutputRecorder):
                return int(recorder.index)
    return 0


def _narrow_outputs(router: nn.Module) -> frozenset[int]:
    """Places of the outputs that the router as it is gives in the compute dtype: Qwen's and Llama 4's gate weights are
    among them, Mixtral's and DeepSeek's are float32 whatever it computes in. Tried without numbers; of a router that
    can't be tried so, all places."""
    twin = copy.deepcopy(router).to("meta")
    for parameter in twin.parameters():
        parameter.data = parameter.data.bfloat16()
    weight_EH = next(parameter for parameter in twin.parameters() if parameter.ndim == 2)
    experts, hidden = weight_EH.shape
    states = torch.empty((1, _TRIED, hidden), dtype=torch.bfloat16, device="meta")
    # What else a router is handed is the bias of each expert (AFMoE, MiniMax).
    biases = [torch.empty(experts, device="meta")] * (len(inspect.signature(twin.forward).parameters) - 1)
    try:
        outputs = twin.forward(states, *biases)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return frozenset(range(8))
    return frozenset(
        place for place, one in enumerate(outputs) if isinstance(one, Tensor) and one.dtype == torch.bfloat16
    )


def _entered() -> list[torch.dtype]:
    """The dtypes that this thread's routers were entered with."""
    return vars(_NOW).setdefault("dtypes", [])  # type: ignore[no-any-return]


@dataclass(slots=True)
class _Enter:
    """Hands a router float32. Plain data, so that a copy of the model has a copy of it."""

    def __call__(self, _: nn.Module, inputs: Sequence[Any]) -> tuple[Any, ...]:
        hidden, *rest = inputs
        _entered().append(hidden.dtype)
        return (hidden.float(), *rest)


@dataclass(slots=True)
class _Leave:
    """``narrow``: places of the outputs that go on in the dtype that the router was entered with."""

    narrow: frozenset[int]

    def __call__(self, _: nn.Module, __: Any, outputs: Any) -> Any:
        dtype = _entered().pop()
        if not isinstance(outputs, tuple):  # it raised
            return outputs
        back = self.narrow
        return tuple(
            one.to(dtype) if place in back and one.is_floating_point() else one for place, one in enumerate(outputs)
        )

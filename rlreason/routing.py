"""Which experts a mixture-of-experts model sends each token to: noted, and forced.

Routers of transformers 5 choose by one top-k over their experts, whatever they make of it (Qwen, OLMoE, Mixtral,
DeepSeek, GLM, Llama 4…). A forward pass that brings a ``RoutedPass`` has that top-k answered: the router still computes
the weights of the forced experts, in its own way and from its own logits, so that they keep their gradient, as in
rollout routing replay (R3, arXiv 2510.11370).

The pass travels as an argument of each layer, which activation checkpointing keeps and hands over again. So a layer
that is computed anew in the backward pass, in whatever thread and long after the forward pass is over, chooses the same
experts; and micro-batches of several threads don't meet. Models that choose otherwise are found out by a trial.

N = tokens of a forward pass in the order of its input, L = layers with experts, K = experts per token, E = experts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from rlreason.errors import UsageError

#: An expert's number in uint8: all K of a position are this where its router is to choose by itself.
FREE = 255
#: Experts that uint8 can name.
MOST_EXPERTS = 256
#: What configs call the routed experts of a layer, and those of a token.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "num_experts_per_token")
#: What a router adds to an expert's score when it picks experts, and to nothing else: a buffer of it, or of its layer.
_BIAS = "e_score_correction_bias"
#: By this name a forward pass is given its ``RoutedPass``.
ARGUMENT = "routed_pass"


@dataclass(slots=True, kw_only=True)
class RoutedPass:
    """One forward pass's choice of experts: what is to be, and what was. Layers are numbered from 0.

    Example: ``RoutedPass(given_NLK=experts, replay=True)`` sends every token where ``experts`` says.
    """

    #: uint8 [N, L, K]; ``FREE`` in all K of a token: the router's own choice. None: all are free.
    given_NLK: Tensor | None = None
    #: Force ``given_NLK``; False: it is only kept beside what the routers choose.
    replay: bool = False
    #: By layer, [N, K] int64: what the router's own logits choose, and what it was sent to.
    own: dict[int, Tensor] = field(default_factory=dict)
    used: dict[int, Tensor] = field(default_factory=dict)

    def answer(self, layer: int, own_NK: Tensor) -> Tensor:
        """What the top-k of ``layer`` is to be. Raises ValueError where the given experts are of other tokens."""
        self.own[layer] = self.used[layer] = own_NK.detach()
        if self.given_NLK is None or not self.replay:
            return own_NK
        given_NK = self.given_NLK[:, layer]
        if given_NK.shape != own_NK.shape:
            raise ValueError(f"routing of {tuple(given_NK.shape)} for a choice of {tuple(own_NK.shape)}")
        free_N1 = (given_NK == FREE).all(dim=1, keepdim=True)
        self.used[layer] = torch.where(free_N1, own_NK, given_NK.to(own_NK.dtype))
        return self.used[layer]

    def used_NLK(self) -> Tensor:  # axes
        """Where the pass sent its tokens, uint8 [N, L, K]."""
        return torch.stack([self.used[layer] for layer in range(len(self.used))], dim=1).to(torch.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routers:
    """What is known of a model's routers. Example: ``Routers(layers=2, experts=4, chosen=2)``."""

    layers: int
    experts: int
    chosen: int


_KNOWN: WeakKeyDictionary[PreTrainedModel, Routers | None] = WeakKeyDictionary()
_LOCK = threading.RLock()
_NOW = threading.local()


def expert_count(model: PreTrainedModel) -> int:
    """Routed experts of a layer; 0 for a dense model."""
    return experts_in(model.config.to_dict())


def chosen_count(model: PreTrainedModel) -> int:
    """Routed experts of a token; 0 for a dense model. Raises UsageError as ``experts_in`` does."""
    return _said(model.config.to_dict(), _CHOSEN) if expert_count(model) else 0


def experts_in(config: Mapping[str, Any]) -> int:
    """Routed experts of a layer by a model's config; 0 for a dense model. Architectures spell it differently.

    Raises UsageError where layers differ in them.
    """
    return _said(config, _EXPERTS)


def _said(config: Mapping[str, Any], spellings: Sequence[str]) -> int:
    """The first number by one of those names; a list has one for each layer (Hunyuan)."""
    for name in spellings:
        found = config.get(name)
        numbers = list(dict.fromkeys(found if isinstance(found, (list, tuple)) else [found]))
        if len(numbers) > 1:
            raise UsageError(f"a {config.get('model_type')} model whose layers differ in {name} is not supported")
        if numbers and numbers[0]:
            return int(numbers[0])
    return 0


def check_experts(model: PreTrainedModel, place: str) -> None:
    """Raise UsageError for a model with experts whose config does not say how many by a name that is known here."""
    sparse = any(".experts." in name for name, _ in model.named_parameters())
    said = (expert_count(model) > 0, chosen_count(model) > 0)
    if (sparse or said[0]) and not all(said):
        raise UsageError(
            f"{place} ({model.config.model_type}) has experts, and its config says not how many there are, or how many "
            f"of them a token goes to, by a name that is known here ({', '.join(_EXPERTS)}; {', '.join(_CHOSEN)}): "
            "routing, load and active parameters would be wrong. docs/models.md lists the models that work"
        )


def find_routers(model: PreTrainedModel) -> Routers | None:
    """The routers of ``model``, whose forward passes then take a ``RoutedPass``; None of a dense model, and of one
    whose routers can't be followed. The model is tried once."""
    with _LOCK:
        if model not in _KNOWN:
            _KNOWN[model] = _found(model)
        return _KNOWN[model]


def check_followed(model: PreTrainedModel, why: str) -> Routers:
    """``check_routing`` for what is not kept."""
    routers = find_routers(model)
    if routers is None:
        raise UsageError(
            f"{why}: {type(model).__name__} has no experts, or chooses them in a way that can't be followed "
            "(docs/models.md says of which types it can)"
        )
    return routers


def check_routing(model: PreTrainedModel, why: str) -> Routers:
    """The routers of a model whose routing is wanted, as ``why`` says. Raises UsageError where that can't be had."""
    routers = check_followed(model, why)
    if routers.experts > MOST_EXPERTS:
        raise UsageError(f"{why}: it is kept in 8 bits, and {type(model).__name__} has {routers.experts} experts")
    return routers


def remember_routers(model: PreTrainedModel, known: Routers | None) -> None:
    """Say what ``find_routers`` would find by trial, of a model that can't be tried, such as shards."""
    with _LOCK:
        if known is not None:
            _prepare(model)
        _KNOWN[model] = known


def options_of(routed: RoutedPass | None) -> dict[str, RoutedPass]:
    """The arguments of a forward pass; nothing where ``routed`` is None."""
    return {} if routed is None else {ARGUMENT: routed}


def routers_in(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The routers with their names, in the order of the layers: of Hunyuan they are called gates."""

    def routes(one: nn.Module) -> bool:
        name = type(one).__name__
        return name.endswith("Router") or (name.endswith("Gate") and "top_k" in vars(one))

    return [(name, one) for name, one in model.named_modules() if routes(one)]


def is_router(parameter: str, routers: Sequence[str]) -> bool:
    """Whether a parameter's name is of one of ``routers``, such as ``model.layers.0.mlp.gate.weight``."""
    return any(parameter.startswith(f"{one}.") for one in routers)


def correction_biases(model: nn.Module) -> list[Tensor]:
    """The bias of each of ``routers_in``, [E], by which it picks experts; none where not every router has one."""
    buffers, found = dict(model.named_buffers()), []
    for name, _ in routers_in(model):
        places = (f"{name}.{_BIAS}", f"{name.rpartition('.')[0]}.{_BIAS}")
        found += [buffers[one] for one in places if one in buffers][:1]
    return found if len(found) == len(routers_in(model)) else []


def widen_biases(model: nn.Module) -> None:
    """Have correction biases in float32, whatever the model computes in: a bfloat16 one of 0.3 has a spacing of 0.002,
    which a step of 0.001 is lost in. transformers makes some in the compute dtype and loads them in float32."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == _BIAS and buffer.dtype != torch.float32:
                setattr(module, name, nn.Buffer(buffer.float()))


def _found(model: PreTrainedModel) -> Routers | None:
    if not expert_count(model):
        return None
    training = model.training
    model.eval()
    try:
        if not _prepare(model):
            return None
        with torch.autocast(model.device.type, enabled=False):
            return _tried(model)
    except (RuntimeError, TypeError, AttributeError, IndexError, KeyError):  # what a router of another build raises
        return None
    finally:
        model.train(training)


@torch.no_grad()
def _tried(model: PreTrainedModel) -> Routers | None:
    """Route two tokens freely and then to the next experts: routers must report that, or at least something else."""
    ids, experts = torch.tensor([[0, 1]], device=model.device), expert_count(model)
    outputs: list[Any] = []
    routers = [module for _, module in routers_in(model)]
    hooks = [one.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for one in routers]
    try:
        free = RoutedPass()
        model(input_ids=ids, use_cache=False, **options_of(free))
        own, outputs[:] = list(outputs), []
        if sorted(free.used) != list(range(len(routers))) or len(own) != len(routers):
            return None
        given_NLK = ((free.used_NLK().long() + 1) % experts).to(torch.uint8)
        model(input_ids=ids, use_cache=False, **options_of(RoutedPass(given_NLK=given_NLK, replay=True)))
    finally:
        for hook in hooks:
            hook.remove()
    pairs = zip(own, outputs, given_NLK.unbind(1), strict=True)
    if not all(_follows(before, after, given_NK) for before, after, given_NK in pairs):
        return None
    return Routers(layers=len(routers), experts=experts, chosen=given_NLK.shape[2])


def _follows(before: Any, after: Any, given_NK: Tensor) -> bool:
    """Whether a router's output is of ``given_NK``: its only integers [N, K]; where it has none, other numbers."""
    tensors = [one for one in after if isinstance(one, Tensor)]
    integers = [one for one in tensors if one.dtype in (torch.int64, torch.int32)]
    if len(integers) == 1:
        return bool(torch.equal(integers[0].long(), given_NK.long()))
    return not integers and not all(map(torch.equal, before, after))


def _prepare(model: PreTrainedModel) -> bool:
    """Have the layers take their argument and the routers read it. False: there is no router in a list of layers."""
    modules = dict(model.named_modules())
    for number, (name, router) in enumerate(routers_in(model)):
        layers = _layers_of(name, modules)
        if layers is None:
            return False
        for layer in layers:
            if _enter_layer not in layer._forward_pre_hooks.values():
                layer.register_forward_pre_hook(_enter_layer, with_kwargs=True)
                layer.register_forward_hook(_leave_layer, always_call=True)
        if not any(isinstance(hook, _EnterRouter) for hook in router._forward_pre_hooks.values()):
            router.register_forward_pre_hook(_EnterRouter(number, expert_count(model)))
            router.register_forward_hook(_leave_router, always_call=True)
    return bool(routers_in(model))


def _layers_of(router: str, modules: Mapping[str, nn.Module]) -> nn.ModuleList | None:
    """The outermost list of modules that the router is in: the model's layers."""
    parts = router.split(".")
    for length in range(1, len(parts)):
        one = modules[".".join(parts[:length])]
        if isinstance(one, nn.ModuleList):
            return one
    return None


def _stack(name: str) -> list[Any]:
    """What this thread is in the middle of. Hooks come in pairs, also where a layer raises."""
    return vars(_NOW).setdefault(name, [])  # type: ignore[no-any-return]


def _enter_layer(_: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    rest = dict(options)
    _stack("passes").append(rest.pop(ARGUMENT, None))
    return inputs, rest


def _leave_layer(*_: Any) -> None:
    _stack("passes").pop()


@dataclass(slots=True)
class _EnterRouter:
    """Plain data, so that a copy of the model has a copy of it."""

    layer: int
    experts: int

    def __call__(self, _: nn.Module, __: Any) -> None:
        passes = _stack("passes")
        mode = None
        if passes and passes[-1] is not None:
            mode = _Answer(passes[-1], self.layer, self.experts)
            mode.__enter__()  # type: ignore[no-untyped-call]
        _stack("modes").append(mode)


def _leave_router(*_: Any) -> None:
    mode = _stack("modes").pop()
    if mode is not None:
        mode.__exit__(None, None, None)


class _Answer(TorchFunctionMode):
    """Answers the top-k that chooses experts. Others, such as DeepSeek's over groups of experts, are left alone."""

    def __init__(self, routed: RoutedPass, layer: int, experts: int) -> None:
        super().__init__()
        self._routed, self._layer, self._experts = routed, layer, experts

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
        if values_NE.ndim != 2 or values_NE.shape[1] != self._experts:
            return found
        own_NK: Tensor = found.indices
        chosen_NK = self._routed.answer(self._layer, own_NK)
        if chosen_NK is own_NK:
            return found
        return torch.return_types.topk((values_NE.gather(1, chosen_NK), chosen_NK))

"""What a policy says of a batch's targets, up to its head: hidden states and the head's weight, or whole logits.

Right padding needs no mask under causal attention: a real token never sees the padding after it, and padded positions
are masked out of every loss. Leaving the mask out keeps the fast attention kernel.
"""

from __future__ import annotations

from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlreason.objective.batch import Batch, Packing
from rlreason.policy.attention import has_own_attention, packed_states
from rlreason.policy.batch import collate, pack, supervised_sample
from rlreason.policy.layouts import Call, Layout, SdpaLayout
from rlreason.routing import RoutedPass, options_of

_PLAIN_HEADS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_PACKED: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_LOCK = Lock()
#: Makes a fresh model's logits larger than any cap.
_LARGE = 1e4


def plain_head(model: PreTrainedModel) -> Tensor | None:
    """The weight [V, H] of a head whose logits are hidden · weightᵀ and nothing else; None of any other head.

    Soft caps and scales (Gemma 2, Cohere, Granite) have no common name, so the model is asked once.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return None
    with _LOCK:  # micro-batches come from several threads, and the question needs evaluation mode
        if model not in _PLAIN_HEADS:
            _PLAIN_HEADS[model] = _is_plain(model, head)
    return head.weight if _PLAIN_HEADS[model] else None


@torch.no_grad()
def _is_plain(model: PreTrainedModel, head: nn.Linear) -> bool:
    """Compare logits with the product, where both are far larger than a cap would leave them."""
    body = body_of(model)
    if body is None:
        return False
    training = model.training
    model.eval()
    ids = torch.tensor([[0, head.out_features - 1]], device=head.weight.device)
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * _LARGE,))
    with _full_precision(model):
        logits = model(input_ids=ids, use_cache=False).logits.double()
        hook.remove()
        states = body(input_ids=ids, use_cache=False).last_hidden_state.double()
    product = states * _LARGE @ head.weight.double().t()
    model.train(training)
    if logits.shape != product.shape:
        return False
    return bool((logits - product).abs().max() <= _tolerance(head.weight.dtype) * product.abs().max())


def remember(model: PreTrainedModel, *, plain: bool, packed: bool) -> None:
    """Say what ``plain_head`` and ``takes_packed`` would find by trial, of a model that can't be tried, such as shards:
    what they found of the whole one."""
    with _LOCK:
        _PLAIN_HEADS[model], _PACKED[model] = plain, packed


def body_of(model: PreTrainedModel) -> nn.Module | None:
    """The model without its head: what gives ``last_hidden_state``. None where it has none that can be run alone."""
    body: nn.Module = model.base_model
    if body is not model:
        return body
    # A model whose prefix names nothing of its own, such as Llama 4's text model, is its own base_model.
    return dict(model.named_children()).get("model")


def _full_precision(model: PreTrainedModel) -> torch.autocast:
    """Trials compare at the model's own precision: what they find is remembered, also where one is made in autocast."""
    return torch.autocast(model.device.type, enabled=False)


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2


def hidden_states(
    model: PreTrainedModel, batch: Batch, router_logits: list[Tensor] | None = None, routed: RoutedPass | None = None
) -> Tensor:
    """What the head reads to predict each target, [B, T, H], in the model's dtype.

    A list as ``router_logits`` is filled with those of each layer with experts, [tokens, experts]. ``routed``: of a
    model that ``find_routers`` approves of.
    """
    body = body_of(model)
    assert body is not None, "a model with a plain head has a body"
    if batch.packing is None:
        hidden_BTH: Tensor = _forward(body, batch, router_logits, routed).last_hidden_state
        return hidden_BTH
    hidden_LH = packed_states(body, batch.token_ids_BT, batch.packing, router_logits, more=options_of(routed))
    return _at_sources(hidden_LH, batch.packing)


def _at_sources(hidden_LH: Tensor, packing: Packing) -> Tensor:
    """The states that predict each target, [B, T, H]."""
    source_BT = packing.source_BT
    return hidden_LH.index_select(0, source_BT.flatten()).view(*source_BT.shape, -1)


def _forward(
    model: nn.Module, batch: Batch, router_logits: list[Tensor] | None, routed: RoutedPass | None = None
) -> Any:
    """A pass over whole rows."""
    options: dict[str, Any] = {} if router_logits is None else {"output_router_logits": True}
    options |= options_of(routed)
    # Not model(...): a sharded model is entered before, and its hooks would free what is still read.
    output = model.forward(input_ids=batch.token_ids_BT, use_cache=False, **options)
    if router_logits is not None:
        router_logits += output.router_logits
    return output


def takes_packed(model: PreTrainedModel) -> bool:
    """Whether the model may be given packed micro-batches: its attention is ours, its layers look back as far as its
    config says, nothing else carries the past, and a trial gives the states of whole rows."""
    if not has_own_attention(model) or plain_head(model) is None:
        return False
    with _LOCK:
        if model not in _PACKED:
            with _full_precision(model):
                _PACKED[model] = _packs_alike(model)
    return _PACKED[model]


def _windows(model: PreTrainedModel) -> list[int | None] | None:
    """How far each layer looks back, None: at all of the past. None for a model with layers of another kind."""
    config = model.config.to_dict()
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    if kinds is None:
        return [window] * int(model.config.num_hidden_layers)
    if set(kinds) - {"full_attention", "sliding_attention"}:
        return None
    return [window if kind == "sliding_attention" else None for kind in kinds]


class _Noted:
    """A layout that notes how far each layer looks back: rows of a trial are shorter than any window."""

    def __init__(self, layout: Layout) -> None:
        self.windows: list[int | None] = []
        self._layout = layout

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        self.windows.append(call.window)
        return self._layout.attend(query, key, value, call)


@torch.no_grad()
def _packs_alike(model: PreTrainedModel) -> bool:
    """Three rows of two prompts, whole and packed."""
    training, body, expected = model.training, body_of(model), _windows(model)
    if body is None or expected is None:
        return False
    model.eval()
    last_id = len(model.get_output_embeddings().weight) - 1
    rows = [
        supervised_sample([min(token, last_id) for token in (*prompt, *behind)], [0] * len(prompt) + [1] * len(behind))
        for prompt, behind in (((2, 3, 4), (5, 6, 7)), ((4, 3), (6,)), ((2, 3, 4), (7, 5)))
    ]
    batch = pack(rows, 0, model.device)
    assert batch.packing is not None
    noted = _Noted(SdpaLayout(batch.packing))
    states_LH = packed_states(body, batch.token_ids_BT, batch.packing, layout=noted)
    packed = _at_sources(states_LH, batch.packing).double()
    alike = noted.windows == expected
    for row, states in zip(rows, packed, strict=True):
        whole = hidden_states(model, collate([row], 0, model.device))[0, row.prompt_length - 1 :].double()
        apart = (states[: len(whole)] - whole).abs().max()
        alike &= bool(apart <= _tolerance(model.dtype) * whole.abs().max())
    model.train(training)
    return alike


@torch.no_grad()
def next_logprobs(model: PreTrainedModel, prompt_ids: tuple[int, ...]) -> Tensor:
    """log π of the token after the prompt, [V], float32, at temperature 1."""
    ids = torch.tensor([prompt_ids], device=model.device)
    return torch.log_softmax(model.forward(input_ids=ids, use_cache=False).logits[0, -1].float(), dim=-1)


def target_logits(
    model: PreTrainedModel, batch: Batch, router_logits: list[Tensor] | None = None, routed: RoutedPass | None = None
) -> Tensor:
    """Float32 logits [B, T, V] that predict ``batch.targets_BT``, whole; the rest as in ``hidden_states``.

    Raises ValueError for a packed micro-batch: only a plain head reads those (``takes_packed`` says of which models).
    """
    if batch.packing is not None:
        raise ValueError(f"whole logits of {type(model).__name__} are computed of whole rows, not of packed ones")
    logits: Tensor = _forward(model, batch, router_logits, routed).logits
    return logits.float()


def target_logprobs(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """log softmax(logits) of each target, [B, T], float32."""
    chosen_BT = logits_BTV.gather(-1, batch.targets_BT.unsqueeze(-1)).squeeze(-1)
    return chosen_BT - torch.logsumexp(logits_BTV, dim=-1)


def target_entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy of softmax(logits) at each position, [B, T], in nats."""
    all_BTV = torch.log_softmax(logits_BTV, dim=-1)
    return -(all_BTV.exp() * all_BTV).sum(dim=-1)

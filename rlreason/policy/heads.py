"""What a model's language-model head computes, where a name can be given to it.

Soft caps, scales and biases have other names in every family, so what is read from the config is proved by a trial: two
tokens through the model, and through its body and the head as read.
"""

from __future__ import annotations

from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from rlreason.objective.distillation.teacher import OutputHead
from rlreason.policy.logprobs import body_of, plain_head

#: Keys of a config: a factor of the logits (Cohere), or what they are divided by (Granite).
_FACTORS, _DIVISORS, _CAPS = ("logit_scale",), ("logits_scaling",), ("final_logit_softcapping",)
_FOUND: WeakKeyDictionary[PreTrainedModel, tuple[float, float | None] | None] = WeakKeyDictionary()
_LOCK = Lock()


def output_head(model: PreTrainedModel) -> OutputHead | None:
    """The head of ``model``, to be applied to states after its last norm; None of one that can't be named.

    Example: Gemma 2 gives ``soft_cap=30.0``, Granite ``scale=0.125``, Phi a bias.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    if plain_head(model) is not None:
        return OutputHead(weight_VH=head.weight)
    if isinstance(model, FSDPModule):  # a shard can't be tried
        return None
    with _LOCK:
        if model not in _FOUND:
            _FOUND[model] = _tried(model, head)
        found = _FOUND[model]
    if found is None:
        return None
    return OutputHead(weight_VH=head.weight, bias_V=head.bias, scale=found[0], soft_cap=found[1])


@torch.no_grad()
def _tried(model: PreTrainedModel, head: nn.Linear) -> tuple[float, float | None] | None:
    """(scale, soft cap) where they explain the logits of two tokens."""
    body = body_of(model)
    if body is None:
        return None
    config = model.config.to_dict()
    scale = 1.0
    for key in _FACTORS:
        scale *= float(config[key]) if config.get(key) else 1.0
    for key in _DIVISORS:
        scale /= float(config[key]) if config.get(key) else 1.0
    cap = next((float(config[key]) for key in _CAPS if config.get(key)), None)
    training = model.training
    model.eval()
    ids = torch.tensor([[0, head.out_features - 1]], device=head.weight.device)
    with torch.autocast(model.device.type, enabled=False):
        logits = model(input_ids=ids, use_cache=False).logits[0].double()
        states = body(input_ids=ids, use_cache=False).last_hidden_state[0].double()
    model.train(training)
    named = OutputHead(weight_VH=head.weight.double(), bias_V=head.bias, scale=scale, soft_cap=cap)
    product = named.logits(states, torch.empty(2, head.out_features, dtype=torch.float64, device=states.device))
    tolerance = 1e-4 if head.weight.dtype in (torch.float32, torch.float64) else 3e-2
    if logits.shape != product.shape:
        return None
    return (scale, cap) if bool((logits - product).abs().max() <= tolerance * product.abs().max()) else None

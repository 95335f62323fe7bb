"""What a policy says of a batch's targets, up to its head: hidden states and the head's weight, or whole logits.

Right padding needs no mask under causal attention: a real token never sees the padding after it, and padded positions
are masked out of every loss. Leaving the mask out keeps the fast attention kernel.
"""

from __future__ import annotations

from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlreason.types import Batch

_PLAIN_HEADS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
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
    training = model.training
    model.eval()
    ids = torch.tensor([[0, head.out_features - 1]], device=head.weight.device)
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * _LARGE,))
    logits = model(input_ids=ids, use_cache=False).logits.double()
    hook.remove()
    product = hidden_states(model, ids).double() * _LARGE @ head.weight.double().t()
    model.train(training)
    if logits.shape != product.shape:
        return False
    tolerance = 1e-4 if head.weight.dtype in (torch.float32, torch.float64) else 3e-2
    return bool((logits - product).abs().max() <= tolerance * product.abs().max())


def hidden_states(model: PreTrainedModel, token_ids_BT: Tensor) -> Tensor:
    """What the head reads, [B, T, H], in the model's dtype."""
    hidden: Tensor = model.base_model(input_ids=token_ids_BT, use_cache=False).last_hidden_state
    return hidden


def target_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Float32 logits [B, T, V] that predict ``batch.targets_BT``, whole."""
    output = model(input_ids=batch.token_ids_BT, use_cache=False)
    logits: Tensor = output.logits
    return logits.float()


def target_logprobs(logits_BTV: Tensor, batch: Batch) -> Tensor:
    """log softmax(logits) of each target, [B, T], float32."""
    chosen_BT = logits_BTV.gather(-1, batch.targets_BT.unsqueeze(-1)).squeeze(-1)
    return chosen_BT - torch.logsumexp(logits_BTV, dim=-1)


def target_entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy of softmax(logits) at each position, [B, T], in nats, without gradient."""
    all_BTV = torch.log_softmax(logits_BTV.detach(), dim=-1)
    return -(all_BTV.exp() * all_BTV).sum(dim=-1)

"""What a policy says of a batch's targets, up to its head: hidden states and the head's weight, or whole logits.

Right padding needs no mask under causal attention: a real token never sees the padding after it, and padded positions
are masked out of every loss. Leaving the mask out keeps the fast attention kernel.
"""

from __future__ import annotations

from threading import Lock
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from rlreason.types import Batch, Prompts

_PLAIN_HEADS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_SHARING: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
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
    product = (
        model.base_model(input_ids=ids, use_cache=False).last_hidden_state.double() * _LARGE @ head.weight.double().t()
    )
    model.train(training)
    if logits.shape != product.shape:
        return False
    return bool((logits - product).abs().max() <= _tolerance(head.weight.dtype) * product.abs().max())


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What the head reads to predict each target, [B, T, H], in the model's dtype."""
    hidden: Tensor
    if batch.prompts is None:
        hidden = model.base_model(input_ids=batch.token_ids_BT, use_cache=False).last_hidden_state
        return hidden
    return _continued_states(model, batch.token_ids_BT, batch.prompts)


def _continued_states(model: PreTrainedModel, token_ids_BT: Tensor, prompts: Prompts) -> Tensor:
    """Prompts once, then every row against the keys and values of its own, as a sampler does; gradients add up.

    PrefixGrouper (arXiv 2506.05433) shares prompts by a mask over one long sequence; here attention costs no more than
    separate rows do.
    """
    cache = DynamicCache(config=model.config)
    of_row_B, device = prompts.of_row_B, token_ids_BT.device
    width = prompts.token_ids_GP.shape[1]
    hidden_GPH = model.base_model(
        input_ids=prompts.token_ids_GP, past_key_values=cache, use_cache=True
    ).last_hidden_state
    last_G = prompts.lengths_G - 1
    first_B1H: Tensor = hidden_GPH[torch.arange(len(last_G), device=device), last_G][of_row_B].unsqueeze(1)
    if not token_ids_BT.shape[1]:
        return first_B1H
    cache.batch_select_indices(of_row_B)
    starts_B1 = prompts.lengths_G[of_row_B].unsqueeze(1)
    mask = None
    if prompts.ragged:  # what was padded behind a prompt stays unseen
        seen_BP = torch.arange(width, device=device) < starts_B1
        mask = torch.cat([seen_BP.long(), torch.ones_like(token_ids_BT)], dim=1)
    rest_BTH = model.base_model(
        input_ids=token_ids_BT,
        attention_mask=mask,
        position_ids=starts_B1 + torch.arange(token_ids_BT.shape[1], device=device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([first_B1H, rest_BTH], dim=1)


def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether rows of one prompt may continue it (``pack(share_prompts=True)``): attention alone carries the past, at
    any distance, and a trial gives the states of separate rows."""
    weight_VH = plain_head(model)
    if weight_VH is None:
        return False
    config = model.config.to_dict()
    layers = set(config.get("layer_types") or ()) - {"full_attention"}
    if layers or config.get("sliding_window"):
        return False
    with _LOCK:
        if model not in _SHARING:
            _SHARING[model] = _continues_alike(model, len(weight_VH) - 1)
    return _SHARING[model]


@torch.no_grad()
def _continues_alike(model: PreTrainedModel, last_id: int) -> bool:
    """Rows of 3 + 2 and of 2 + 2 tokens, whole and behind their prompts."""
    training, device = model.training, model.device
    model.eval()
    whole = [torch.tensor([ids], device=device).clamp(max=last_id) for ids in ((2, 3, 4, 5, 6), (4, 3, 6, 7))]
    prompts = Prompts(
        token_ids_GP=torch.tensor([[2, 3, 4], [4, 3, 0]], device=device).clamp(max=last_id),
        lengths_G=torch.tensor([3, 2], device=device),
        of_row_B=torch.tensor([1, 0], device=device),
        ragged=True,
    )
    states = [model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0] for ids in whole]
    behind = _continued_states(model, torch.tensor([[6], [5]], device=device).clamp(max=last_id), prompts)
    model.train(training)
    apart = (behind.double() - torch.stack([states[1][1:3], states[0][2:4]]).double()).abs().max()
    return bool(apart <= _tolerance(states[0].dtype) * states[0].double().abs().max())


def target_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Float32 logits [B, T, V] that predict ``batch.targets_BT``, whole. The rows hold their prompts themselves."""
    assert batch.prompts is None
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

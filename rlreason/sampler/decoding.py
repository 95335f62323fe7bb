"""What decoding one token a row needs of a transformers model: attention that reads each key once, a cache that grows
in place.

R = rows, Q = query heads, N = key heads, K = keys, D = head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlreason.attention_options import check_options
from rlreason.errors import UsageError
from rlreason.sampler.jobs import EngineSpec, Job

#: The attention of the embedded engine's models: transformers' "sdpa" but for steps of one token.
ATTENTION = "rlreason_decoding"
#: Positions by which a full cache layer grows.
_ROOM = 32
#: Of the arguments that some models pass on, those that change what "sdpa" computes for one token.
_CHANGES = ("position_bias", "cache")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function, as "sdpa": query [R, Q, T, D], key and value [R, N, K, D] -> [R, T, Q, D].

    With one token a row (T = 1) the Q/N heads that share a key are its queries, so that keys and values are read where
    they are; "sdpa" with a mask copies both Q/N times first. Raises UsageError for an option that "sdpa" would drop.
    """
    check_options(options)
    rows, heads, steps, size = query.shape
    shared = heads // key.shape[1]
    same_for_all = attention_mask is None or attention_mask.shape[1:3] == (1, 1)
    if steps != 1 or shared == 1 or not same_for_all or any(options.get(name) is not None for name in _CHANGES):
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    found = scaled_dot_product_attention(
        query.view(rows, key.shape[1], shared, size), key, value, attn_mask=attention_mask, scale=scaling
    )
    return found.reshape(rows, 1, heads, value.shape[3]), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _Tape:
    """Keys or values, [R, N, K, D], at the front of memory that has room for more."""

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._view: Tensor | None = None

    def append(self, held: Tensor, new: Tensor) -> Tensor:
        """``held`` with ``new`` behind it. Where ``held`` is what the last call returned, only ``new`` is written."""
        before = held.shape[2] if held.numel() else 0
        after = before + new.shape[2]
        memory = self._memory
        if memory is None or held is not self._view or after > memory.shape[2]:
            rows, heads, _, size = new.shape
            memory = new.new_empty((rows, heads, after + _ROOM, size))
            if before:
                memory[:, :, :before] = held
        memory[:, :, before:after] = new
        self._memory, self._view = memory, memory[:, :, :after]
        return self._view


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types here
    """A ``DynamicLayer`` to which a token is written without moving those before it."""

    def __init__(self) -> None:
        super().__init__()
        self._tapes = _Tape(), _Tape()
        self.keys: Tensor
        self.values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """See ``DynamicLayer.update``; [R, N, T, D] each."""
        del args, kwargs
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._tapes[0].append(self.keys, key_states)
        self.values = self._tapes[1].append(self.values, value_states)
        return self.keys, self.values


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """A cache for a model of ``config``; layers of other kinds (sliding, linear) stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def check_room(spec: EngineSpec, jobs: Sequence[Job]) -> None:
    """Raise UsageError naming the first job whose prompt leaves no room for its answer.

    Every engine asks: vLLM would refuse such a prompt itself or cut the answer short, transformers go on past the
    positions that the model knows.
    """
    for job in jobs:
        length, wanted = len(job.prompt_ids), job.params.max_tokens
        if length + wanted > spec.longest:
            whose = "sampler.max_length" if spec.max_length else "the model's positions"
            raise UsageError(
                f"problem {job.problem_id!r}: a prompt of {length} tokens and max_tokens = {wanted} are together more "
                f"than {spec.longest} ({whose})"
            )

"""The embedded engine's attention and cache against transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlreason.sampler.decoding import ATTENTION, GrowingLayer, attend, growing_cache

ROWS, HEADS, KEY_HEADS, KEYS, SIZE = 5, 6, 2, 11, 8
MOST = 1e-6


class Module(nn.Module):
    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = True


def states(heads: int, steps: int, seed: int) -> Tensor:
    return torch.randn(ROWS, heads, steps, SIZE, generator=torch.Generator().manual_seed(seed))


def mask(steps: int) -> Tensor:
    """Row r does not see its first r keys (left padding)."""
    seen = torch.arange(KEYS) >= torch.arange(ROWS).unsqueeze(1)
    return seen[:, None, None, :].expand(-1, 1, steps, -1)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_token_a_row_is_sdpa(padded: bool, scaling: float | None) -> None:
    query, key, value = states(HEADS, 1, 0), states(KEY_HEADS, KEYS, 1), states(KEY_HEADS, KEYS, 2)
    given = mask(1) if padded else None
    ours, _ = attend(Module(), query, key, value, given, scaling=scaling)
    theirs, _ = sdpa_attention_forward(Module(), query, key, value, given, scaling=scaling)
    assert ours.shape == theirs.shape == (ROWS, 1, HEADS, SIZE)
    assert (ours - theirs).abs().max() <= MOST
    # Canary: heads that take the other key head's keys are far off.
    wrong, _ = attend(Module(), query, key.flip(1), value.flip(1), given, scaling=scaling)
    assert (wrong - theirs).abs().max() > 1e3 * MOST


def test_anything_else_goes_to_sdpa_itself() -> None:
    key, value = states(KEY_HEADS, KEYS, 1), states(KEY_HEADS, KEYS, 2)
    several = states(HEADS, 3, 0)
    ours, _ = attend(Module(), several, key, value, mask(3))
    assert torch.equal(ours, sdpa_attention_forward(Module(), several, key, value, mask(3))[0])
    one, bias = states(HEADS, 1, 0), torch.randn(1, HEADS, 1, KEYS)
    ours, _ = attend(Module(), one, key, value, None, position_bias=bias)
    assert torch.equal(ours, sdpa_attention_forward(Module(), one, key, value, None, position_bias=bias)[0])
    by_head = mask(1).expand(-1, HEADS, -1, -1)
    ours, _ = attend(Module(), one, key, value, by_head)
    assert torch.equal(ours, sdpa_attention_forward(Module(), one, key, value, by_head)[0])


def test_a_growing_layer_holds_what_a_dynamic_one_holds() -> None:
    ours, theirs = GrowingLayer(), DynamicLayer()

    def update(rows: int, steps: int, seed: int) -> None:
        new = [
            torch.randn(rows, KEY_HEADS, steps, SIZE, generator=torch.Generator().manual_seed(seed + i)) for i in (0, 1)
        ]
        for ours_now, theirs_now in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(ours_now, theirs_now)
        assert ours.get_seq_length() == theirs.get_seq_length()

    update(2, 9, 0)
    update(2, 1, 10)
    for layer in (ours, theirs):
        layer.batch_repeat_interleave(3)
    for step in range(80):  # past its room, twice
        update(6, 1, 20 + 2 * step)
    kept = ours.keys.data_ptr()
    update(6, 1, 300)
    assert ours.keys.data_ptr() == kept, "a token moved the tokens before it"
    for layer in (ours, theirs):
        layer.batch_select_indices(torch.tensor([4, 0, 5]))
    update(3, 1, 400)
    for layer in (ours, theirs):
        layer.crop(-5)
    update(3, 2, 500)
    for layer in (ours, theirs):
        layer.reset()
    update(1, 4, 600)


def test_layers_of_other_kinds_stay() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 8, "intermediate_size": 32, "vocab_size": 40}  # fmt: skip
    config = AutoConfig.for_model("gemma3_text", **shape, sliding_window=8, sliding_window_pattern=2)
    kinds = [type(layer) for layer in DynamicCache(config=config).layers]
    ours = [type(layer) for layer in growing_cache(config).layers]
    assert DynamicLayer in kinds
    assert len(set(kinds)) == 2
    assert ours == [GrowingLayer if kind is DynamicLayer else kind for kind in kinds]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    logits = {}
    for attention, cache in (("sdpa", DynamicCache(config=config)), (ATTENTION, growing_cache(config))):
        model.set_attn_implementation(attention)
        ids = torch.arange(3, 33).view(2, 15)
        with torch.no_grad():
            steps = [model(input_ids=part, past_key_values=cache).logits for part in ids.split([4, *[1] * 11], dim=1)]
        logits[attention] = torch.cat(steps, dim=1)
    assert (logits["sdpa"] - logits[ATTENTION]).abs().max() <= 1e-5

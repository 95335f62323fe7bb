"""Experts are recorded and forced alike in the routers of several model families; what can't be is found out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlreason.config import PolicyConfig
from rlreason.policy.policies import fresh_policy
from rlreason.policy.routing import Routers, find_routers

CPU = torch.device("cpu")
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "num_experts_per_tok": 2,
    "initializer_range": 0.3,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 6, "moe_intermediate_size": 16, "head_dim": 16, "norm_topk_prob": True},
    "olmoe": {"num_experts": 6, "norm_topk_prob": False},
    "mixtral": {"num_local_experts": 6},
    # Two groups of three experts, of which one is taken: a top-k over groups besides that over experts.
    "deepseek_v3": {
        "n_routed_experts": 6,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
}


def model_of(kind: str, **changes: Any) -> PreTrainedModel:
    config = PolicyConfig(model_type=kind, model={**BASE, **FAMILIES.get(kind, {}), **changes})
    return fresh_policy(config, "0123456789", (), 0, CPU).model.eval()


def routers_of(model: PreTrainedModel) -> Routers:
    routers = find_routers(model)
    assert routers is not None
    return routers


@torch.no_grad()
def states(model: PreTrainedModel) -> Tensor:
    hidden: Tensor = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    return hidden


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_was_recorded_is_replayed_bit_for_bit(kind: str) -> None:
    model = model_of(kind)
    routers = routers_of(model)
    assert (routers.experts, routers.chosen) == (6, 2)
    with routers.record() as own:
        free = states(model)
    assert [tuple(one.shape) for one in own] == [(8, 2)] * (1 if kind == "deepseek_v3" else 2)
    with routers.replay(tuple(own)):
        assert torch.equal(states(model), free)
    # Canary: another choice is another result, in record and states alike.
    other = tuple((one + 1) % 6 for one in own)
    with routers.replay(other), routers.record() as seen:
        assert not torch.allclose(states(model), free, atol=1e-3)
    assert all(map(torch.equal, seen, other))
    assert torch.equal(states(model), free), "nothing stays behind"
    assert not any("forward" in vars(module) for module in routers.modules)


def test_a_row_without_a_choice_is_the_routers_own() -> None:
    model = model_of("qwen3_moe")
    routers = routers_of(model)
    with routers.record() as own:
        free = states(model)
    blank = tuple(torch.full_like(one, -1) for one in own)
    with routers.replay(blank):
        assert torch.equal(states(model), free)
    mixed = tuple(one.clone() for one in own)
    mixed[0][5] = (mixed[0][5] + 1) % 6
    mixed[1][:] = -1
    with routers.replay(mixed), routers.record() as seen:
        changed = states(model)
    assert torch.equal(seen[0], mixed[0])
    # The past does not change, but for the order in which products of one expert are added.
    torch.testing.assert_close(changed[:, :5], free[:, :5], atol=1e-5, rtol=0)
    assert not torch.allclose(changed[:, 5], free[:, 5], atol=1e-3)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_weights_of_forced_experts_are_those_of_the_routers_own_logits(*, normalised: bool) -> None:
    """Qwen's formula, by hand: softmax over all experts, taken at the forced ones, and divided by their sum."""
    model = model_of("qwen3_moe", norm_topk_prob=normalised)
    routers = routers_of(model)
    router = routers.modules[0]
    hidden_NH = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    forced_NK = torch.tensor([[5, 0], [0, 5], [1, 2], [3, 4], [2, 0], [4, 1], [5, 3], [1, 0]])
    with torch.no_grad(), routers.replay((forced_NK, forced_NK)):
        logits_NE, weights_NK, chosen_NK = router(hidden_NH)
    assert isinstance(router.weight, nn.Parameter)
    by_hand_NE = hidden_NH.double() @ router.weight.detach().double().t()
    probabilities_NE = by_hand_NE.exp() / by_hand_NE.exp().sum(dim=1, keepdim=True)
    wanted_NK = torch.stack([row[chosen] for row, chosen in zip(probabilities_NE, forced_NK, strict=True)])
    if normalised:
        wanted_NK = wanted_NK / wanted_NK.sum(dim=1, keepdim=True)
    assert torch.equal(chosen_NK, forced_NK)
    torch.testing.assert_close(logits_NE.double(), by_hand_NE, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights_NK.double(), wanted_NK, atol=1e-6, rtol=0)


def test_a_dense_model_has_no_routers() -> None:
    assert find_routers(model_of("qwen3", head_dim=16)) is None


def test_routers_that_do_not_choose_by_top_k_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that sorts reports a choice, but would not take another: better none than a wrong one."""
    model = model_of("qwen3_moe")
    kind = type(routers_of(model).modules[0])

    def by_sorting(self: Any, hidden_NH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_NE = hidden_NH @ self.weight.t()
        values, order = logits_NE.softmax(dim=-1).sort(dim=-1, descending=True)
        return logits_NE, values[:, :2], order[:, :2]

    monkeypatch.setattr(kind, "forward", by_sorting)
    assert find_routers(model) is None


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = model_of("qwen3_moe")
    routers = routers_of(model)
    short = tuple(torch.zeros((3, 2), dtype=torch.long) for _ in range(2))
    with pytest.raises(ValueError, match=r"routing of \(3, 2\) for a choice of \(8, 2\)"), routers.replay(short):
        states(model)
    assert not any("forward" in vars(module) for module in routers.modules)
    assert bool(states(model).isfinite().all())

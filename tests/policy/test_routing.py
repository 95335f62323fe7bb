"""Experts are recorded and forced alike in the routers of several model families; what can't be is found out."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from moe_families import FAMILIES, IDS, forced, model_of, routers_of, states
from torch import Tensor, nn

from rlreason.errors import UsageError
from rlreason.routing import FREE, RoutedPass, Routers, check_routing, find_routers, options_of

SEED = torch.Generator().manual_seed(7)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_was_noted_is_replayed_bit_for_bit(kind: str) -> None:
    model = model_of(kind)
    chosen = 1 if kind == "llama4_text" else 2
    layers = 1 if kind == "deepseek_v3" else 2
    assert routers_of(model) == Routers(layers=layers, experts=6, chosen=chosen)
    free = RoutedPass()
    own = states(model, free)
    assert torch.equal(own, states(model)), "noting changes nothing"
    assert free.used_NLK().shape == (8, layers, chosen)
    assert torch.equal(states(model, forced(free.used_NLK())), own)
    # Canary: another choice is another result; what the router would have chosen itself is noted beside it.
    other_NLK = (free.used_NLK() + 1) % 6
    another = forced(other_NLK)
    assert not torch.allclose(states(model, another), own, atol=1e-3)
    assert torch.equal(another.used_NLK(), other_NLK)
    assert torch.equal(another.own[0], free.own[0]), "nothing comes before the first layer with experts"
    assert torch.equal(states(model), own), "nothing stays behind"


def test_a_row_without_a_choice_is_the_routers_own() -> None:
    model = model_of("qwen3_moe")
    routers_of(model)
    free = RoutedPass()
    own = states(model, free)
    blank_NLK = torch.full_like(free.used_NLK(), FREE)
    assert torch.equal(states(model, forced(blank_NLK)), own)
    mixed_NLK = free.used_NLK().clone()
    mixed_NLK[5, 0] = (mixed_NLK[5, 0] + 1) % 6
    mixed_NLK[:, 1] = FREE
    mixed = forced(mixed_NLK)
    changed = states(model, mixed)
    assert torch.equal(mixed.used_NLK()[:, 0], mixed_NLK[:, 0])
    # The past does not change, but for the order in which products of one expert are added.
    torch.testing.assert_close(changed[:, :5], own[:, :5], atol=1e-5, rtol=0)
    assert not torch.allclose(changed[:, 5], own[:, 5], atol=1e-3)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_the_gates_learn_under_replay_as_finite_differences_say(kind: str, *, recompute: bool) -> None:
    """With the experts given, the loss is smooth in the router's weights: its gradient there is the slope, also where
    activation checkpointing computes the layers again, long after the forward pass is over."""
    model = model_of(kind).double()
    model.set_experts_implementation("eager")  # the kernel of several experts at once knows no float64
    drawn = torch.Generator().manual_seed(7)  # its own: whatever other tests have drawn
    draws = [torch.randperm(6, generator=drawn)[:2] for _ in range(8 * routers_of(model).layers)]
    experts_NLK = torch.stack(draws).view(8, -1, 2)
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    name, weight = next((name, one) for name, one in model.named_parameters() if name.endswith("mlp.gate.weight"))

    def loss() -> Tensor:
        routed = forced(experts_NLK)
        return model(input_ids=IDS, use_cache=False, **options_of(routed)).logits.double().logsumexp(dim=-1).sum()

    (gradient,) = torch.autograd.grad(loss(), [weight])
    assert float(gradient.norm()) > 1e-3, name
    # Half along the gradient: routers compute in float32, whose rounding would be most of a slope that is near 0.
    way = torch.randn(weight.shape, generator=drawn, dtype=torch.float64)
    way += gradient * (way.norm() / gradient.norm())
    with torch.no_grad():
        around, step = [], 3e-4
        for side in (step, -step):
            weight += side * way
            around.append(float(loss()))
            weight -= side * way
    slope = (around[0] - around[1]) / (2 * step)
    analytic = float((gradient * way).sum())
    assert analytic == pytest.approx(slope, rel=1e-3)
    # Canary: with other experts the slope is another.
    experts_NLK = (experts_NLK + 1) % 6
    (another,) = torch.autograd.grad(loss(), [weight])
    assert float((another * way).sum()) != pytest.approx(slope, rel=1e-1)


def test_recomputed_layers_choose_the_same_experts_after_the_weights_moved() -> None:
    """Backward long after forward, with routers that would choose otherwise by then: the pass still says where to."""
    model = model_of("qwen3_moe")
    routers_of(model)
    free = RoutedPass()
    states(model, free)
    experts_NLK = (free.used_NLK() + 1) % 6
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    routed = forced(experts_NLK)
    loss = model(input_ids=IDS, use_cache=False, **options_of(routed)).logits.sum()
    routed.own.clear()
    routed.used.clear()
    loss.backward()
    assert torch.equal(routed.used_NLK(), experts_NLK), "every layer was computed again, and forced"
    assert not torch.equal(routed.own[0], routed.used[0])


def test_threads_do_not_meet() -> None:
    """Micro-batches of one model, side by side, each with experts of its own."""
    model = model_of("qwen3_moe")
    routers_of(model)
    free = RoutedPass()
    states(model, free)
    tables = [(free.used_NLK() + shift) % 6 for shift in range(6)]
    alone = [states(model, forced(table)) for table in tables]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda table: states(model, forced(table)), tables * 4))
    assert all(torch.equal(one, alone[at % 6]) for at, one in enumerate(together))


def test_a_copy_of_the_model_has_routers_of_its_own() -> None:
    model = model_of("qwen3_moe")
    routers_of(model)
    twin = copy.deepcopy(model)
    routers_of(twin)
    with torch.no_grad():
        twin.get_parameter("model.layers.0.mlp.gate.weight").neg_()
    mine, its = RoutedPass(), RoutedPass()
    states(model, mine)
    states(twin, its)
    assert not torch.equal(mine.used[0], its.used[0])
    assert len(its.used) == 2


@pytest.mark.parametrize("normalised", [True, False])
def test_the_weights_of_forced_experts_are_those_of_the_routers_own_logits(*, normalised: bool) -> None:
    """Qwen's formula, by hand: softmax over all experts, taken at the forced ones, and divided by their sum."""
    model = model_of("qwen3_moe", norm_topk_prob=normalised)
    routers_of(model)
    layer: Any = model.get_submodule("model.layers.0")
    router = layer.mlp.gate
    hidden_NH = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    forced_NK = torch.tensor([[5, 0], [0, 5], [1, 2], [3, 4], [2, 0], [4, 1], [5, 3], [1, 0]])
    seen: list[Any] = []
    router.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    layer.post_attention_layernorm.register_forward_hook(lambda *_: hidden_NH.unsqueeze(0))
    states(model, forced(torch.stack([forced_NK, forced_NK], dim=1)))
    logits_NE, weights_NK, chosen_NK = seen[0]
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
    kind: Any = type(model.get_submodule("model.layers.0.mlp.gate"))

    def by_sorting(self: Any, hidden_NH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_NE = hidden_NH @ self.weight.t()
        values, order = logits_NE.softmax(dim=-1).sort(dim=-1, descending=True)
        return logits_NE, values[:, :2], order[:, :2]

    monkeypatch.setattr(kind, "forward", by_sorting)
    assert find_routers(model) is None


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = model_of("qwen3_moe")
    routers_of(model)
    short = torch.zeros((3, 2, 2), dtype=torch.long)
    with pytest.raises(ValueError, match=r"routing of \(3, 2\) for a choice of \(8, 2\)"):
        states(model, forced(short))
    after = RoutedPass()
    assert bool(states(model, after).isfinite().all())
    assert after.used_NLK().shape == (8, 2, 2)


def test_a_wish_that_can_not_be_met_is_refused() -> None:
    with pytest.raises(UsageError, match="replay: Qwen3ForCausalLM has no experts"):
        check_routing(model_of("qwen3", head_dim=16), "replay")
    many = model_of("qwen3_moe", num_experts=300)
    with pytest.raises(UsageError, match="kept in 8 bits, and Qwen3MoeForCausalLM has 300 experts"):
        check_routing(many, "replay")

"""Routers in float32 in models that compute in bfloat16: of every family, what they compute, and what is left alone."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from moe_families import FAMILIES, forced, model_of, routers_of, states
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlreason.policy.model import cast_parameters
from rlreason.routing import RoutedPass, routers_in
from rlreason.wide_routers import is_wide, narrow_routers, why_not_wide, wide_names, widen_routers

BFLOAT16 = torch.bfloat16
#: Place of the logits among a router's outputs.
LOGITS = {"llama4_text": 1}


def low(model: PreTrainedModel) -> PreTrainedModel:
    cast_parameters(model, BFLOAT16)
    return model


def made(kind: str) -> PreTrainedModel:
    """With numbers in routers that begin with zeros (AFMoE, ERNIE)."""
    model, generator = model_of(kind), torch.Generator().manual_seed(3)
    for _, router in routers_in(model):
        for parameter in router.parameters():
            if not parameter.any():
                parameter.data.normal_(0.0, 0.3, generator=generator)
    return model


def routed(model: PreTrainedModel) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """(what it is handed, what it gives) of each router in a pass."""
    seen: list[Any] = []
    hooks = []
    for _, router in routers_in(model):
        before = router.register_forward_pre_hook(lambda _, inputs: seen.append([inputs]), prepend=True)
        hooks += [before, router.register_forward_hook(lambda _, __, outputs: seen[-1].append(outputs))]
    states(model)
    for hook in hooks:
        hook.remove()
    return [tuple(one) for one in seen]


def numbers(outputs: tuple[Any, ...]) -> list[Tensor]:
    return [one for one in outputs if isinstance(one, Tensor)]


@pytest.mark.parametrize("kind", [*FAMILIES, "minimax_m2"])
def test_a_wide_router_is_the_float32_one_and_experts_get_what_they_got(kind: str) -> None:
    exact, plain, wide = made(kind), low(made(kind)), made(kind)
    widen_routers(wide)
    low(wide)
    names = wide_names(wide)
    assert names == {name for name, _ in wide.named_parameters() if re.search(r"\.(gate|router)\.", name)}
    own = dict(exact.named_parameters())
    for name, parameter in wide.named_parameters():
        assert parameter.dtype == (torch.float32 if name in names else BFLOAT16)
        assert name not in names or torch.equal(parameter, own[name])
    place = LOGITS.get(kind, 0)
    pairs = zip(routed(wide), routed(plain), routers_in(exact), routers_in(plain), strict=True)
    for (inputs, found), (_, native), (_, router), (_, rounded) in pairs:
        assert inputs[0].dtype == BFLOAT16
        assert found[place].dtype == torch.float32
        assert [one.dtype for at, one in enumerate(numbers(found)) if at != place] == [
            one.dtype for at, one in enumerate(numbers(native)) if at != place
        ]
        with torch.no_grad():
            expected = numbers(router(inputs[0].float(), *inputs[1:]))
            apart = numbers(rounded(*inputs))[place].float() - expected[place]
        for one, wanted in zip(numbers(found), expected, strict=True):
            assert torch.equal(one, wanted.to(one.dtype))
        assert apart.abs().max() > 1e-4  # canary: of the rounded router
    # What is noted is replayed, as of any router.
    routers_of(wide)
    free = RoutedPass()
    before = states(wide, free)
    assert torch.equal(states(wide, forced(free.used_NLK())), before)


def test_copies_are_wide_and_can_be_narrowed() -> None:
    model = model_of("qwen3_moe")
    exact = {name: one.detach().clone() for name, one in model.named_parameters()}
    widen_routers(model)
    widen_routers(model)  # once is enough
    low(model)
    twin = copy.deepcopy(model)
    assert wide_names(twin) == wide_names(model)
    assert len(wide_names(twin)) == 2
    assert torch.equal(states(twin), states(model))
    narrow_routers(twin)
    low(twin)
    assert not wide_names(twin)
    assert {one.dtype for one in twin.parameters()} == {BFLOAT16}
    plain = low(model_of("qwen3_moe"))
    assert torch.equal(states(twin), states(plain))
    assert not torch.equal(states(model), states(plain))  # canary
    for name in wide_names(model):
        assert torch.equal(dict(model.named_parameters())[name], exact[name])


def test_a_float32_model_is_left_as_it_is() -> None:
    for kind in ("qwen3_moe", "llama4_text", "mixtral"):
        model = model_of(kind)
        before = states(model)
        widen_routers(model)
        assert torch.equal(states(model), before)


def test_a_router_that_raises_leaves_nothing_behind() -> None:
    model = model_of("qwen3_moe")
    widen_routers(model)
    low(model)
    _, router = routers_in(model)[0]
    with pytest.raises(RuntimeError):
        router(torch.zeros(3, 5))
    before = states(model)
    assert before.dtype == BFLOAT16
    assert torch.equal(states(model), before)


def test_what_has_no_known_router_is_said() -> None:
    assert why_not_wide(model_of("qwen3_moe")) == ""
    assert why_not_wide(model_of("deepseek_v3")) == ""  # its first layer is dense
    model = model_of("qwen3_moe")

    class Other(nn.Module):
        pass

    model.model.layers[0].mlp.gate = Other()
    assert why_not_wide(model) == "of its 2 layers with experts 1 have a router that is known here"
    assert not is_wide(model)

"""Routing replay on two ranks is that of one process, in float32 and bfloat16, recomputed layers included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks_tools import CPU, options, relative, rollouts, source, start
from torch import Tensor

from rlreason.cluster.actors import ActorGroup
from rlreason.objective.spec import ObjectiveSpec
from rlreason.trainer.forward import PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource
from rlreason.trainer.rank import RankSpec
from rlreason.trainer.ray_trainer import RayTrainer
from rlreason.types import TrainingSample

LOSS = PolicyGradientLoss(spec=ObjectiveSpec(), replay=True)


@pytest.fixture(scope="module")
def ranks() -> Iterator[ActorGroup]:
    group = start(2)
    yield group
    group.close()


def samples_of() -> list[TrainingSample]:
    """Rollouts with two of five experts for each token and layer, by chance."""
    random = np.random.default_rng(2)
    return [
        replace(one, routed_experts=np.stack([[random.permutation(5)[:2] for _ in range(2)] for _ in one.token_ids]))
        for one in rollouts()[0]
    ]


def local(dtype: torch.dtype = torch.float32) -> LocalTrainer:
    return LocalTrainer(source("qwen3_moe").load(torch.float32, CPU), options(compute_dtype=dtype, routing="replay"))


def sharded(group: ActorGroup, dtype: torch.dtype = torch.float32, *, recompute: bool = False) -> RayTrainer:
    settings = options(compute_dtype=dtype, activation_checkpointing=recompute, routing="replay")
    return RayTrainer(RankSpec(model=ModelSource(source=source("qwen3_moe"), dtype=dtype), options=settings), group)


def gradients_of(trainer: LocalTrainer) -> dict[str, Tensor]:
    names = zip(trainer._masters.names, trainer._masters.parameters, strict=True)
    return {name: one.grad.clone() for name, one in names if one.grad is not None}


def of_experts(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Routers and experts: what replay changes first."""
    return {name: one for name, one in gradients.items() if ".mlp." in name}


@pytest.mark.parametrize(("dtype", "recompute"), [("float32", False), ("float32", True), ("bfloat16", True)])
def test_gradients_and_counts_are_those_of_one_process(dtype: str, *, recompute: bool, ranks: ActorGroup) -> None:
    samples, one = samples_of(), local(getattr(torch, dtype))
    many = sharded(ranks, getattr(torch, dtype), recompute=recompute)
    alone, shared = one.forward_backward(samples, LOSS), many.forward_backward(samples, LOSS)
    assert alone.experts is not None
    assert shared.experts is not None
    # Every loss token is counted once, whoever computes it; fillers are not.
    assert torch.equal(shared.experts.load_LE, alone.experts.load_LE)
    tokens = sum(int(sample.loss_mask.sum()) for sample in samples)
    assert shared.experts.compared_L.tolist() == [tokens] * 2
    allowed = 1e-6 if dtype == "float32" else 3e-2
    assert relative(of_experts(ranks.ask("gradients")[0]), of_experts(gradients_of(one))) <= allowed
    many.close()
    free = PolicyGradientLoss(spec=ObjectiveSpec())
    another = local(getattr(torch, dtype))
    another.forward_backward(samples, free)
    apart = relative(of_experts(gradients_of(another)), of_experts(gradients_of(one)))
    assert apart > 10 * allowed, "canary: not replayed"


def test_the_old_pass_is_that_of_one_process(ranks: ActorGroup) -> None:
    samples, one, many = samples_of(), local(), sharded(ranks)
    for alone, shared in zip(one.routed_logprobs(samples), many.routed_logprobs(samples), strict=True):
        assert np.array_equal(alone.experts, shared.experts)
        assert np.allclose(alone.logprobs, shared.logprobs, atol=1e-5)
    replayed = many.logprobs(samples, replay=True)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(one.logprobs(samples, replay=True), replayed, strict=True))
    assert not all(np.allclose(a, b, atol=1e-3) for a, b in zip(many.logprobs(samples), replayed, strict=True))
    many.close()

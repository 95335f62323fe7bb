"""Tensor and expert parallelism: the gradients, steps, states and folders of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("ray")

from ranks_tools import CPU, FAMILIES, demonstrations, options, relative, rollouts, source, start
from transformers import AutoModelForCausalLM

from rlreason.cluster.actors import ActorGroup
from rlreason.config import load
from rlreason.errors import UsageError
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource
from rlreason.trainer.parallel import _refuse_packed, check_division
from rlreason.trainer.rank import RankSpec
from rlreason.trainer.ray_trainer import RayTrainer


@pytest.fixture(autouse=True)
def even_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks have as many experts each."""
    monkeypatch.setitem(FAMILIES, "llama", {})
    monkeypatch.setitem(FAMILIES, "qwen3_moe", {**FAMILIES["qwen3_moe"], "num_experts": 8})
    monkeypatch.setitem(FAMILIES, "mixtral", {**FAMILIES["mixtral"], "num_local_experts": 8})


@pytest.fixture(scope="module")
def two() -> Iterator[ActorGroup]:
    group = start(2)
    yield group
    group.close()


def sharded(group: ActorGroup, family: str, tensor: int, experts: int, **changed: Any) -> RayTrainer:
    settings = options(tensor_parallel=tensor, expert_parallel=experts, micro_batch_tokens=40, **changed)
    model = ModelSource(source=source(family), dtype=settings.compute_dtype)
    return RayTrainer(RankSpec(model=model, options=settings, reference=True), group)


def check(group: ActorGroup, family: str, tensor: int, experts: int, folder: Path, **changed: Any) -> None:
    """Several micro-batches a rank; gradients and metrics of two steps, then everything that is said, saved and gone on
    with."""
    samples, loss = rollouts()
    one = LocalTrainer(
        source(family).load(torch.float32, CPU), options(micro_batch_tokens=40, **changed), reference=True
    )
    many = sharded(group, family, tensor, experts, **changed)
    for step in range(3):
        sums = [trainer.forward_backward(samples, loss).read(1.0) for trainer in (one, many)]
        assert sums[1] == pytest.approx(sums[0], rel=1e-5, abs=1e-5)
        if step == 0:
            own = {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}
            assert relative(group.ask("gradients")[0], own) <= 1e-6
        stats = [trainer.step(step) for trainer in (one, many)]
        assert stats[1].grad_norm == pytest.approx(stats[0].grad_norm, rel=1e-4)
    for of in ("policy", "reference"):
        pairs = zip(one.logprobs(samples, of=of), many.logprobs(samples, of=of), strict=True)
        assert max(float(np.abs(a - b).max()) for a, b in pairs) < 1e-5
    weights = {name: tensor.clone() for name, tensor in many.weights()}
    assert max(float((weights[name] - tensor).abs().max()) for name, tensor in one.weights()) < 2e-5
    for name in ("state", "many", "one"):
        (folder / name).mkdir()
    many.save_state(folder / "state")
    many.save(folder / "many")
    one.load_state(folder / "state")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.weights())
    one.save(folder / "one")
    for file in ("config.json", "generation_config.json"):
        assert (folder / "many" / file).read_text() == (folder / "one" / file).read_text()
    saved = [AutoModelForCausalLM.from_pretrained(folder / name).state_dict() for name in ("many", "one")]
    assert all(torch.equal(tensor, saved[1][name]) for name, tensor in saved[0].items())
    many.forward_backward(samples, loss)
    many.step(3)
    after = {name: tensor.clone() for name, tensor in many.weights()}
    again = sharded(group, family, tensor, experts, **changed)
    again.load_state(folder / "state")
    again.forward_backward(samples, loss)
    again.step(3)
    assert all(torch.equal(tensor, after[name]) for name, tensor in again.weights())


#: (family, tensor_parallel, expert_parallel). The last has one copy of each expert over ranks with other samples.
TWO = [
    ("llama", 2, 1), ("qwen3", 2, 1), ("qwen3_tied", 2, 1), ("qwen3_moe", 2, 2), ("mixtral", 2, 2),
    ("deepseek_v3", 2, 2), ("qwen3_moe", 1, 2), ("deepseek_v3", 1, 2),
]  # fmt: skip


@pytest.mark.parametrize(("family", "tensor", "experts"), TWO)
def test_two_ranks_are_one_process(family: str, tensor: int, experts: int, tmp_path: Path, two: ActorGroup) -> None:
    check(two, family, tensor, experts, tmp_path)


@pytest.mark.parametrize(("tensor", "experts"), [(2, 2), (1, 2)])
def test_a_dense_model_beside_experts_has_none_to_spread(
    tensor: int, experts: int, tmp_path: Path, two: ActorGroup
) -> None:
    """A recipe's ranks are cut for its policy, and train the dense student too."""
    check(two, "qwen3", tensor, experts, tmp_path)


@pytest.mark.parametrize(("tensor", "experts"), [(2, 2), (1, 2)])
def test_checkpointing_changes_nothing(tensor: int, experts: int, two: ActorGroup) -> None:
    samples, loss = rollouts()
    found = []
    for checkpointing in (False, True):
        many = sharded(two, "qwen3_moe", tensor, experts, activation_checkpointing=checkpointing)
        many.forward_backward(samples, loss)
        found.append(two.ask("gradients")[0])
        many.close()
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())


@pytest.mark.parametrize(("tensor", "experts"), [(2, 2), (1, 2)])
def test_bfloat16_is_within_its_own_noise(tensor: int, experts: int, two: ActorGroup) -> None:
    samples, loss = demonstrations()
    exact = LocalTrainer(source("qwen3_moe").load(torch.float32, CPU), options())
    rounded = LocalTrainer(source("qwen3_moe").load(torch.float32, CPU), options(compute_dtype=torch.bfloat16))
    many = sharded(two, "qwen3_moe", tensor, experts, compute_dtype=torch.bfloat16)
    for trainer in (exact, rounded, many):
        trainer.forward_backward(samples, loss)
    truth = {name: p.grad for name, p in exact.model.named_parameters() if p.grad is not None}
    own = {n: p.grad for n, p in zip(rounded._masters.names, rounded._masters.parameters, strict=True)}
    noise = relative({name: gradient for name, gradient in own.items() if gradient is not None}, truth)
    found = two.ask("gradients")[0]
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert 1e-4 < relative(found, truth) <= 2 * noise


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tensor", "experts"),
    [("qwen3_tied", 2, 1), ("llama", 2, 1), ("qwen3_moe", 2, 2), ("mixtral", 2, 4), ("deepseek_v3", 1, 2)],
)
def test_four_ranks_are_one_process(family: str, tensor: int, experts: int, tmp_path: Path) -> None:
    """fsdp x tp, fsdp x tp x ep, two copies of each expert."""
    group = start(4)
    try:
        check(group, family, tensor, experts, tmp_path)
    finally:
        group.close()


def test_what_does_not_divide_is_refused(tmp_path: Path) -> None:
    moe, dense = source("qwen3_moe").inspect().model, source("qwen3").inspect().model
    with pytest.raises(UsageError, match=r"tensor_parallel = 4 must divide .*num_key_value_heads = 2"):
        check_division(dense, 4, 1)
    with pytest.raises(UsageError, match=r"expert_parallel: Qwen3ForCausalLM has no experts"):
        check_division(dense, 1, 2)
    with pytest.raises(UsageError, match=r"expert_parallel = 3 must divide Qwen3MoeForCausalLM's 8 experts"):
        check_division(moe, 1, 3)
    check_division(source("deepseek_v3").inspect().model, 4, 4)
    with pytest.raises(UsageError, match=r"two matrices in one \(model\.layers\.\*\.mlp\.experts\.gate_up_proj\)"):
        _refuse_packed(moe, moe.tp_plan)
    moe.tp_plan = {}
    with pytest.raises(UsageError, match="transformers does not say how Qwen3MoeForCausalLM is cut"):
        check_division(moe, 2, 1)
    for keys, message in (
        ("ranks = 3\ntensor_parallel = 2", "must divide trainer.ranks = 3"),
        ("tensor_parallel = 2", "must divide trainer.ranks = 0"),
        ("ranks = 6\ntensor_parallel = 2\nexpert_parallel = 3", "must be a multiple of trainer.tensor_parallel = 2"),
        ("ranks = 2\ntensor_parallel = 2\nlora = { rank = 4 }", "is for training all weights"),
    ):
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(f"{RECIPE}\n[trainer]\n{keys}\n")
        with pytest.raises(UsageError, match=message):
            load(recipe)


RECIPE = """
name = "cut"
[policy]
model_type = "qwen3"
[data]
train = "arithmetic"
[[stage]]
kind = "sft"
name = "shown"
steps = 1
optimizer = { lr = 1e-3 }
"""

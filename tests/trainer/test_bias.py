"""Balancing by steps of the routers' correction bias: by hand, what it leaves alone, and where the bias goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.delivery.packing import Packer, Receiver
from rlreason.errors import UsageError
from rlreason.objective.batch import ExpertCounts
from rlreason.objective.distillation.spec import FORWARD
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import rollout_sample, supervised_sample
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.routing import correction_biases
from rlreason.sampler.jobs import EngineSpec, Job
from rlreason.sampler.transformers_engine import TransformersEngine
from rlreason.trainer.bias import RouterBias
from rlreason.trainer.distilling import DistillationLoss
from rlreason.trainer.fixed import FixedAdvantageLoss
from rlreason.trainer.forward import CrossEntropyLoss, PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.trainer.protocol import Loss
from rlreason.types import SamplingParams, TrainingSample

CPU = torch.device("cpu")
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 0, "initializer_range": 0.2,
}  # fmt: skip
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {"deepseek_v3": {**SHAPE, **LATENT}, "glm4_moe": {**SHAPE, "head_dim": 8}}
both = pytest.mark.parametrize("family", FAMILIES)
#: Of four tokens and two layers: loads [4, 2, 1, 1] and [2, 2, 0, 4] of a mean of 2.
EXPERTS = [[[0, 1], [3, 0]], [[0, 2], [3, 0]], [[0, 3], [3, 1]], [[0, 1], [3, 1]]]
DIRECTIONS = torch.tensor([[-1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, -1.0]])
DEMONSTRATIONS = [
    supervised_sample([7, 8, 9, 10, 11, 12], [0, 0, 1, 1, 1, 1]),
    supervised_sample([9, 7, 10], [0, 1, 1]),
]


def policy(family: str, dtype: torch.dtype = torch.float32) -> Policy:
    return fresh_policy(PolicyConfig(model_type=family, model=FAMILIES[family]), "0123456789", (), 0, CPU, dtype)


def trainer(family: str, update: float = 0.001, lr: float = 1e-3, **changed: Any) -> LocalTrainer:
    teachers = changed.pop("teachers", ())
    options = TrainerOptions(optimizer=OptimizerConfig(lr=lr), total_steps=50, router_bias_update=update, **changed)
    return LocalTrainer(policy(family), options, teachers=teachers)


def biases(one: LocalTrainer) -> Tensor:
    return torch.stack(correction_biases(one.model)).clone()


def forced(first: int = 0, last: int = 4) -> TrainingSample:
    """Four loss tokens that are sent where ``EXPERTS`` says; of them those from ``first`` to ``last`` count."""
    routed = np.full((6, 2, 2), 255, dtype=np.uint8)
    routed[2:] = EXPERTS
    mask = np.zeros(6, dtype=bool)
    mask[2 + first : 2 + last] = True
    return TrainingSample(
        token_ids=np.array([7, 8, 9, 10, 11, 12]),
        loss_mask=mask,
        sampler_logprobs=np.full(6, -2.0, dtype=np.float32) * mask,
        advantages=mask.astype(np.float32),
        weights=mask.astype(np.float32) / 4,
        routed_experts=routed,
    )


REPLAYED = PolicyGradientLoss(spec=ObjectiveSpec(), replay=True)


@both
@pytest.mark.parametrize("again", [False, True])
def test_a_step_by_hand(family: str, again: bool) -> None:
    """Of one sample, and of its halves in micro-batches and calls of their own; layers that are computed again in the
    backward pass count once."""
    whole = trainer(family, activation_checkpointing=again)
    found = whole.forward_backward([forced()], REPLAYED)
    assert found.experts is not None
    assert found.experts.load_LE.tolist() == [[4, 2, 1, 1], [2, 2, 0, 4]]
    assert not biases(whole).any()
    whole.step(0)
    assert torch.equal(biases(whole), 0.001 * DIRECTIONS)
    for _ in range(2):  # two of the same are the same direction: the step has one size
        whole.forward_backward([forced()], REPLAYED)
    whole.step(1)
    assert torch.allclose(biases(whole), 0.002 * DIRECTIONS, atol=1e-9)
    parts = trainer(family, activation_checkpointing=again, micro_batch_tokens=1)
    parts.forward_backward([forced(0, 1), forced(1, 2)], REPLAYED)
    parts.forward_backward([forced(2, 4)], REPLAYED)
    parts.step(0)
    assert torch.equal(biases(parts), 0.001 * DIRECTIONS)


@both
def test_an_update_of_zero_leaves_the_bias(family: str) -> None:
    one = trainer(family, 0.0)
    one.forward_backward([forced()], REPLAYED)
    one.step(0)
    assert not biases(one).any()


LOSSES: dict[str, Loss] = {
    "sft": CrossEntropyLoss(denominator=6.0),
    "distill": DistillationLoss(spec=FORWARD, weight=0.5, denominator=6.0),
    "opd": DistillationLoss(spec=FORWARD),
    "opd_fixed": FixedAdvantageLoss(advantage="fixed", value=-1.0, lowest=0.5, denominator=3.0),
    "grpo": PolicyGradientLoss(spec=ObjectiveSpec()),
}


def loads_of(one: LocalTrainer, samples: list[TrainingSample]) -> Tensor:
    """What the routers themselves say of the positions that predict loss tokens, one plain pass a sample."""
    found = torch.zeros((2, 4), dtype=torch.int64)
    gates = [module for name, module in one.model.named_modules() if name.endswith("mlp.gate")]
    said: list[Tensor] = []
    hooks = [gate.register_forward_hook(lambda _m, _i, output: said.append(output[-1])) for gate in gates]
    for sample in samples:
        said.clear()
        with torch.no_grad():
            one.model(torch.tensor(sample.token_ids[:-1])[None].long())
        for layer, experts_TK in enumerate(said):
            found[layer] += torch.bincount(experts_TK[torch.tensor(sample.loss_mask[1:] > 0)].flatten(), minlength=4)
    for hook in hooks:
        hook.remove()
    return found


@both
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_counts_its_tokens(family: str, loss: str) -> None:
    one = trainer(family, teachers=[policy(family)])
    expected = loads_of(one, DEMONSTRATIONS)
    assert expected.sum(dim=1).tolist() == [12, 12]  # 6 loss tokens to 2 experts each
    one.forward_backward(DEMONSTRATIONS, LOSSES[loss])
    one.step(0)
    assert torch.equal(biases(one), 0.001 * (3 - expected).sign())
    assert biases(one).any()


@both
def test_the_bias_has_no_gradient_and_no_moment(family: str) -> None:
    one = trainer(family, 0.1)
    one.forward_backward([forced()], REPLAYED)
    assert all(bias.grad is None and not bias.requires_grad for bias in correction_biases(one.model))
    one.step(0)
    assert not [name for name in one._optimizer.state() if "correction_bias" in name]
    assert not [name for name in one._masters.names if "correction_bias" in name]
    assert len(one._optimizer.state()) == 3 * len(one._masters.names) > 0  # of all else there are


def test_the_weights_of_a_step_are_those_without_the_bias() -> None:
    """The bias moves behind the optimizer: the first step's weights are the same with and without."""
    first, second = trainer("glm4_moe", 0.0), trainer("glm4_moe", 0.5)
    for one in (first, second):
        one.forward_backward(DEMONSTRATIONS, LOSSES["sft"])
        one.step(0)
    named = dict(second.model.named_parameters())
    assert all(torch.equal(parameter, named[name]) for name, parameter in first.model.named_parameters())
    assert not torch.equal(biases(first), biases(second))


@both
def test_a_skipped_step_changes_nothing_and_is_forgotten(family: str) -> None:
    one = trainer(family)
    for bias in correction_biases(one.model):
        bias.fill_(0.25)
    broken = forced()
    broken.advantages[3] = np.nan
    one.forward_backward([broken, broken, broken], REPLAYED)
    assert one.step(0).skipped
    assert torch.equal(biases(one), torch.full((2, 4), 0.25))
    other = forced(2, 3)  # experts 0 and 3, 3 and 1: with the skipped tokens expert 3 would be below the mean
    one.forward_backward([other], REPLAYED)
    assert not one.step(1).skipped
    expected = torch.tensor([[-1.0, 1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])
    assert torch.allclose(biases(one), 0.25 + 0.001 * expected, atol=1e-7)


@both
def test_bfloat16_compute_keeps_the_bias_in_float32(family: str) -> None:
    one = trainer(family, compute_dtype=torch.bfloat16)
    for bias in correction_biases(one.model):
        bias.fill_(0.75)
    for step in range(10):
        one.forward_backward([forced()], REPLAYED)
        one.step(step)
    assert {bias.dtype for bias in correction_biases(one.model)} == {torch.float32}
    assert torch.allclose(biases(one), 0.75 + 0.01 * DIRECTIONS, atol=1e-6)
    low = torch.tensor(0.75, dtype=torch.bfloat16)
    assert low - 0.001 == low  # the canary: a bfloat16 bias would not have moved


@both
def test_a_saved_folder_has_the_bias(family: str, tmp_path: Path) -> None:
    one = trainer(family, 0.01, compute_dtype=torch.bfloat16)
    one.forward_backward([forced()], REPLAYED)
    one.step(0)
    one.save(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        found = torch.stack(correction_biases(model))
        assert found.dtype == torch.float32
        assert torch.equal(found, biases(one))
        assert torch.equal(found, 0.01 * DIRECTIONS)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_trainer_takes_the_same_steps(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    def train(one: LocalTrainer, steps: range) -> None:
        for step in steps:
            one.forward_backward(DEMONSTRATIONS, LOSSES["sft"])
            one.step(step)

    whole = trainer(family, 0.03, compute_dtype=dtype)
    train(whole, range(6))
    first = trainer(family, 0.03, compute_dtype=dtype)
    train(first, range(3))
    first.save_state(tmp_path)
    second = trainer(family, 0.03, compute_dtype=dtype)
    second.load_state(tmp_path)
    assert torch.equal(biases(second), biases(first))
    train(second, range(3, 6))
    expected = dict(whole.weights())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.weights())
    assert not torch.equal(biases(second), biases(first))


def engine_of(one: LocalTrainer) -> TransformersEngine:
    spec = EngineSpec(
        kind="transformers", model=one.architecture, dtype=one.dtype, max_length=64, pad_id=0, stop_ids=(0,)
    )
    return TransformersEngine(spec)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sampler_draws_with_the_delivered_bias(family: str, dtype: torch.dtype) -> None:
    """A first version whole, the second as changes: those of the bias alone, as the learning rate is next to 0."""
    one = trainer(family, 0.3, lr=1e-30, compute_dtype=dtype)
    packer, receiver, engine = Packer(delta=True), Receiver(), engine_of(one)

    def deliver(version: int) -> dict[str, int | None]:
        packed = packer.pack(one.weights(), version)
        assert not engine.load(receiver.stream(packed.manifest, packed.buckets, keep=True), version)
        return {entry.name: entry.changed for entry in packed.manifest.entries}

    deliver(1)
    prompt = (7, 8, 9, 10, 11)
    before = one.expectations([prompt])[0]
    one.forward_backward([forced()], REPLAYED)
    one.step(0)
    changed = {name: count for name, count in deliver(2).items() if count != 0}
    assert set(changed) == {f"model.layers.{layer}.mlp.gate.e_score_correction_bias" for layer in range(2)}
    assert [bias.dtype for bias in correction_biases(engine._model)] == [torch.float32] * 2
    assert torch.equal(torch.stack(correction_biases(engine._model)), biases(one))
    after = one.expectations([prompt])[0]
    (answer,) = engine.probe([prompt], len(after))
    drawn = torch.tensor(answer.logprobs)[torch.tensor(answer.token_ids).argsort()]
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert (drawn - after).abs().max() < tolerance
    assert (before - after).abs().max() > 4 * tolerance  # the canary: with the bias of before it is another model
    params = SamplingParams(samples_per_problem=4, max_tokens=12, seed=1, stream="s")
    ids = np.array(prompt, dtype=np.int32)
    engine.submit(
        [Job(key=str(at), group_id="g", problem_id="p", sample=at, prompt_ids=ids, params=params) for at in range(4)]
    )
    for found in engine.advance(60.0).drawn:
        sample = rollout_sample(found.completion, 1.0, 1.0, "g")
        apart = np.abs(one.logprobs([sample])[0] - sample.sampler_logprobs)[sample.loss_mask]
        assert apart.mean() < tolerance


def max_violation(load_LE: Tensor) -> float:
    return float((load_LE.max(dim=1).values / load_LE.float().mean(dim=1) - 1).max())


@both
@pytest.mark.parametrize("update", [0.05, 0.0])
def test_a_router_that_starts_imbalanced_becomes_balanced(family: str, update: float) -> None:
    """A bias of 1, more than any score, sends every token to expert 0 and to some other: twice the mean load."""
    one = trainer(family, update, lr=1e-5)
    for bias in correction_biases(one.model):
        bias[0] = 1.0
    generator = np.random.default_rng(0)
    samples = [supervised_sample(generator.integers(7, 17, 24), [0] + [1] * 23) for _ in range(8)]
    seen = []
    for step in range(24):
        sums = one.forward_backward(samples, CrossEntropyLoss(denominator=8.0 * 23))
        assert sums.experts is not None
        seen.append(max_violation(sums.experts.load_LE))
        one.step(step)
    assert seen[0] == pytest.approx(1.0)  # 8 x 23 tokens at expert 0, 8 x 23 x 2 / 4 the mean
    if update:
        assert max(seen[-5:]) < 0.5
    else:
        assert min(seen) > 0.95


def test_ties_and_large_loads_are_exact() -> None:
    """Loads of 2^60 + 1 and three of 2^60: float32, and float64, would call them all equal."""
    model = policy("glm4_moe").model
    one, none = RouterBias(model, 0.5), torch.zeros(2, dtype=torch.int64)
    load_LE = torch.tensor([[2**60 + 1, 2**60, 2**60, 2**60], [5, 5, 5, 5]])
    one.count(ExpertCounts(chosen=2, load_LE=load_LE, compared_L=none, agreed_L=none))
    one.count(None)
    one.step(skipped=False)
    assert torch.stack(correction_biases(model)).tolist() == [[-0.5, 0.5, 0.5, 0.5], [0.0] * 4]
    one.step(skipped=False)  # nothing was counted
    assert torch.stack(correction_biases(model)).tolist() == [[-0.5, 0.5, 0.5, 0.5], [0.0] * 4]


def test_a_model_without_such_a_bias_is_refused() -> None:
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    model = {key: value for key, value in SHAPE.items() if not key.startswith(("n_", "topk", "first", "moe"))} | moe
    made = fresh_policy(PolicyConfig(model_type="qwen3_moe", model=model), "01", (), 0, CPU).model
    assert correction_biases(made) == []
    RouterBias(made, 0.0)
    with pytest.raises(UsageError, match="the routers of Qwen3MoeForCausalLM have no correction bias"):
        RouterBias(made, 0.1)

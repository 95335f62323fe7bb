"""``trainer.router_dtype = "float32"`` in one process: masters, steps, states, folders, adapters, references,
deliveries and what draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.delivery.packing import Packer, Receiver
from rlreason.errors import UsageError
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import rollout_sample, supervised_sample
from rlreason.policy.lora import LoraOptions
from rlreason.policy.policies import Policy, fresh_policy
from rlreason.sampler.jobs import Job
from rlreason.sampler.open import engine_spec
from rlreason.sampler.transformers_engine import TransformersEngine
from rlreason.trainer.forward import CrossEntropyLoss, PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.trainer.rescoring import Precision, Rescorer, WeightHistory
from rlreason.types import Completion, SamplingParams, TrainingSample

CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16
MODEL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "intermediate_size": 32, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2,
    "initializer_range": 0.2,
}  # fmt: skip
GATES = [f"model.layers.{layer}.mlp.gate.weight" for layer in range(2)]
PROMPT = (7, 8, 9, 10, 11)
SAMPLES = [
    supervised_sample([7, 8, 9, 10, 11, 12, 13], [0, 0, 1, 1, 1, 1, 1]),
    supervised_sample([9, 7, 10, 12, 8], [0, 1, 1, 1, 1]),
]
LOSS = CrossEntropyLoss(denominator=9.0)


def policy(dtype: torch.dtype = torch.float32) -> Policy:
    return fresh_policy(PolicyConfig(model_type="qwen3_moe", model=MODEL), "0123456789", (), 0, CPU, dtype)


def trainer(*, wide: bool = True, sends: bool = True, reference: bool = False, **changed: Any) -> LocalTrainer:
    settings = {"optimizer": OptimizerConfig(lr=1e-3), "total_steps": 50, "compute_dtype": BFLOAT16, **changed}
    options = TrainerOptions(float32_routers=wide, sends_float32_routers=sends, **settings)
    stored = torch.float32 if options.lora is None else options.compute_dtype
    return LocalTrainer(policy(stored), options, reference=reference)


def gates(one: LocalTrainer) -> list[Tensor]:
    named = dict(one.model.named_parameters())
    return [named[name] for name in GATES]


def train(one: LocalTrainer, steps: range) -> None:
    for step in steps:
        one.forward_backward(SAMPLES, LOSS)
        one.step(step)


def test_the_model_computes_with_the_masters_of_its_routers() -> None:
    """Also where the step is too small for bfloat16; all other weights are rounded."""
    one, other = trainer(optimizer=OptimizerConfig(lr=1e-6)), trainer(wide=False, optimizer=OptimizerConfig(lr=1e-6))
    before = [gate.detach().clone() for gate in gates(one)]
    for each in (one, other):
        train(each, range(2))
    masters = dict(zip(one._masters.names, one._masters.parameters, strict=True))
    for name, gate, old in zip(GATES, gates(one), before, strict=True):
        assert gate.dtype == torch.float32
        assert torch.equal(gate, masters[name])
        assert not torch.equal(gate, old)
        same = (gate.bfloat16() == old.bfloat16()).float().mean()
        assert same > 0.9  # what bfloat16 would have lost
    rest = {name: p.dtype for name, p in one.model.named_parameters() if name not in GATES}
    assert set(rest.values()) == {BFLOAT16}
    assert {gate.dtype for gate in gates(other)} == {BFLOAT16}  # canary


def test_ties_of_float16_weights_are_rounded_but_for_routers() -> None:
    """The model computes with a wide router's weights as they are, so rounding them would change it."""
    made = policy()
    for parameter in made.model.parameters():
        parameter.data = parameter.data.half().float()
    kept = {name: dict(made.model.named_parameters())[name].detach().clone() for name in GATES}
    options = TrainerOptions(optimizer=OptimizerConfig(), total_steps=1, compute_dtype=BFLOAT16, float32_routers=True)
    one = LocalTrainer(made, options)
    assert one.rounded > 1e-3
    masters = dict(zip(one._masters.names, one._masters.parameters, strict=True))
    assert all(torch.equal(masters[name], kept[name]) for name in GATES)
    assert all(torch.equal(m, m.bfloat16().float()) for name, m in masters.items() if name not in GATES)


def test_layers_that_are_computed_again_give_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        one = trainer(activation_checkpointing=again)
        one.forward_backward(SAMPLES, LOSS)
        found.append({name: m.grad for name, m in zip(one._masters.names, one._masters.parameters, strict=True)})
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())
    assert found[0][GATES[0]].abs().max() > 0


def test_a_resumed_trainer_takes_the_same_steps(tmp_path: Path) -> None:
    whole, first, second = trainer(), trainer(), trainer()
    train(whole, range(4))
    train(first, range(2))
    first.save_state(tmp_path)
    second.load_state(tmp_path)
    train(second, range(2, 4))
    expected = dict(whole.weights())
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.weights())


def test_folders_hold_what_they_held(tmp_path: Path) -> None:
    """One dtype for all weights: the checkpoint's. In bfloat16 routers are rounded there, in float32 they are whole."""
    one = trainer()
    train(one, range(1))
    one.save(tmp_path / "auto")
    assert {tensor.dtype for tensor in load_file(tmp_path / "auto" / "model.safetensors").values()} == {BFLOAT16}
    two = trainer(checkpoint_dtype=torch.float32)
    train(two, range(1))
    two.save(tmp_path / "exact")
    saved = load_file(tmp_path / "exact" / "model.safetensors")
    assert all(torch.equal(saved[name], gate) for name, gate in zip(GATES, gates(two), strict=True))
    assert {gate.dtype for gate in gates(one)} == {torch.float32}  # saving leaves the model as it was


def test_a_reference_is_the_policy_of_the_start() -> None:
    """With routers in float32 as well: log-probabilities of the two are the same bits, before a step."""
    one = trainer(reference=True)
    sample = rollout(one)
    assert np.array_equal(one.logprobs([sample])[0], one.logprobs([sample], of="reference")[0])
    train(one, range(2))
    assert not np.array_equal(one.logprobs([sample])[0], one.logprobs([sample], of="reference")[0])


def test_an_adapter_leaves_the_routers_as_they_were_read(tmp_path: Path) -> None:
    one = trainer(lora=LoraOptions(rank=2, alpha=4.0))
    train(one, range(2))
    read = dict(policy(BFLOAT16).model.named_parameters())
    sent = dict(one.weights())
    for name in GATES:
        assert sent[name].dtype == torch.float32
        assert torch.equal(sent[name], read[name].float())
    assert sent["model.layers.0.self_attn.q_proj.weight"].dtype == BFLOAT16
    one.save(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {BFLOAT16}


def rollout(one: LocalTrainer) -> TrainingSample:
    ids = np.array([7, 9, 8, 12, 10, 7], dtype=np.int32)
    logprobs = np.full(len(ids), -2.0, dtype=np.float32)
    drawn = Completion(
        prompt_ids=np.array(PROMPT, dtype=np.int32), token_ids=ids, sampler_logprobs=logprobs, text="",
        finish_reason="length", policy_versions=np.zeros(len(ids), dtype=np.int32),
    )  # fmt: skip
    return rollout_sample(drawn, 1.0, 1.0, "g")


def engine_of(one: LocalTrainer, *, experts: bool = False) -> TransformersEngine:
    return TransformersEngine(engine_spec("transformers", one, max_rows=8, max_length=64, experts=experts))


def delivered(one: LocalTrainer, *, delta: bool = False, experts: bool = False) -> TransformersEngine:
    engine, packer, receiver = engine_of(one, experts=experts), Packer(delta=delta), Receiver()
    packed = packer.pack(one.weights(), 1)
    assert not engine.load(receiver.stream(packed.manifest, packed.buckets, keep=delta), 1)
    return engine


def drawn(engine: TransformersEngine, count: int = 8) -> list[Completion]:
    params = SamplingParams(samples_per_problem=count, max_tokens=24, seed=1, stream="s")
    ids = np.array(PROMPT, dtype=np.int32)
    engine.submit(
        [
            Job(key=str(at), group_id="g", problem_id="p", sample=at, prompt_ids=ids, params=params)
            for at in range(count)
        ]
    )
    return [one.completion for one in engine.advance(60.0).drawn]


def test_what_draws_has_the_same_routers() -> None:
    one = trainer()
    train(one, range(1))
    engine = delivered(one)
    own = dict(engine._model.named_parameters())
    for name, gate in zip(GATES, gates(one), strict=True):
        assert own[name].dtype == torch.float32
        assert torch.equal(own[name], gate)
    assert {p.dtype for name, p in own.items() if name not in GATES} == {BFLOAT16}
    expected = one.expectations([PROMPT])[0]
    (answer,) = engine.probe([PROMPT], len(expected))
    found = torch.tensor(answer.logprobs)[torch.tensor(answer.token_ids).argsort()]
    assert torch.allclose(found, expected, atol=0.05)  # their attention rounds otherwise


def test_an_engine_with_routers_of_its_own_is_sent_its_dtype() -> None:
    """vLLM: all weights in bfloat16, as without the key."""
    one, other = trainer(sends=False), trainer(wide=False)
    assert (one.router_dtype, trainer().router_dtype, other.router_dtype) == ("bfloat16", "float32", "bfloat16")
    sent, plain = dict(one.weights()), dict(other.weights())
    assert sent.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) and tensor.dtype == plain[name].dtype for name, tensor in sent.items())
    assert not engine_spec("transformers", one, max_rows=8, max_length=64).float32_routers
    assert engine_spec("transformers", trainer(), max_rows=8, max_length=64).float32_routers
    assert not engine_spec("vllm", trainer(), max_rows=8, max_length=64).float32_routers
    assert trainer(compute_dtype=torch.float32).router_dtype == "float32"
    assert not engine_spec(
        "transformers", trainer(compute_dtype=torch.float32), max_rows=8, max_length=64
    ).float32_routers


def test_routing_is_replayed() -> None:
    one = trainer(routing="the test")
    completions = drawn(delivered(one, experts=True))
    samples = [rollout_sample(completion, 1.0, 1.0, "g") for completion in completions]
    sums = one.forward_backward(samples, PolicyGradientLoss(spec=ObjectiveSpec(), replay=True))
    assert sums.experts is not None
    assert (sums.experts.agreed_L / sums.experts.compared_L > 0.97).all()


def test_the_doctor_finds_routers_that_only_one_side_has_in_float32() -> None:
    """The chain's model in the sampler's precision has the sampler's routers: nothing is left for the residual."""
    one = trainer(sends=False)
    completions = drawn(delivered(one))
    rescorer = Rescorer(one.model, 0, WeightHistory(1), completions, 4096)
    sampler_N = torch.from_numpy(
        np.concatenate([c.sampler_logprobs for c in completions if c.sampler_logprobs is not None])
    )
    apart = [
        float((rescorer.score(0, precision, 1.0).logprobs_N - sampler_N).abs().mean())
        for precision in (Precision.of(one.model), Precision(BFLOAT16))
    ]
    assert apart[1] < 0.8 * apart[0]


def test_a_model_whose_routers_cant_be_followed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlreason.routing._tried", lambda _: None)
    with pytest.raises(
        UsageError, match=r'trainer\.router_dtype = "float32": Qwen3MoeForCausalLM .* can\'t be followed'
    ):
        trainer()
    trainer(wide=False)

"""LoRA: the base is untouched, merged = adapter, peft reads what is saved, shards = one process, states go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("peft")

from peft import PeftModel
from ranks_tools import CPU, FAMILIES, SHAPE, demonstrations, options, relative, rollouts, source, start
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from rlreason.cluster.actors import ActorGroup
from rlreason.errors import UsageError
from rlreason.policy.logprobs import next_logprobs
from rlreason.policy.lora import LoraOptions, add_adapter, is_adapter
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource
from rlreason.trainer.rank import RankSpec
from rlreason.trainer.ray_trainer import RayTrainer

PROMPT = (3, 4, 5, 6)


def lora(family: str) -> LoraOptions:
    moe = any("experts" in key for key in FAMILIES[family])
    return LoraOptions(rank=4, alpha=8.0, experts=moe)


def local(family: str, dtype: torch.dtype = torch.float32, *, reference: bool = False) -> LocalTrainer:
    settings = options(lora=lora(family), compute_dtype=dtype)
    return LocalTrainer(source(family).load(dtype, CPU), settings, reference=reference)


def trained(trainer: LocalTrainer | RayTrainer, steps: range = range(3)) -> None:
    samples, loss = rollouts()
    for step in steps:
        trainer.forward_backward(samples, loss)
        trainer.step(step)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_the_adapter_and_the_base_stays(family: str, tmp_path: Path) -> None:
    trainer = local(family, reference=True)
    base = source(family).load(torch.float32, CPU).model
    before = {name: one.clone() for name, one in base.state_dict().items()}
    assert torch.equal(trainer.expectations([PROMPT])[0], next_logprobs(base, PROMPT))  # B is zeros
    trained(trainer)
    now = trainer.expectations([PROMPT])[0]
    assert float((now - next_logprobs(base, PROMPT)).abs().max()) > 1e-4
    weights = dict(trainer.weights())
    assert list(weights) == list(before)
    for name, one in trainer.model.state_dict().items():
        if not is_adapter(name):
            assert torch.equal(one, before[name.replace(".base_layer", "")]), name
    samples, _ = demonstrations()
    untouched = LocalTrainer(source(family).load(torch.float32, CPU), options())
    pairs = zip(trainer.logprobs(samples, of="reference"), untouched.logprobs(samples), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    base.load_state_dict(weights)
    assert float((next_logprobs(base, PROMPT) - now).abs().max()) < 1e-6
    trainer.save(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert float((next_logprobs(saved, PROMPT) - now).abs().max()) < 1e-6
    adapted = PeftModel.from_pretrained(source(family).load(torch.float32, CPU).model, tmp_path / "adapter")
    logits = adapted(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    assert float((torch.log_softmax(logits, -1) - now).abs().max()) < 1e-6


def test_bfloat16_base_with_float32_masters() -> None:
    """Steps of 1e-6 on bf16 numbers would be lost; masters of the adapter keep them."""
    trainer = local("qwen3_moe", torch.bfloat16)
    assert {one.dtype for one in trainer.model.parameters()} == {torch.bfloat16}
    assert {one.dtype for one in trainer._masters.parameters} == {torch.float32}
    trained(trainer)
    assert {one.dtype for name, one in trainer.weights() if "inv_freq" not in name} == {torch.bfloat16}


def test_a_state_holds_the_adapter_alone_and_goes_on(tmp_path: Path) -> None:
    trainer = local("qwen3")
    trained(trainer)
    trainer.save_state(tmp_path)
    assert all(is_adapter(name) for name in load_file(tmp_path / "parameters.safetensors"))
    trained(trainer, range(3, 5))
    again = local("qwen3")
    again.load_state(tmp_path)
    trained(again, range(3, 5))
    expected = dict(trainer.weights())
    assert all(torch.equal(one, expected[name]) for name, one in again.weights())


def test_what_is_not_there_is_refused() -> None:
    dense = source("qwen3").load(torch.float32, CPU)
    with pytest.raises(UsageError, match="Qwen3ForCausalLM has no stacked experts"):
        LocalTrainer(dense, options(lora=LoraOptions(rank=2, alpha=4.0, experts=True)))
    with pytest.raises(UsageError, match=r"trainer\.lora: .*nothing"):
        LocalTrainer(dense, options(lora=LoraOptions(rank=2, alpha=4.0, targets=("nothing",))))


@pytest.mark.filterwarnings("error:(rank|alpha)_pattern")
@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "olmoe", "mixtral", "deepseek_v3", "glm4_moe"])
def test_routed_experts_are_adapted_where_asked_and_nowhere_else(family: str) -> None:
    """peft reads names of dense and shared MLPs as those of DeepSeek's and GLM's routed experts."""
    sizes = {"moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts": 8, "num_local_experts": 8}
    taken = {key: value for key, value in SHAPE.items() if family != "deepseek_v3" or "key_value" not in key}
    for experts in (False, True):
        with torch.device("meta"):
            config = AutoConfig.for_model(family, vocab_size=32, first_k_dense_replace=1, **{**taken, **sizes})
            model = AutoModelForCausalLM.from_config(config)
        stacked = {name for name, _ in model.named_parameters() if re.search(r"experts\.(gate_up|down)_proj$", name)}
        add_adapter(model, LoraOptions(rank=2, alpha=4.0, experts=experts))
        adapted = [name for name, _ in model.named_parameters() if is_adapter(name)]
        assert any(".self_attn." in name for name in adapted)
        assert stacked
        routed = [name for name in adapted if ".experts." in name]
        assert len(routed) == (2 * len(stacked) if experts else 0)


def test_a_name_that_peft_takes_for_the_experts_is_refused() -> None:
    model = source("deepseek_v3").inspect().model
    with pytest.raises(UsageError, match="peft takes down_proj of DeepseekV3ForCausalLM for its routed experts"):
        add_adapter(model, LoraOptions(rank=2, alpha=4.0, targets=("q_a_proj", "down_proj")))


@pytest.fixture(scope="module")
def two() -> Iterator[Callable[[], ActorGroup]]:
    pytest.importorskip("ray")
    group = start(2)
    yield lambda: group
    group.close()


@pytest.mark.parametrize("family", ["qwen3_tied", "qwen3_moe", "mixtral", "deepseek_v3"])
def test_shards_are_one_process(family: str, tmp_path: Path, two: Callable[[], ActorGroup]) -> None:
    one = local(family, reference=True)
    settings = options(lora=lora(family))
    model = ModelSource(source=source(family), dtype=torch.float32)
    many = RayTrainer(RankSpec(model=model, options=settings, reference=True), two())
    samples, loss = rollouts()
    for trainer in (one, many):
        trainer.forward_backward(samples, loss)
    found = two().ask("gradients")[0]
    expected = {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}
    assert all(is_adapter(name) for name in found)
    assert relative(found, expected) <= 1e-6
    for step in range(3):
        for trainer in (one, many):
            if step:
                trainer.forward_backward(samples, loss)
            trainer.step(step)
    weights: tuple[dict[str, Tensor], ...] = tuple(dict(trainer.weights()) for trainer in (one, many))
    assert max(float((weights[1][name] - w).abs().max()) for name, w in weights[0].items()) < 1e-5
    for of in ("policy", "reference"):
        pairs = zip(one.logprobs(samples, of=of), many.logprobs(samples, of=of), strict=True)
        assert max(float(np.abs(a - b).max()) for a, b in pairs) < 1e-5
    (tmp_path / "state").mkdir()
    (tmp_path / "out").mkdir()
    many.save_state(tmp_path / "state")
    many.save(tmp_path / "out")
    again = RayTrainer(RankSpec(model=model, options=settings), two())
    again.load_state(tmp_path / "state")
    assert all(torch.equal(w, weights[1][name]) for name, w in again.weights())
    adapted = PeftModel.from_pretrained(source(family).load(torch.float32, CPU).model, tmp_path / "out" / "adapter")
    logits = adapted(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    assert float((torch.log_softmax(logits, -1) - one.expectations([PROMPT])[0]).abs().max()) < 1e-5

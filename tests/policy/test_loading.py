"""What is wrong with a model's folder is said in one line; checkpoints are written for those who read them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from rlreason.config import PolicyConfig
from rlreason.data.prompts import end_of_turn_id, stop_token_ids
from rlreason.errors import UsageError
from rlreason.evaluation import EvalRequest, evaluate_model
from rlreason.objective.batch import Batch
from rlreason.policy.attention import ATTENTION
from rlreason.policy.batch import make_batches, supervised_sample
from rlreason.policy.loading import inspect_model, load_model, load_tokenizer, locate_model, read_config
from rlreason.policy.logprobs import body_of, hidden_states, plain_head, takes_packed, target_logits
from rlreason.policy.policies import Policy, fresh_policy, load_policy
from rlreason.policy.predictors import predictors_left_out
from rlreason.policy.saving import save_without_weights
from rlreason.policy.upcycling import UpcycleOptions
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.protocol import Models
from rlreason.upcycle import upcycle

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
READERS: list[Callable[[Path], object]] = [lambda path: load_model(path, torch.float32, CPU), inspect_model]


def policy(kind: str = "qwen3", **options: object) -> Policy:
    extra = EXPERTS if kind == "qwen3_moe" else {}
    config = PolicyConfig.model_construct(
        path=None, model_type=kind, model={**SHAPE, **extra, **options}, tokenizer=PolicyConfig().tokenizer
    )
    return fresh_policy(config, "0123456789", (), 0, CPU)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    policy().save(tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**settings, **changes}), encoding="utf-8")


@pytest.mark.parametrize(
    "path", ["/nowhere/model", "./nowhere", "../nowhere", "~/nowhere", "nowhere", "a/b/c", "tests/nowhere"]
)
def test_a_mistyped_path_is_said_without_asking_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("asked"))
    for read in (*READERS, load_tokenizer):
        with pytest.raises(UsageError, match="no such folder"):
            read(path)  # type: ignore[operator]


def test_what_a_hub_id_looks_like(saved: Path) -> None:
    assert locate_model("owner/name-1.5B") == "owner/name-1.5B"
    shutil.copytree(saved, saved.parent / "run" / "stages" / "01-sft" / "checkpoint")
    with pytest.raises(UsageError, match=r"holds no model.*did you mean .*01-sft/checkpoint"):
        locate_model(saved.parent / "run")
    with pytest.raises(UsageError, match="is a file"):
        locate_model(saved / "config.json")


@pytest.mark.parametrize("read", READERS)
def test_tensors_must_be_the_models(saved: Path, read: Callable[[Path], object]) -> None:
    """A missing one would be random (transformers only warns), an extra one lost."""
    file = saved / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.down_proj.weight"
    less = {key: value for key, value in tensors.items() if key != name}
    save_file(less, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=f"lacks tensors of Qwen3ForCausalLM.*{name}"):
        read(saved)
    save_file({**tensors, "extra.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"has tensors that Qwen3ForCausalLM has not.*extra\.weight"):
        read(saved)
    save_file({**tensors, name: torch.zeros(32, 63)}, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=rf"other shapes.*{name} is \[32, 63\], not \[32, 64\]"):
        read(saved)
    save_file(tensors, file, metadata={"format": "pt"})
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UsageError, match=r"model\.safetensors is damaged or cut off"):
        read(saved)


@pytest.mark.parametrize("method", ["fp8", "gptq", "bitsandbytes", "compressed-tensors"])
def test_quantised_weights_are_refused_by_their_method(saved: Path, method: str) -> None:
    edit(saved / "config.json", quantization_config={"quant_method": method, "weight_block_size": [128, 128]})
    for read in (
        *READERS,
        read_config,
        lambda path: upcycle(str(path), path / "sparse", UpcycleOptions(experts=4, top_k=2)),
    ):
        with pytest.raises(UsageError, match=rf"{saved} \(qwen3\) is quantised \({method};.*use the bfloat16 folder"):
            read(saved)
    assert not (saved / "sparse").exists()


LATENT = {
    "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 2, "num_nextn_predict_layers": 1, "head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize("layer", [61, 2])
def test_layers_for_multi_token_prediction_are_left_out_and_not_claimed(tmp_path: Path, layer: int) -> None:
    """61 is DeepSeek-V3's own, which transformers passes over without a word; 2 that of a smaller model of its kind."""
    policy("deepseek_v3", **LATENT).save(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    more = {f"model.layers.{layer}.{name}": torch.ones(4) for name in ("enorm.weight", "eh_proj.weight")}
    save_file({**load_file(file), **more}, file, metadata={"format": "pt"})
    edit(tmp_path / "model" / "config.json", num_nextn_predict_layers=1)
    one = load_policy(tmp_path / "model", torch.float32, CPU)
    assert predictors_left_out(str(tmp_path / "model"), one.model) == 2
    one.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert one.model.config.num_nextn_predict_layers == 1
    assert predictors_left_out(str(tmp_path / "saved"), load_model(tmp_path / "saved", torch.float32, CPU)) == 0
    save_file({**load_file(file), "model.layers.1.surplus": torch.ones(4)}, file, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"would lose: model\.layers\.1\.surplus$"):
        load_model(tmp_path / "model", torch.float32, CPU)


def test_a_list_of_pad_tokens_counts_as_its_first(saved: Path) -> None:
    edit(saved / "config.json", pad_token_id=[2, 0])
    assert load_model(saved, torch.float32, CPU).config.pad_token_id == 2
    edit(saved / "config.json", hidden_act=7)
    with pytest.raises(UsageError, match=r"can't read the model's config in .*hidden_act"):
        load_model(saved, torch.float32, CPU)


def test_a_generation_config_that_transformers_refuses_to_write(saved: Path, tmp_path: Path) -> None:
    """temperature without do_sample: read with a warning, and an error after the last step of the old code."""
    edit(saved / "generation_config.json", temperature=0.6, top_p=0.95, eos_token_id=[1, 5], do_sample=None)
    model = load_model(saved, torch.float32, CPU)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        model.save_pretrained(tmp_path / "old")
    Policy(model=model, tokenizer=load_tokenizer(saved)).save(tmp_path / "new")
    found = GenerationConfig.from_pretrained(tmp_path / "new")
    assert (found.temperature, found.top_p, found.do_sample, found.eos_token_id) == (0.6, 0.95, True, [1, 5])
    assert model.generation_config.do_sample is None  # what is in memory stays as it was
    (tmp_path / "dry").mkdir()
    save_without_weights(model, load_tokenizer(saved), tmp_path / "dry")
    assert not list((tmp_path / "dry").glob("*.safetensors"))


def test_a_generation_config_that_says_greedy_stays_greedy(saved: Path, tmp_path: Path) -> None:
    edit(saved / "generation_config.json", temperature=0.6, top_p=0.9, top_k=20, do_sample=False, max_new_tokens=77)
    load_policy(saved, torch.float32, CPU).save(tmp_path / "new")
    found = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert (found["do_sample"], found["max_new_tokens"]) == (False, 77)
    assert not {"temperature", "top_p", "top_k"} & {key for key, value in found.items() if value is not None}
    assert GenerationConfig.from_pretrained(tmp_path / "new").do_sample is False


@pytest.mark.parametrize("beside", [False, True])
def test_a_folder_with_an_adapter_names_its_base_and_the_fix(saved: Path, tmp_path: Path, *, beside: bool) -> None:
    """With a model beside it transformers loads both, and nothing of the model would train."""
    folder = saved if beside else tmp_path / "adapter"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base", "peft_type": "LORA"}')
    for read in (*READERS, load_tokenizer):
        with pytest.raises(UsageError, match=r"holds an adapter .* of some/base: name the merged.* or merge"):
            read(folder)
    with pytest.raises(UsageError, match="holds an adapter"):
        evaluate_model(EvalRequest(model=str(folder), data="arithmetic", problems=1))


def test_every_eos_of_the_generation_config_ends_a_sample(saved: Path) -> None:
    edit(saved / "generation_config.json", eos_token_id=[1, 9, 4])
    one = load_policy(saved, torch.float32, CPU)
    assert one.stop_ids == (1, 9, 4)
    assert end_of_turn_id(one.tokenizer) in one.stop_ids  # what a demonstration ends with
    assert stop_token_ids(one.tokenizer) == (1,)
    from rlreason.sampler.open import engine_spec

    assert engine_spec("transformers", one, max_rows=4, max_length=None).stop_ids == (1, 9, 4)
    assert engine_spec("vllm", one, max_rows=4, max_length=None).stop_ids == (1, 9, 4)


def test_transformers_4_finds_what_it_knows(tmp_path: Path) -> None:
    """It takes rope_theta = 10000 where it is not told otherwise, and knows no TokenizersBackend."""
    one = policy("qwen3_moe")
    one.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert (config["rope_theta"], config["rope_parameters"]["rope_theta"]) == (100000.0, 100000.0)
    assert (config["num_experts"], config["num_local_experts"]) == (4, 4)
    assert config["use_cache"] is True
    assert json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))["use_cache"] is True
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = load_policy(tmp_path, torch.float32, CPU)
    assert again.model.config.rope_parameters["rope_theta"] == 100000.0
    ids = torch.arange(1, 12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(one.model(ids).logits, again.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == one.tokenizer.get_vocab()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        policy().save(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def batch_of(*, packed: bool) -> Batch:
    rows = [supervised_sample([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]), supervised_sample([1, 2, 7, 8], [0, 0, 1, 1])]
    return make_batches(rows, 1000, 0, CPU, packed=packed)[0]


def test_a_model_that_is_its_own_base_model() -> None:
    """Llama 4's text model: its prefix names the multimodal model's part."""
    options = {**SHAPE, "intermediate_size_mlp": 64, "num_local_experts": 4, "vocab_size": 20}
    del options["rope_parameters"]
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama4_text", **options), attn_implementation=ATTENTION
    )
    assert model.base_model is model
    assert body_of(model) is model.model
    head = plain_head(model)
    assert head is model.lm_head.weight
    batch = batch_of(packed=False)
    with torch.no_grad():
        assert torch.allclose(hidden_states(model, batch) @ head.T, target_logits(model, batch), atol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_a_trial_in_autocast_finds_what_is_true(packed: bool) -> None:
    """It answered "not plain" for ever, and a packed batch was an AssertionError."""
    model = policy().model
    batch = batch_of(packed=packed)
    with torch.autocast("cpu", torch.bfloat16):
        loss = CrossEntropyLoss(denominator=5.0)(Models(policy=model), batch).loss
    assert plain_head(model) is not None
    assert takes_packed(model)
    assert loss.item() == pytest.approx(
        CrossEntropyLoss(denominator=5.0)(Models(policy=model), batch).loss.item(), rel=0.02
    )


def test_whole_logits_of_packed_rows_are_refused() -> None:
    model = policy().model
    with pytest.raises(ValueError, match="whole rows, not of packed ones"):
        target_logits(model, batch_of(packed=True))


def test_a_tokenizer_without_a_pad_token_pads_with_its_eos() -> None:
    """Llama 3.x and Mistral: a TypeError after a whole step was sampled. What is padded is never looked at."""
    from rlreason.config import OptimizerConfig
    from rlreason.sampler.open import engine_spec
    from rlreason.trainer.local import LocalTrainer
    from rlreason.trainer.options import TrainerOptions

    losses = []
    for pad in ("<|pad|>", None):
        one = policy()
        one.tokenizer.pad_token = pad
        assert (one.tokenizer.pad_token_id is None) == (pad is None)
        assert engine_spec("transformers", one, max_rows=4, max_length=None).pad_id == (0 if pad else 1)
        trainer = LocalTrainer(one, TrainerOptions(optimizer=OptimizerConfig(), total_steps=1))
        rows = [supervised_sample([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]), supervised_sample([1, 2, 7], [0, 0, 1])]
        losses.append(trainer.forward_backward(rows, CrossEntropyLoss(denominator=4.0)).read(4.0)["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        (
            "max seq len (8192), (0.35 GiB KV cache is needed, which is larger than",
            "sampler.kv_cache_gib = 0.36 or more",
        ),
        ("No available memory for the KV cache blocks", "or more sampler.kv_cache_gib"),
    ],
)
def test_vllms_complaint_names_the_recipes_keys(said: str, asked: str) -> None:
    from rlreason.sampler.open import engine_spec
    from rlreason.sampler.vllm_engine import cache_too_small

    text = cache_too_small(engine_spec("vllm", policy(), max_rows=4, max_length=None), said)
    assert "one sequence of 64 tokens: set sampler.max_length" in text
    assert asked in text

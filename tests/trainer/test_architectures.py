"""The table of docs/models.md: what trains, draws, saves and loads, and what is refused in one line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.data.prompts import PromptFormat
from rlreason.errors import UsageError
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.attention import ATTENTION
from rlreason.policy.batch import collate, rollout_sample, supervised_sample
from rlreason.policy.model import count_parameters
from rlreason.policy.policies import Policy, fresh_policy, load_policy
from rlreason.policy.support import check_supported
from rlreason.routing import check_experts, chosen_count, expert_count, is_router, routers_in
from rlreason.sampler.decoding import ATTENTION as DECODING
from rlreason.sampler.groups import draw_groups
from rlreason.sampler.open import inline_sampler
from rlreason.sizing.shape import shape_of
from rlreason.trainer.forward import CrossEntropyLoss, PolicyGradientLoss, loss_logprobs
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.types import Problem, SamplingParams

CPU = torch.device("cpu")
BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
HEADS = {**BASE, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK: dict[str, Any] = {
    **{key: value for key, value in BASE.items() if key != "num_key_value_heads"},
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}
WORKS: dict[str, dict[str, Any]] = {
    "llama": BASE,
    "llama4_text": {**HEADS, "intermediate_size_mlp": 64, "num_local_experts": 4},
    "qwen2": BASE,
    "qwen2_moe": {**BASE, **EXPERTS},
    "qwen3": HEADS,
    "qwen3_moe": {**HEADS, **EXPERTS},
    "mistral": {**BASE, "sliding_window": 4},
    "mixtral": {**BASE, "num_local_experts": 4},
    "gemma": HEADS,
    "gemma3_text": {**HEADS, "sliding_window": 8},
    "phi3": BASE,
    "granite": BASE,
    "smollm3": BASE,
    "olmo2": BASE,
    "olmo3": BASE,
    "olmoe": {**BASE, "num_experts": 4, "num_experts_per_tok": 2},
    "cohere2": HEADS,
    "glm4": HEADS,
    "glm4_moe": {**HEADS, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "deepseek_v2": {**DEEPSEEK, "topk_method": "greedy"},
    "deepseek_v3": DEEPSEEK,
    "exaone4": BASE,
    "seed_oss": HEADS,
    "minimax_m2": {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "afmoe": {**HEADS, **EXPERTS},
    "hunyuan_v1_moe": {**HEADS, "num_experts": 4, "moe_topk": 2},
    "ernie4_5_moe": {
        **HEADS,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_layer_start_index": 0,
        "moe_num_shared_experts": 1,
    },
    "gemma4_text": {
        **HEADS,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "global_head_dim": 16,
        "sliding_window": 8,
    },
    "gpt2": {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "gpt_neox": BASE,
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "num_hidden_layers": 2,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "init_std": 0.2,
    },
}
#: Model type -> (options, what the refusal says).
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt_oss": ({**HEADS, "num_local_experts": 4}, "sinks"),
    "granite_swa": (HEADS, "sinks"),
    "mimo_v2_flash": (HEADS, "sinks"),
    "gemma2": (HEADS, "soft cap"),
    "deepseek_v32": (DEEPSEEK, "indexed_attention"),
    "qwen3_next": ({**HEADS, **EXPERTS}, "linear_attention"),
    "qwen3_5_text": (HEADS, "linear_attention"),
    "lfm2": ({**BASE, "layer_types": ["conv", "full_attention"]}, "conv"),
    "falcon_h1": (BASE, "recurrent"),
    "mamba2": ({}, "recurrent"),
    "jamba": (BASE, "recurrent"),
    "nemotron_h": ({}, "recurrent"),
    "phimoe": ({**BASE, "num_local_experts": 4}, "samples its experts"),
    "falcon": ({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}, "classes of their own"),
    "bloom": ({"hidden_size": 64, "n_layer": 2, "n_head": 4}, "sdpa"),
    "qwen3_5": ({}, "multimodal"),
    "gemma3": ({}, "multimodal"),
    "qwen2_5_vl": ({}, "multimodal"),
    "t5": ({}, "encoder-decoder"),
}
PROBLEMS = [Problem(id=f"p{at}", prompt=text, verifier="math", reference="1") for at, text in enumerate(("1+2", "73"))]
#: Nats between the sampler's log-probability of a token and the trainer's, both float32.
TOLERANCE = 2e-5


def make(kind: str, options: dict[str, Any]) -> Policy:
    return fresh_policy(PolicyConfig(model_type=kind, model=options), "0123456789+", (), 0, CPU)


@pytest.mark.parametrize("kind", WORKS)
def test_trains_draws_saves_and_loads(kind: str, tmp_path: Path) -> None:
    policy = make(kind, WORKS[kind])
    params = SamplingParams(samples_per_problem=3, temperature=1.0, max_tokens=12, seed=1, stream="t")
    groups = list(draw_groups(inline_sampler(policy, PromptFormat()), PROBLEMS, params))
    completions = [one for group in groups for one in group.completions_G]
    samples = [rollout_sample(one, (-1.0) ** at, 0.1) for at, one in enumerate(completions)]
    trainer = LocalTrainer(policy, TrainerOptions(optimizer=OptimizerConfig(lr=1e-2), total_steps=1))
    before = trainer.logprobs(samples)
    for ours, sample in zip(before, samples, strict=True):
        assert np.abs(ours - sample.sampler_logprobs)[sample.loss_mask].max() < TOLERANCE
    trainer.forward_backward(samples, PolicyGradientLoss(spec=ObjectiveSpec()))
    assert trainer.step(0).moved > 0.5
    after = trainer.logprobs(samples)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 100 * TOLERANCE  # the canary
    trainer.save(tmp_path)
    again = LocalTrainer(
        load_policy(tmp_path, torch.float32, CPU), TrainerOptions(optimizer=OptimizerConfig(), total_steps=1)
    )
    for ours, theirs in zip(after, again.logprobs(samples), strict=True):
        assert np.abs(ours - theirs).max() < TOLERANCE


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_in_one_line(kind: str) -> None:
    options, reason = REFUSED[kind]
    with pytest.raises(UsageError, match=reason) as error:
        make(kind, options)
    assert "\n" not in str(error.value)
    assert "docs/models.md" in str(error.value)


@pytest.mark.parametrize("attention", [ATTENTION, DECODING])
@pytest.mark.parametrize(("kind", "option"), [("gpt_oss", "s_aux"), ("gemma2", "softcap")])
def test_an_option_that_sdpa_drops_is_an_error_in_every_layer(kind: str, option: str, attention: str) -> None:
    """Where the config's own check is passed by, as by a model that is not in any table."""
    config = AutoConfig.for_model(kind, vocab_size=20, **REFUSED[kind][0])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with pytest.raises(UsageError, match=f"'{option}'"):
        model(torch.tensor([[1, 2, 3]]), use_cache=False)


def test_gemma_2_without_its_soft_cap_is_right() -> None:
    """The refusal is of the cap, not of the family."""
    options = {**HEADS, "vocab_size": 20, "query_pre_attn_scalar": 16}
    config = AutoConfig.for_model("gemma2", attn_logit_softcapping=None, **options)
    check_supported(config, "it")
    ours = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).eval()
    config = AutoConfig.for_model("gemma2", attn_logit_softcapping=None, **options)
    eager = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(ours.state_dict())
    ids = torch.arange(1, 13).unsqueeze(0)
    with torch.no_grad():
        apart = ours(ids, use_cache=False).logits - eager(ids, use_cache=False).logits
    assert apart.abs().max() < 1e-5
    capped = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gemma2", attn_logit_softcapping=1.0, **options), attn_implementation="eager"
    ).eval()
    capped.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert (capped(ids, use_cache=False).logits - ours(ids, use_cache=False).logits).abs().max() > 1e-3


def test_jitter_of_routers_is_off_and_what_else_draws_is_refused() -> None:
    """Two passes in training mode must be one, and what the sampler draws with."""
    sample = supervised_sample([1, 2, 3, 4, 5, 6], [0, 1, 1, 1, 1, 1])
    for kind, options in (("mixtral", WORKS["mixtral"]), ("minimax_m2", WORKS["minimax_m2"])):
        noisy = make(kind, {**options, "router_jitter_noise": 0.3})
        assert noisy.model.train()(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
        trainer = LocalTrainer(noisy, TrainerOptions(optimizer=OptimizerConfig(), total_steps=1))
        first = trainer.logprobs([sample])[0]
        noisy.model.train()
        batch = collate([sample], 0, CPU)
        twice = [loss_logprobs(noisy.model, batch) for _ in range(2)]
        assert torch.equal(*twice)
        assert np.abs(twice[0][0].detach().numpy() - first[1:]).max() < TOLERANCE
    policy = make("qwen3", HEADS)
    layer = policy.model.model.layers[0]
    layer.register_forward_hook(lambda one, _, output: output + (0.1 * torch.rand(1) if one.training else 0.0))
    with pytest.raises(UsageError, match="Qwen3ForCausalLM draws at random in training mode"):
        LocalTrainer(policy, TrainerOptions(optimizer=OptimizerConfig(), total_steps=1))


@pytest.mark.parametrize("kind", ["afmoe", "hunyuan_v1_moe", "ernie4_5_moe", "gemma4_text"])
def test_experts_by_other_names_are_counted_and_their_routers_known(kind: str) -> None:
    policy = make(kind, WORKS[kind])
    assert (expert_count(policy.model), chosen_count(policy.model)) == (4, 2)
    total, active = count_parameters(policy.model)
    experts = sum(one.numel() for name, one in policy.model.named_parameters() if ".experts." in name)
    assert total - active == experts // 2 > 0
    assert (shape_of(policy.model).experts, shape_of(policy.model).chosen) == (4, 2)
    options = TrainerOptions(optimizer=OptimizerConfig(lr=1e-2), total_steps=1, router_steps=1)
    trainer = LocalTrainer(policy, options)
    before = {name: one.clone() for name, one in policy.model.named_parameters()}
    trainer.forward_backward([supervised_sample([1, 2, 3, 4], [0, 1, 1, 1])], CrossEntropyLoss(denominator=3.0))
    trainer.step(0)
    moved = {name for name, one in policy.model.named_parameters() if not torch.equal(one, before[name])}
    assert moved
    assert all(is_router(name, [one for one, _ in routers_in(policy.model)]) for name in moved)


def test_experts_that_a_config_does_not_count_are_refused() -> None:
    policy = make("qwen3_moe", WORKS["qwen3_moe"])
    check_experts(policy.model, "it")
    vars(policy.model.config)["num_experts_per_tok"] = None
    with pytest.raises(UsageError, match=r"it \(qwen3_moe\) has experts, and its config says not how many"):
        check_experts(policy.model, "it")


def test_docs_have_the_same_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    works, refused = (set(re.findall(r"^\| `(\w+)`", part, re.M)) for part in text.split("## Refused")[:2])
    assert works == set(WORKS)
    assert refused == set(REFUSED)


def test_the_prompt_of_a_run_is_of_its_day() -> None:
    """Templates such as Llama 3.2's write today's date into every prompt."""
    from datetime import date

    policy = make("llama", BASE)
    policy.tokenizer.chat_template = '{{ strftime_now("%d") }}+{{ messages[0]["content"] }}'
    form = PromptFormat(day=date(2026, 11, 29))
    assert form.render(PROBLEMS[0], policy.tokenizer).text == "29+1+2"
    assert replace(form, day=date(2026, 11, 30)).render(PROBLEMS[0], policy.tokenizer).text == "30+1+2"

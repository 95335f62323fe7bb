"""Models, tokenizers, batches and schedules: made, saved, loaded, counted."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlreason.config import PolicyConfig, load, locate
from rlreason.data.prompts import TAGS, wrap
from rlreason.errors import UsageError
from rlreason.policy.batch import collate, make_batches, pack, rollout_sample, supervised_sample, trained_tokens
from rlreason.policy.loading import check_shape, load_tokenizer
from rlreason.policy.model import count_parameters, meta_model
from rlreason.policy.policies import fresh_policy, load_policy
from rlreason.policy.tokenizer import bpe_tokenizer, character_tokenizer
from rlreason.types import Completion

CPU = torch.device("cpu")
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "tie_word_embeddings": True,
}
DENSE = PolicyConfig(model_type="qwen3", model=SHAPE)
MOE = PolicyConfig(
    model_type="qwen3_moe",
    model={**SHAPE, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
)


def test_character_tokenizer_round_trip() -> None:
    tokenizer = character_tokenizer("0123456789+-=;")
    text = wrap("3+5=8;8-2=6", "6", "tags")
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len("3+5=8;8-2=66") + 4  # a tag is one token
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text  # tags are text to the verifier


def test_bpe_tokenizer_learns_words_and_splits_digits() -> None:
    tokenizer = bpe_tokenizer(["the apples and the pears cost 12 dollars"] * 20, 320)
    text = "the apples cost 1234 ≥ é\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    digits = [i for i in ids if tokenizer.decode([i]).strip().isdigit()]
    assert [tokenizer.decode([i]).strip() for i in digits] == ["1", "2", "3", "4"]
    for tag in TAGS:
        assert len(tokenizer.encode(tag, add_special_tokens=False)) == 1


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_save_and_load_keep_every_bit(config: PolicyConfig, tmp_path: Path) -> None:
    policy = fresh_policy(config, "0123456789", (), 3, CPU)
    policy.save(tmp_path / "model")
    again = load_policy(tmp_path / "model", torch.float32, CPU)
    ours, theirs = policy.model.state_dict(), again.model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert again.tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template


def test_the_seed_alone_decides_the_weights() -> None:
    first = fresh_policy(MOE, "01", (), 0, CPU).model
    torch.manual_seed(99)
    again, other = fresh_policy(MOE, "01", (), 0, CPU).model, fresh_policy(MOE, "01", (), 1, CPU).model
    name, weight = next((n, p) for n, p in first.named_parameters() if p.ndim == 2)
    assert torch.equal(weight, dict(again.named_parameters())[name])
    assert not torch.equal(weight, dict(other.named_parameters())[name])


def test_parameters_by_hand() -> None:
    # vocabulary: 3 control tokens, 4 tags, 2 characters = 9
    embed, norms = 9 * 32, 2 * (32 + 32 + 16 + 16) + 32
    attention = 2 * (32 * 32 + 32 * 16 * 2 + 32 * 32)
    dense = embed + norms + attention + 2 * 3 * 32 * 64
    assert count_parameters(fresh_policy(DENSE, "01", (), 0, CPU).model) == (dense, dense)
    expert = 3 * 32 * 32
    total = embed + norms + attention + 2 * (4 * expert + 4 * 32)
    assert count_parameters(fresh_policy(MOE, "01", (), 0, CPU).model) == (total, total - 2 * 2 * expert)


def test_qwen3_30b_a3b_on_the_meta_device() -> None:
    recipe = load(locate("gsm8k_qwen3_moe"))
    total, active = count_parameters(meta_model(recipe.policy))
    assert (total / 1e9, active / 1e9) == pytest.approx((30.5, 3.3), abs=0.06)  # the model card says 30.5 and 3.3
    assert recipe.student is not None
    assert count_parameters(meta_model(recipe.student))[0] / 1e9 == pytest.approx(1.72, abs=0.01)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"model": {"num_experts": 999}}, "has num_experts = 4, but the recipe expects 999"),
        ({"model": {"num_local_experts": 999}}, "has num_local_experts = 4"),
        ({"model": {"rope_theta": 7.0}}, "has rope_theta = .*, but the recipe expects 7.0"),
        ({"model": {"hiden_size": 32}}, "expects hiden_size = 32, .* has not; did you mean 'hidden_size'"),
        ({"model_type": "llama"}, "is of type 'qwen3_moe', but the recipe's model_type is 'llama'"),
        ({"model": {"num_experts": 4, "num_local_experts": 4, "hidden_size": 32}, "model_type": "qwen3_moe"}, ""),
    ],
)
def test_what_the_recipe_says_of_a_loaded_model_is_looked_up(said: dict[str, Any], words: str) -> None:
    config = meta_model(MOE).config
    with pytest.raises(UsageError, match=words) if words else nullcontext():
        check_shape(config, PolicyConfig(**said), "folder")


def test_errors_name_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such folder: .*nowhere"):
        load_policy(tmp_path / "nowhere", torch.float32, CPU)
    policy = fresh_policy(DENSE, "01", (), 0, CPU)
    policy.save(tmp_path / "model")
    with pytest.raises(UsageError, match="hidden_size = 32, but the recipe expects 64"):
        check_shape(policy.model.config, PolicyConfig(model={"hidden_size": 64}), "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="no chat template"):
        load_tokenizer(tmp_path / "model")
    with pytest.raises(UsageError, match="fixed alphabet"):
        fresh_policy(DENSE, None, (), 0, CPU)
    with pytest.raises(UsageError, match="model_type 'qwen33'"):
        fresh_policy(PolicyConfig(model_type="qwen33"), "01", (), 0, CPU)


def completion(prompt: tuple[int, ...], tokens: tuple[int, ...]) -> Completion:
    logprobs = tuple(-0.1 * (i + 1) for i in range(len(tokens)))
    return Completion(prompt_ids=prompt, token_ids=tokens, sampler_logprobs=logprobs, text="", finish_reason="stop")


def test_the_shift_by_hand() -> None:
    batch = collate(
        [
            rollout_sample(completion((5, 6), (7, 8)), 2.0, 0.5, "g"),
            rollout_sample(completion((5,), (7,)), -1.0, 0.25, "g"),
        ],
        0,
        CPU,
    )
    assert batch.token_ids_BT.tolist() == [[5, 6, 7], [5, 7, 0]]
    assert batch.targets_BT.tolist() == [[6, 7, 8], [7, 0, 0]]
    assert batch.loss_mask_BT.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert batch.advantages_BT.tolist() == [[0, 2, 2], [-1, 0, 0]]
    assert batch.weights_BT.tolist() == [[0, 0.5, 0.5], [0.25, 0, 0]]
    assert batch.sampler_logprobs_BT.tolist() == [pytest.approx([0, -0.1, -0.2]), pytest.approx([-0.1, 0, 0])]


def test_a_rollout_of_several_turns_is_a_completion_with_gaps_in_its_mask() -> None:
    """The tool's answer, 31 32, is read and not learnt from."""
    turns = Completion(
        prompt_ids=(5, 6),
        token_ids=(7, 8, 31, 32, 9),
        sampler_logprobs=(-0.1, -0.2, 0.0, 0.0, -0.3),
        loss_mask=(True, True, False, False, True),
        teacher_logprobs=(-1, -2, -3, -4, -5),
        routed_experts=[[[0, 1]]] * 5,
        text="",
        finish_reason="stop",
    )
    sample = rollout_sample(turns, advantages=[1, 2, 3, 4, 5], weights=0.5)
    assert sample.loss_mask.tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert sample.advantages.tolist() == [0, 0, 1, 2, 0, 0, 5]
    assert sample.weights.tolist() == [0, 0, 0.5, 0.5, 0, 0, 0.5]
    for batch in (collate([sample], 0, CPU), pack([sample], 0, CPU)):
        mask_T = batch.loss_mask_BT[0] > 0
        assert batch.targets_BT[0][mask_T].tolist() == [7, 8, 9]
        assert batch.advantages_BT[0][mask_T].tolist() == [1, 2, 5]
        assert batch.teacher_logprobs_BT is not None
        assert batch.teacher_logprobs_BT[0][mask_T].tolist() == [-1, -2, -5]
        assert batch.routed_experts_NLK is not None
        # The prompt's first token predicts its second, of which nothing is known; the last token predicts nothing.
        assert batch.routed_experts_NLK.tolist() == [[[255, 255]]] + [[[0, 1]]] * 5
        assert batch.predicted_by[0].tolist() == [-1, 0, 1, 2, 3, 4, 5]
        assert batch.old_logprobs_BT is None


def test_a_token_without_a_finite_sampler_log_probability_carries_no_loss() -> None:
    nan, inf = float("nan"), float("inf")
    drawn = Completion(
        prompt_ids=(5,),
        token_ids=(7, 8, 9, 10),
        sampler_logprobs=(-0.1, nan, -inf, -0.2),
        text="",
        finish_reason="stop",
    )
    assert trained_tokens(drawn).tolist() == [True, False, False, True]
    sample = rollout_sample(drawn, 2.0, 0.25)
    assert sample.loss_mask.tolist() == [0, 1, 0, 0, 1]
    assert bool(np.isfinite(sample.sampler_logprobs).all())
    assert sample.weights.tolist() == [0, 0.25, 0, 0, 0.25]
    with pytest.raises(ValueError, match="no sampler log-probabilities"):
        rollout_sample(replace(drawn, sampler_logprobs=None))
    with pytest.raises(ValueError, match="sampler_logprobs has 1 entries for 4 tokens"):
        replace(drawn, sampler_logprobs=(0.0,))


def test_pack_keeps_every_row_within_the_budget() -> None:
    rows = [supervised_sample(range(length), [1] * length) for length in (3, 9, 4, 30, 5, 5)]
    batches = make_batches(rows, 20, 0, CPU)
    assert sum(batch.token_ids_BT.shape[0] for batch in batches) == 6
    for batch in batches:
        count, width = batch.token_ids_BT.shape
        assert count * (width + 1) <= 20 or count == 1
    assert sum(float(batch.loss_mask_BT.sum()) for batch in batches) == sum(
        length - 1 for length in (3, 9, 4, 30, 5, 5)
    )


def test_a_bfloat16_model_keeps_its_rotary_frequencies(tmp_path: Path) -> None:
    """Rounded ones are off by up to 0.4 %, and no engine has them so: loading a checkpoint leaves them alone."""
    built = fresh_policy(DENSE, "0123456789", (), 3, CPU, torch.bfloat16)
    built.save(tmp_path / "model")
    loaded = load_policy(tmp_path / "model", torch.bfloat16, CPU)
    for policy in (built, loaded):
        assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.bfloat16}
    theirs = dict(loaded.model.named_buffers())
    for name, buffer in built.model.named_buffers():
        assert torch.equal(buffer, theirs[name]), name
    assert any(name.endswith("inv_freq") for name in theirs)

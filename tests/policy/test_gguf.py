"""Models in one GGUF file: made here by its own package, a few tensors each; what would be read wrongly is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rlreason.policy.gguf as room
from rlreason.config import PolicyConfig
from rlreason.errors import UsageError
from rlreason.evaluation.plan import measurements
from rlreason.evaluation.request import EvalRequest
from rlreason.inputs import RecipeFiles
from rlreason.policy.loading import inspect_model, load_model, locate_model
from rlreason.policy.model import generation_eos_ids

gguf: Any = pytest.importorskip("gguf", reason="the package gguf is not installed")

CPU = torch.device("cpu")
WORDS, HIDDEN, FEED, LAYERS = 40, 32, 48, 2
SHAPES: dict[str, tuple[int, ...]] = {"token_embd.weight": (WORDS, HIDDEN), "output_norm.weight": (HIDDEN,)}
for layer in range(LAYERS):
    SHAPES |= {
        f"blk.{layer}.attn_norm.weight": (HIDDEN,),
        f"blk.{layer}.attn_q.weight": (HIDDEN, HIDDEN),
        f"blk.{layer}.attn_k.weight": (16, HIDDEN),
        f"blk.{layer}.attn_v.weight": (16, HIDDEN),
        f"blk.{layer}.attn_output.weight": (HIDDEN, HIDDEN),
        f"blk.{layer}.ffn_norm.weight": (HIDDEN,),
        f"blk.{layer}.ffn_gate.weight": (FEED, HIDDEN),
        f"blk.{layer}.ffn_up.weight": (FEED, HIDDEN),
        f"blk.{layer}.ffn_down.weight": (HIDDEN, FEED),
    }


def write(path: Path, *, without: Sequence[str] = (), scaling: str | None = None, extra: Sequence[str] = ()) -> Path:
    """A Llama with a tied head, float16, with three tokens that end a generation."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_vocab_size(WORDS)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(7)
    writer.add_eom_token_id(2)
    if scaling is not None:
        writer.add_string("llama.rope.scaling.type", scaling)
    random = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        if name not in without:
            writer.add_tensor(name, random.standard_normal(shape).astype(np.float16))
    for name in extra:
        writer.add_tensor(name, np.ones(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_a_plain_model(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf")
    assert locate_model(file) == str(file)
    shape, model = inspect_model(file), load_model(file, torch.float32, CPU)
    assert {name: one.shape for name, one in shape.named_parameters()} == {
        name: one.shape for name, one in model.named_parameters()
    }
    assert {one.device.type for one in shape.parameters()} == {"meta"}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    expected = np.random.default_rng(0).standard_normal((WORDS, HIDDEN)).astype(np.float16)
    assert np.array_equal(model.get_input_embeddings().weight.detach().numpy(), expected.astype(np.float32))
    assert generation_eos_ids(model) == generation_eos_ids(shape) == (2, 7)
    assert all(one.requires_grad for one in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids = torch.arange(20).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(back(input_ids=ids).logits, model(input_ids=ids).logits)
    assert load_model(file, torch.bfloat16, CPU).dtype == torch.bfloat16


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"without": ["blk.1.ffn_up.weight"]}, r"has 15,264 weights, and LlamaForCausalLM of its config 16,800.*merge"),
    ({"extra": ["blk.0.attn_q_norm.weight"]}, r"weights, and LlamaForCausalLM"),
    ({"extra": ["rope_freqs.weight"]}, r"stretches its rotary positions \(rope_freqs.weight\)"),
    ({"scaling": "yarn"}, r"stretches its rotary positions \(yarn\).*Use its Hugging Face folder"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "tiny.gguf", **changed)
    with pytest.raises(UsageError, match=message):
        inspect_model(file)
    with pytest.raises(UsageError, match=message):
        load_model(file, torch.float32, CPU)


def test_no_scaling_is_none(tmp_path: Path) -> None:
    assert inspect_model(write(tmp_path / "tiny.gguf", scaling="none")).config.vocab_size == WORDS


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "tiny.gguf").read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "empty": b"", "other": b"no model " * 100}.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(UsageError, match=f"{name}.gguf is damaged, cut off or no GGUF file"):
            inspect_model(tmp_path / f"{name}.gguf")


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "tiny.gguf")
    with pytest.raises(UsageError, match=r"no such file: .*nothing.gguf"):
        locate_model(tmp_path / "nothing.gguf")
    with pytest.raises(UsageError, match=r"no such file: owner/model.gguf.*hf download"):
        locate_model("owner/model.gguf")
    with pytest.raises(UsageError, match=r"no config.json; did you mean .*tiny.gguf"):
        locate_model(tmp_path)
    files = RecipeFiles(base=tmp_path)
    assert files.model(PolicyConfig(path="tiny.gguf")).path == str(file)
    assert files.model(PolicyConfig(path="owner/name")).path == "owner/name"
    (measured,) = measurements(EvalRequest(model=str(file), data="arithmetic"))
    assert measured.recipe.policy.path == str(file)
    with pytest.raises(UsageError, match="no such folder or file"):
        measurements(EvalRequest(model=str(tmp_path / "nothing.gguf"), data="arithmetic"))
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package gguf: pip install 'gguf"):
        inspect_model(file)


def test_loading_shows_no_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(write(tmp_path / "tiny.gguf"), torch.float32, CPU)
    assert "quantizing" not in capsys.readouterr().err

"""A dense model as a mixture of experts: it computes the same where the family allows, and is refused where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import rlreason.upcycle as room
from rlreason.cli import app
from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.errors import UsageError
from rlreason.policy.batch import supervised_sample
from rlreason.policy.policies import fresh_policy, load_policy
from rlreason.policy.upcycling import TARGETS, UpcycleOptions, sparse_config
from rlreason.run import atomic
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import TrainerOptions
from rlreason.upcycle import PROBE, ROUNDING, upcycle

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 96, "max_position_embeddings": 256, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
EQUAL = UpcycleOptions(experts=4, top_k=2, noise=0.0)
#: Dense type, what differs from SHAPE, sparse type.
EXACT: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {}, "mixtral"),
    ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}, "mixtral"),
    ("llama", {"head_dim": 16}, "mixtral"),
    ("llama", {}, "qwen2_moe"),
    ("mistral", {"sliding_window": 8}, "mixtral"),
    ("qwen2", {"tie_word_embeddings": True}, "qwen2_moe"),
    ("qwen3", {"head_dim": 32, "attention_bias": True}, "qwen3_moe"),
]


def dense(folder: Path, kind: str = "llama", **changed: Any) -> Path:
    """A model without a parameter at 0 or 1, saved."""
    config = PolicyConfig.model_construct(
        path=None, model_type=kind, model={**SHAPE, **changed}, tokenizer=PolicyConfig().tokenizer
    )
    policy = fresh_policy(config, "".join(sorted(set(PROBE))), (), 0, CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    policy.save(folder)
    return folder


def logits(model: PreTrainedModel) -> Tensor:
    ids = torch.arange(40).remainder(20).unsqueeze(0) + 3
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return found


def plain(folder: Path) -> PreTrainedModel:
    """As transformers loads it, nothing missing."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    loaded: PreTrainedModel = model
    return loaded


@pytest.mark.parametrize(("kind", "changed", "target"), EXACT)
def test_computes_what_the_dense_model_does(tmp_path: Path, kind: str, changed: dict[str, Any], target: str) -> None:
    source = dense(tmp_path / "dense", kind, **changed)
    made = upcycle(str(source), tmp_path / "moe", replace(EQUAL, target=target))
    assert made.target == target
    expected, model = logits(plain(source)), plain(tmp_path / "moe")
    allowed = ROUNDING * float(expected.abs().max())
    assert float((logits(model) - expected).abs().max()) <= allowed
    assert made.difference is not None
    assert made.difference <= 1e-4
    policy = load_policy(tmp_path / "moe", torch.float32, CPU)
    assert float((logits(policy.model) - expected).abs().max()) <= allowed
    experts = model.model.layers[1].mlp.experts
    assert experts.down_proj.shape == (4, 64, 96)
    with torch.no_grad():  # canary: a thousandth more in one expert
        experts.down_proj[0] *= 1.001
    assert float((logits(model) - expected).abs().max()) > allowed


def test_default_targets_and_sizes(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    made = upcycle(str(source), tmp_path / "moe", replace(EQUAL, experts=3))
    network = 3 * 64 * 96 * 2  # of both layers
    assert made.target == "mixtral"
    assert made.parameters == (made.dense_parameters + 2 * network + 3 * 64 * 2, made.dense_parameters + network + 384)
    settings = {**SHAPE, "vocab_size": 40}
    kinds = {kind: sparse_config(AutoConfig.for_model(kind, **settings), EQUAL, "x").model_type for kind in TARGETS}
    assert kinds == {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}


def router_gradient(folder: Path) -> tuple[float, float]:
    """Norms of the gradients of routers and of experts."""
    trainer = LocalTrainer(
        load_policy(folder, torch.float32, CPU), TrainerOptions(optimizer=OptimizerConfig(), total_steps=1)
    )
    ids = torch.arange(40).remainder(20) + 3
    trainer.forward_backward([supervised_sample(ids.numpy(), [0] * 4 + [1] * 36)], CrossEntropyLoss(denominator=36.0))
    named = {name: one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}
    parts = [[one for name, one in named.items() if part in name] for part in ("mlp.gate.", "experts")]
    router, experts = (float(torch.cat([one.flatten() for one in part]).norm()) for part in parts)
    return router, experts


def test_noise_gives_the_router_a_gradient(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    upcycle(str(source), tmp_path / "equal", EQUAL)
    made = upcycle(str(source), tmp_path / "noisy", replace(EQUAL, noise=1e-3))
    router, experts = router_gradient(tmp_path / "equal")
    assert router < 1e-5 * experts
    router, experts = router_gradient(tmp_path / "noisy")
    assert router > 1e-4 * experts
    assert made.difference is not None
    assert 1e-4 < made.difference < 5.0
    one = plain(tmp_path / "noisy").model.layers[0].mlp.experts.down_proj
    gate = plain(source).model.layers[0].mlp.down_proj.weight
    noise = (one - gate).detach()
    assert float(noise.std()) == pytest.approx(1e-3, rel=0.05)
    assert abs(float((noise[0] * noise[1]).mean())) < 1e-7  # each expert has its own


def test_a_warm_up_moves_routers_alone_and_experts_part_after_it(tmp_path: Path) -> None:
    upcycle(str(dense(tmp_path / "dense")), tmp_path / "moe", replace(EQUAL, noise=1e-3))
    options = TrainerOptions(optimizer=OptimizerConfig(lr=1e-2), total_steps=6, router_steps=3)
    trainer = LocalTrainer(load_policy(tmp_path / "moe", torch.float32, CPU), options)
    ids = torch.arange(40).remainder(20) + 3
    sample = supervised_sample(ids.numpy(), [0] * 4 + [1] * 36)

    def weights() -> dict[str, Tensor]:
        return {name: one.detach().clone() for name, one in trainer.model.named_parameters()}

    def moved(before: dict[str, Tensor]) -> set[str]:
        return {name for name, one in weights().items() if not torch.equal(one, before[name])}

    def apart() -> float:
        experts = trainer.model.get_parameter("model.layers.0.mlp.experts.down_proj").detach()
        return float((experts[0] - experts[1]).norm())

    fresh, beginning = weights(), apart()
    for step in range(3):
        trainer.forward_backward([sample], CrossEntropyLoss(denominator=36.0))
        trainer.step(step)
    assert moved(fresh) == {name for name in fresh if "mlp.gate." in name}
    assert len(moved(fresh)) == 2
    assert apart() == beginning
    warmed = weights()
    for step in range(3, 6):
        trainer.forward_backward([sample], CrossEntropyLoss(denominator=36.0))
        trainer.step(step)
    assert moved(warmed) == set(fresh)
    assert apart() > 2 * beginning


def test_the_seed_decides_all(tmp_path: Path) -> None:
    source = str(dense(tmp_path / "dense"))
    noisy = replace(EQUAL, noise=1e-3)
    for name, options in {"a": noisy, "b": noisy, "c": replace(noisy, seed=1)}.items():
        upcycle(source, tmp_path / name, options, compare=False)
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(again[name], one) for name, one in first.items())
    changed = {name for name, one in first.items() if not torch.equal(other[name], one)}
    assert changed == {name for name in first if ".experts." in name or "gate.weight" in name}


def test_written_in_parts_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(dense(tmp_path / "dense", tie_word_embeddings=True))
    upcycle(source, tmp_path / "whole", EQUAL)
    monkeypatch.setattr(room, "SHARD_BYTES", 100_000)
    upcycle(source, tmp_path / "parts", EQUAL)
    files = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(files) > 3
    assert torch.equal(logits(plain(tmp_path / "parts")), logits(plain(tmp_path / "whole")))


def test_the_card_says_where_it_is_from(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    arguments = ["upcycle", str(source), str(tmp_path / "moe"), "--experts", "4", "--top-k", "2", "--seed", "7"]
    done = CliRunner().invoke(app, [*arguments, "--noise", "0.002", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert "mixtral, bfloat16" in done.output
    card = (tmp_path / "moe" / "README.md").read_text(encoding="utf-8")
    for part in (
        atomic.folder_sha256(source),
        str(source),
        "| Experts, of a token | 4, 2 |",
        "0.002, 0.02, 7",
        "mixtral",
    ):
        assert part in card
    assert {one.dtype for one in load_file(tmp_path / "moe" / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoConfig.from_pretrained(tmp_path / "moe").dtype == torch.bfloat16


def test_a_wrong_map_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = str(dense(tmp_path / "dense"))
    true = room.sparse_tensors

    def wrong(*arguments: Any) -> Any:
        return ((name, one * 1.01 if "o_proj" in name else one) for name, one in true(*arguments))

    monkeypatch.setattr(room, "sparse_tensors", wrong)
    with pytest.raises(RuntimeError, match="does not compute what the dense one does"):
        upcycle(source, tmp_path / "moe", EQUAL)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dense"]


REFUSED: list[tuple[str, dict[str, Any], UpcycleOptions, str]] = [
    ("llama", {}, replace(EQUAL, target="qwen3_moe"), "norms its queries and keys.*llama.*use mixtral, qwen2_moe"),
    ("qwen2", {}, replace(EQUAL, target="olmoe"), "norms its queries and keys.*use qwen2_moe"),
    ("mistral", {}, replace(EQUAL, target="mixtrall"), "mixtrall is no sparse model.*mixtral"),
    ("qwen3", {}, replace(EQUAL, target="mixtral"), "no exact map|is no sparse model"),
    ("gemma", {}, EQUAL, "type 'gemma'.*llama, mistral, qwen2, qwen3 only"),
    ("mixtral", {}, EQUAL, "type 'mixtral'"),
    ("llama", {"attention_bias": True}, EQUAL, "attention has biases"),
    ("llama", {"mlp_bias": True}, EQUAL, "experts have not"),
    ("qwen2", {"use_sliding_window": True}, EQUAL, "sliding window"),
    ("llama", {}, replace(EQUAL, top_k=1), "--top-k 1: .*no router"),
    ("llama", {}, replace(EQUAL, experts=1), "--experts 1 is less"),
    ("llama", {}, replace(EQUAL, noise=-1.0), "--noise -1.0"),
    ("llama", {}, replace(EQUAL, router_std=float("nan")), "--router-std nan"),
]


@pytest.mark.parametrize(("kind", "changed", "options", "message"), REFUSED)
def test_what_is_not_exact_is_refused(
    kind: str, changed: dict[str, Any], options: UpcycleOptions, message: str
) -> None:
    config = AutoConfig.for_model(kind, **{**SHAPE, "vocab_size": 40, **changed})
    with pytest.raises(UsageError, match=message):
        sparse_config(config, options, "the model")


def test_places_are_checked_first(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    with pytest.raises(UsageError, match="exists: name a new folder"):
        upcycle(str(source), source, EQUAL)
    with pytest.raises(UsageError, match="does not exist"):
        upcycle(str(source), tmp_path / "no" / "moe", EQUAL)
    with pytest.raises(UsageError, match="no such folder"):
        upcycle(str(tmp_path / "nothing"), tmp_path / "moe", EQUAL)

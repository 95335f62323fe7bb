"""Budgets beside what torch allocates, and bytes that autograd keeps beside those that are counted on shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from rlreason.errors import UsageError
from rlreason.objective import linear
from rlreason.objective.batch import LossOutput
from rlreason.objective.distillation import head as distillation_head
from rlreason.objective.distillation.spec import FORWARD
from rlreason.policy.attention import ATTENTION
from rlreason.policy.batch import collate, pack, supervised_sample
from rlreason.policy.logprobs import hidden_states, plain_head
from rlreason.policy.lora import LoraOptions, add_adapter
from rlreason.sizing import memory
from rlreason.sizing.activations import CountingError, MicroBatch, count_activations, micro_batch
from rlreason.sizing.cut import Cut
from rlreason.sizing.memory import Training, training_memory
from rlreason.sizing.shape import empty_model, shape_of
from rlreason.trainer import distilling
from rlreason.trainer.distilling import DistillationLoss
from rlreason.trainer.forward import CrossEntropyLoss
from rlreason.trainer.options import checkpoint_activations
from rlreason.trainer.protocol import Models

MEASURE = Path(__file__).parent / "measure_step.py"
BATCH = MicroBatch(rows=6, group=3, prompt=16, completion=129)
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 160, "vocab_size": 300, "max_position_embeddings": 8192,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "llama": {"tie_word_embeddings": True},
    "qwen3_moe": {"moe_intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "moe_intermediate_size": 48, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 24, "q_lora_rank": 32,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 8,
    },
}  # fmt: skip
#: As its config.json on the hub has it (Qwen/Qwen3-8B), but for the number of layers and the vocabulary.
QWEN3_8B: dict[str, Any] = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 12288, "vocab_size": 64, "num_hidden_layers": 1,
}  # fmt: skip


def config_of(family: str, **changed: Any) -> PretrainedConfig:
    return AutoConfig.for_model(family, **(SHAPE | FAMILIES[family] | changed))


def rows(batch: MicroBatch) -> list[Any]:
    return [
        supervised_sample(
            [row // batch.group] * batch.prompt + [7] * batch.completion,
            [0] * batch.prompt + [1] * batch.completion,
        )
        for row in range(batch.rows)
    ]


def kept(config: PretrainedConfig, batch: MicroBatch, dtype: torch.dtype, lora: LoraOptions | None = None) -> int:
    """Bytes of the storages that autograd keeps for the backward pass, weights aside: really computed."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION, dtype=dtype).train()
    if lora is not None:
        add_adapter(model, lora)
        model.to(dtype)  # masters are float32, what computes is not
    weights = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    made = pack(rows(batch), 0, torch.device("cpu"))
    with saved_tensors_hooks(note, lambda tensor: tensor):
        states = hidden_states(model, made)
    del states
    return sum(seen.values())


def test_micro_batches_are_as_large_as_the_budget_allows() -> None:
    assert micro_batch(1000, 10, 100, 4) == MicroBatch(rows=9, group=4, prompt=10, completion=100)
    assert micro_batch(1000, 10, 100, 4).tokens == 3 * 10 + 9 * 99
    assert micro_batch(50, 10, 100, 4).rows == 1  # one row at least
    made = pack(rows(BATCH), 0, torch.device("cpu"))
    assert made.token_ids_BT.numel() == BATCH.tokens
    assert len(made.loss_rows_R) == BATCH.loss_rows


@pytest.mark.parametrize(
    ("dtype", "lora"),
    [(torch.float32, None), (torch.bfloat16, LoraOptions(rank=4, alpha=8.0))],
    ids=["full", "lora"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_autograd_keeps_is_what_is_counted(family: str, dtype: torch.dtype, lora: LoraOptions | None) -> None:
    config = config_of(family)
    counted = count_activations(config, BATCH, dtype, lora=lora).kept
    assert counted == pytest.approx(kept(config, BATCH, dtype, lora), rel=0.1)


def test_further_layers_are_counted_and_one_too_few_is_seen() -> None:
    four, three = (count_activations(config_of("qwen3", num_hidden_layers=n), BATCH, torch.float32) for n in (4, 3))
    truth = kept(config_of("qwen3"), BATCH, torch.float32)
    assert four.kept == pytest.approx(truth, rel=0.02)
    assert three.kept != pytest.approx(truth, rel=0.1)


def test_an_8b_model_keeps_eight_megabytes_a_token() -> None:
    """docs/trainer.md: Qwen3-8B's 36 layers in bfloat16, from one layer and two that are really computed."""
    batch = MicroBatch(rows=2, group=2, prompt=16, completion=57)
    one, two = (AutoConfig.for_model("qwen3", **{**QWEN3_8B, "num_hidden_layers": n}) for n in (1, 2))
    first, second = (kept(config, batch, torch.bfloat16) / batch.tokens for config in (one, two))
    whole = AutoConfig.for_model("qwen3", **{**QWEN3_8B, "num_hidden_layers": 36, "vocab_size": 151936})
    measured = first + 35 * (second - first)
    print(f"MiB a token: a layer {(second - first) / 2**20:.4f}, 36 of them {measured / 2**20:.3f}")
    assert count_activations(whole, batch, torch.bfloat16).kept / batch.tokens == pytest.approx(measured, rel=0.02)
    long = micro_batch(16384, 256, 1024, 8)
    # On a GPU rows have no copies of their prompts.
    for flex, least, most in ((False, 7.8, 7.9), (True, 7.4, 7.5)):
        assert least < count_activations(whole, long, torch.bfloat16, flex=flex).kept / long.tokens / 2**20 < most
        again = count_activations(whole, long, torch.bfloat16, checkpointing=True, flex=flex)
        assert 0.31 < again.kept / long.tokens / 2**20 < 0.32
        assert 0.55 < again.peak / long.tokens / 2**20 < 0.58


def measured(family: str, batch: MicroBatch, *, checkpointing: bool, dtype: str = "float32", **changed: Any) -> Any:
    model = SHAPE | FAMILIES[family] | changed
    del model["vocab_size"]
    asked = {
        "family": family, "model": model, "checkpointing": checkpointing, "dtype": dtype,
        "batch": {name: getattr(batch, name) for name in ("rows", "group", "prompt", "completion")},
    }  # fmt: skip
    command = [sys.executable, str(MEASURE), json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("family", "checkpointing", "dtype"),
    [("qwen3", False, "bfloat16"), ("deepseek_v3", True, "float32")],
)
def test_a_step_allocates_its_budget(family: str, checkpointing: bool, dtype: str) -> None:
    batch = MicroBatch(rows=8, group=4, prompt=32, completion=257)
    found = measured(family, batch, checkpointing=checkpointing, dtype=dtype, hidden_size=128, intermediate_size=384)
    assert sum(found["parts"].values()) == pytest.approx(found["peak"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_32k_tokens_with_checkpointing_allocate_their_budget(family: str, rows: int) -> None:
    """One row, and four that share a prompt: docs/scale.md has the numbers."""
    batch = MicroBatch(rows=rows, group=rows, prompt=64, completion=(32768 - 64) // rows + 1)
    found = measured(family, batch, checkpointing=True, hidden_size=128, intermediate_size=384, num_hidden_layers=2)
    planned = sum(found["parts"].values())
    print(f"{family}, {rows} row(s): {found['peak'] / 1e6:,.0f} MB allocated, {planned / 1e6:,.0f} MB planned", found)
    assert batch.tokens == 32768
    assert planned == pytest.approx(found["peak"], rel=0.1)
    assert found["peak"] < 4 * batch.tokens**2  # less than a mask of all its tokens would take alone


def test_parts_by_hand() -> None:
    """One process, four ranks, an adapter: 100 bytes of nothing else than what the docstring's formulas say."""
    shape = shape_of(empty_model(config_of("qwen3")))
    total, layer = shape.total, shape.largest_layer
    nothing = count_activations(config_of("qwen3"), BATCH, torch.bfloat16)

    def parts(**options: Any) -> dict[str, float]:
        budget = training_memory(shape, Training(width=2, **options), BATCH, nothing)
        named = {part.name: part.bytes for part in budget.parts}
        return {name: size for name, size in named.items() if name not in {"activations", "head and work space"}}

    assert parts() == {
        "weights": 4 * total, "gradients": 4 * total, "moments": 8 * total, "bfloat16 copy": 2 * total,
        "gradients of micro-batches": 2 * total,
    }  # fmt: skip
    for threads, sets in ((1, 1), (2, 3), (8, 9)):  # of a CPU
        assert parts(on_gpu=False, threads=threads)["gradients of micro-batches"] == sets * 2 * total
        wide = training_memory(shape, Training(width=4, on_gpu=False, threads=threads), BATCH, nothing)
        assert wide.of("gradients of micro-batches") == sets * 4 * total
    assert not training_memory(shape, Training(width=4), BATCH, nothing).of("gradients of micro-batches")
    root = shape.outside
    gathered = 2 * (2 * layer + root) + 2 * root + max(6 * layer, 4 * root)
    assert parts(cut=Cut(ranks=4), reference=True) == {
        "weights": total, "gradients": total, "moments": 2 * total, "gathered": gathered, "reference": total / 2,
    }  # fmt: skip
    assert parts(cut=Cut(ranks=4), adapter=1000, reference=True) == {
        "weights": 1000 + total / 2, "gradients": 1000, "moments": 2000, "gathered": 2 * (2 * layer + root),
    }  # fmt: skip
    shared = shape_of(empty_model(config_of("qwen3_moe")))
    gathered = Cut(ranks=8, tensor=2, experts=4).layer(shared)
    (others, routed) = shared.layer_parts[-1]
    assert (others + routed, shared.routed) == (shared.largest_layer, routed * shared.routed_layers)
    assert gathered == others / 2 + routed / 4
    offloaded = training_memory(shape, Training(width=2, cut=Cut(ranks=4), offload=True), BATCH, nothing)
    assert offloaded.host == 4 * total
    assert {part.name for part in offloaded.parts} == {"gathered", "activations", "head and work space"}


def test_tiles_are_the_heads() -> None:
    assert memory.CPU_TILE == linear._TILE
    assert memory.CPU_BLOCK == linear._BLOCK
    pytest.importorskip("triton")
    from rlreason.objective.kernels import linear as kernels

    assert memory.GPU_TILE_ROWS == kernels._TILE_ROWS


def test_whole_logits_are_as_many_as_counted() -> None:
    """Of a head that scales its logits. A divergence from a teacher makes none: test_a_divergence_is_made_in_tiles."""

    def made(family: str, **changed: Any) -> Any:
        tiny = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 20000, "intermediate_size": 32, **changed}
        config = AutoConfig.for_model(family, **(SHAPE | tiny))
        return AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION).train()

    def tables(loss: Any, models: Models) -> float:
        batch = collate([supervised_sample([1] * 129, [0] + [1] * 128)], 0, torch.device("cpu"))
        plain_head(models.policy)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            output: LossOutput = loss(models, batch)
            output.loss.backward()  # type: ignore[no-untyped-call]
        events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
        peak = max(accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())))
        return peak / (4 * 128 * 20000)

    scaled = Models(policy=made("granite", logits_scaling=2.0), router_aux_loss=0.0)
    assert not shape_of(scaled.policy).plain_head
    assert tables(CrossEntropyLoss(denominator=1.0), scaled) == pytest.approx(memory.WHOLE_LOGITS, rel=0.1)


def test_a_divergence_is_made_in_tiles() -> None:
    """Its two tiles and blocks, as counted; not one table of whole logits more."""
    assert memory.TEACHER_TILE_ROWS == distillation_head.CHUNK
    assert memory.TEACHER_BLOCKS == 16 * 4 * distillation_head._BLOCK
    rows, vocabulary, hidden = 2048, 4096, 32
    tiny = {"hidden_size": hidden, "num_hidden_layers": 1, "vocab_size": vocabulary, "intermediate_size": 32}
    config = AutoConfig.for_model("llama", **(SHAPE | tiny))
    models = [AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION) for _ in range(2)]
    batch = collate([supervised_sample([1] * (rows + 1), [0] + [1] * rows)], 0, torch.device("cpu"))
    states = torch.zeros(1, rows, hidden, requires_grad=True)
    loss = DistillationLoss(spec=FORWARD, weight=1.0, denominator=1.0)
    with patch.object(distilling, "hidden_states", lambda *_: states):  # the head alone
        both = Models(policy=models[0], teachers=(models[1],))
        loss(both, batch)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            loss(both, batch).loss.backward()  # type: ignore[no-untyped-call]
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    peak = max(accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())))
    counted = 2 * 4 * 1024 * vocabulary + memory.TEACHER_BLOCKS + 4 * hidden * vocabulary + 8 * rows * hidden
    assert 0.7 * counted < peak <= counted
    assert peak < 3 * 4 * rows * vocabulary


def test_models_that_shapes_do_not_run_are_said() -> None:
    with pytest.raises(CountingError, match="OPTForCausalLM does not run on shapes alone"):
        count_activations(AutoConfig.for_model("opt", num_hidden_layers=2), BATCH, torch.float32)
    with pytest.raises(UsageError, match="can't be sized"):
        shape_of(empty_model(AutoConfig.for_model("deepseek_v2")))


def test_a_model_is_as_it_was_after_it_was_counted() -> None:
    config = config_of("deepseek_v3")
    before = [(name, one.shape) for name, one in empty_model(config).named_parameters()]
    first = count_activations(config, BATCH, torch.float32)
    model = empty_model(config)
    checkpoint_activations(model)
    assert [(name, one.shape) for name, one in model.named_parameters()] == before
    assert count_activations(config, BATCH, torch.float32) == first

"""Writes docs/scale.md from the code: `python tests/sizing/scale_page.py > docs/scale.md`; a test holds it to that.

Shapes are those of the models' config.json on the Hugging Face hub.
"""

# ruff: noqa: E501  (a page's text)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from rlreason.policy.lora import LoraOptions
from rlreason.sizing import clock, flops
from rlreason.sizing.activations import MicroBatch, count_activations, micro_batch
from rlreason.sizing.cut import Cut, local_config
from rlreason.sizing.engine import cache_bytes, engine, read_bytes
from rlreason.sizing.gpus import GPUS
from rlreason.sizing.memory import Memory, Training, training_memory
from rlreason.sizing.shape import ModelShape, empty_model, shape_of

#: huggingface.co/Qwen/Qwen3-30B-A3B/blob/main/config.json
QWEN3_30B_A3B: dict[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
#: huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json (without its multi-token prediction layer)
DEEPSEEK_V3: dict[str, Any] = {
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128,
    "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 129280,
    "max_position_embeddings": 163840,
}  # fmt: skip
#: huggingface.co/Qwen/Qwen3-32B/blob/main/config.json
QWEN3_32B: dict[str, Any] = {
    "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 25600, "vocab_size": 151936, "max_position_embeddings": 40960,
}  # fmt: skip
LORA = LoraOptions(rank=16, alpha=32.0)
GPU = GPUS["h100"]
USABLE = 0.95
#: Dollars of a GPU for an hour: what the page is told, as by `--price 2.5`.
PRICE = 2.5
#: One answer: the smallest micro-batch.
ONE = MicroBatch(rows=1, group=16, prompt=256, completion=4096)
GRPO = micro_batch(16384, 256, 4096, 16)
TRACES = micro_batch(16384, 256, 4096, 1)


class Model:
    """A family with its config, counted once."""

    def __init__(self, family: str, settings: dict[str, Any]) -> None:
        self.config = AutoConfig.for_model(family, **settings)
        self.shape: ModelShape = shape_of(empty_model(self.config))

    def memory(self, batch: MicroBatch, ranks: int | Cut, lora: LoraOptions | None = None, **options: Any) -> Memory:
        cut = Cut(ranks=ranks) if isinstance(ranks, int) else ranks
        of_a_rank = local_config(self.config, cut.tensor)
        found = count_activations(of_a_rank, batch, torch.bfloat16, checkpointing=True, lora=lora, flex=True)
        adapter = None if lora is None else self.adapter
        return training_memory(self.shape, Training(width=2, cut=cut, adapter=adapter, **options), batch, found)

    @property
    def adapter(self) -> int:
        from rlreason.plan.budget import adapter_size

        return adapter_size(self.config, LORA)


def gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def sizes(model: Model) -> list[str]:
    shape, one = model.shape, model.shape.attention[0]
    token = cache_bytes(shape, 1, 2)
    return [
        "| what | formula | number |",
        "|---|---|---|",
        f"| parameters | shapes of the empty model | {shape.total / 1e9:.2f} B |",
        f"| active a token | all but (E − k)/E of {shape.routed / 1e9:.2f} B routed | {shape.active / 1e9:.2f} B |"
        if shape.experts
        else f"| active a token | dense | {shape.active / 1e9:.2f} B |",
        f"| weights in bfloat16 | 2 · P | {gb(2 * shape.total)} |",
        f"| largest layer | shapes | {shape.largest_layer / 1e9:.3f} B, {gb(2 * shape.largest_layer)} gathered |",
        f"| keys and values of a token | 2 · {shape.layers} layers · {one.cached} | {token / 1e3:.1f} kB |",
        f"| a delivery of all weights: packed and sent | 2 · P / {clock.PACKING / 1e9:g} GB/s + 2 · P / {clock.DELIVERY / 1e9:g} GB/s | {clock.delivery_time(2 * shape.total):,.1f} s |",
        f"| memory of the first rank's host while it loads | 4 · P: the whole model in float32, before it is cut; with LoRA 2 · F | {gb(4 * shape.total)}; {gb(2 * shape.total)} |",
    ]


FORMULAS = {
    "weights": "(4 P + 2 F) / N",
    "gradients": "4 P / N",
    "moments": "8 P / N",
    "gathered": "2 (2 layers + root), with gradients of P: + 2 root + max(6 layer, 4 root); of e expert ranks a layer has 1/e of its experts",
    "reference": "2 P / N",
    "teacher": "2 T / N",
    "activations": "counted",
    "head and work space": "counted; head: tile, gradient of its weight, rows",
}


def budgets(columns: dict[str, Memory]) -> list[str]:
    names = [name for name in FORMULAS if any(one.of(name) for one in columns.values())]
    lines = [f"| of one GPU | formula | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for name in names:
        cells = " | ".join(
            gb(one.of(name)) if one.of(name) >= 5e7 else f"{one.of(name) / 1e6:.1f} MB" for one in columns.values()
        )
        lines.append(f"| {name} | {FORMULAS[name]} | {cells} |")
    lines.append(f"| **sum** | | {' | '.join(f'**{gb(one.total)}**' for one in columns.values())} |")
    fits = [("fits" if one.total <= USABLE * GPU.memory else "**does not fit**") for one in columns.values()]
    lines.append(f"| of 80 GB, 95 % usable | | {' | '.join(fits)} |")
    return lines


@dataclass(frozen=True, kw_only=True)
class Case:
    """A step of ``rows`` answers on ``gpus``, of which ``ranks`` train and the others draw (none: nothing is drawn)."""

    model: Model
    batch: MicroBatch
    rows: int
    gpus: int
    ranks: int
    tensor_parallel: int = 0
    #: Ranks that hold different experts.
    experts: int = 1
    lora: LoraOptions | None = None


def step(case: Case) -> list[str]:
    """Tokens, operations, seconds by what they wait for, GPU-hours and dollars of one step: each with its formula."""
    model, batch, shape, ranks = case.model, case.batch, case.model.shape, case.ranks
    count = -(-case.rows // batch.rows)
    forward = flops.forward_packed(shape, batch, flex=True)
    done = count * flops.training(forward, recompute=True, lora=case.lora is not None)
    each, cut = -(-count // ranks), Cut(ranks=ranks, experts=case.experts)
    if case.lora is None:
        traffic = clock.cut_traffic(shape, cut, 2, each)
    else:
        traffic = clock.shard_traffic(model.adapter, shape.total, 2, ranks, each)
    waits = clock.exchanges(shape, cut, 2, each * batch.tokens, GPU, recompute=True)
    bound = clock.training_time(done, traffic, GPU, ranks, waits)
    sent = "8 P · (N − 1) / N" if case.lora is None else "(8 P + 4 F) · (N − 1) / N"
    exchanged = []
    if case.experts > 1:
        sent = f"8 · ((P − experts) · (N − 1) / N + experts / {case.experts} · (C − 1) / C), C = {cut.copies}"
        exchanged = [
            f"| tokens to their experts and back | 3 passes · 2 · {shape.routed_layers} layers · {shape.chosen} experts · 2 · {shape.hidden} · {each * batch.tokens:,} positions · {case.experts - 1} / {case.experts}, at {GPU.link(case.experts) / 1e9:g} GB/s | {waits:,.1f} s, beside products |"
        ]  # fmt: skip
    learns = bound.seconds / clock.EFFICIENCY
    tokens = case.rows * batch.completion
    # Of LoRA frozen weights have no gradient: a product less.
    passes = "a · products + b · head + 4 attention − last"
    one = shape.attention[0]
    pairs = forward.attention / (2 * one.heads * (one.key_width + one.value_width) * shape.layers)
    a, b = (4, 3) if case.lora is None else (3, 2)
    lines = [
        "| of a step | formula | number |", "|---|---|---|",
        f"| tokens of answers | {case.rows:,} answers · {batch.completion:,} | {tokens:,} |",
        f"| micro-batches | of {batch.rows} answers behind {batch.prompts} prompt(s) of {batch.prompt}: {batch.tokens:,} positions | {count} |",
        f"| a forward pass of one: products | 2 · {shape.layer_products / 1e9:.3f} B · positions | {forward.products / 1e12:,.0f} TFLOP |",
        f"| its attention | 2 · {one.heads} heads · ({one.key_width} + {one.value_width}) · {shape.layers} layers · {pairs / 1e6:,.2f} M visible pairs | {forward.attention / 1e12:,.0f} TFLOP |",
        f"| its head | 2 · {shape.head / 1e9:.3f} B · {batch.loss_rows:,} answers' tokens | {forward.head / 1e12:,.0f} TFLOP |",
        f"| its last matrices | not recomputed: 2 · {shape.last_products / 1e9:.3f} B · positions | {forward.last / 1e12:,.0f} TFLOP |",
        f"| operations | micro-batches · ({passes}), a = {a}, b = {b} | {done / 1e15:,.1f} PFLOP |",
        f"| products at the peak | operations / ({ranks} · {GPU.flops / 1e12:,.0f} TFLOP/s) | {done / (GPU.flops * ranks):,.1f} s |",
        f"| a GPU's links | {each} · {sent} = {traffic / 1e9:,.0f} GB, at {GPU.link(ranks) / 1e9:g} GB/s | {traffic / GPU.link(ranks):,.1f} s |",
        *exchanged,
        f"| learns | the slower ({bound.by}) / {clock.EFFICIENCY} | {learns:,.0f} s |",
    ]  # fmt: skip
    seconds = learns
    if case.tensor_parallel:
        drawn, said = _drawn(case)
        size, what = (2 * shape.total, "2 P") if case.lora is None else (4 * model.adapter, "the adapter alone: 4 P")
        sent = clock.delivery_time(size)
        lines += [
            *said,
            f"| delivers | {what} / {clock.PACKING / 1e9:g} GB/s (packing) + the same / {clock.DELIVERY / 1e9:g} GB/s | {sent:,.1f} s |",
        ]
        seconds += drawn + sent
    hours = seconds * case.gpus / 3600
    lines += [
        f"| a step | the sum | {seconds:,.0f} s |",
        f"| GPU-hours | step · {case.gpus} / 3,600 | {hours:,.2f} |",
        f"| dollars, at {PRICE} a GPU-hour | a step; of 1M tokens of answers | {hours * PRICE:,.2f}; {hours * PRICE / tokens * 1e6:,.2f} |",
        f"| 1,000 steps | learning: operations · 1,000 / 8.64e19; GPU-hours; dollars | {done * 1000 / 8.64e19:,.3g} PF-days; {hours * 1000:,.0f}; {hours * 1000 * PRICE:,.0f} |",
    ]  # fmt: skip
    return [*lines, ""]


def _drawn(case: Case) -> tuple[float, list[str]]:
    """Seconds of drawing, and how they come about."""
    shape, batch, parallel = case.model.shape, case.batch, case.tensor_parallel
    engines_ = (case.gpus - case.ranks) // parallel
    held = engine(
        shape, 0.9 * GPU.memory, batch.prompt + batch.completion, width=2, tensor_parallel=parallel, most_rows=512
    )
    draw = clock.Draw(
        count=case.rows, prompt=batch.prompt, completion=batch.completion, engines=engines_, rows=held.rows,
        tensor_parallel=parallel, width=2,
    )  # fmt: skip
    each = -(-case.rows // engines_)
    waves = -(-each // held.rows)
    at_once = -(-each // waves)
    read = read_bytes(shape, at_once, batch.prompt + batch.completion / 2, width=2, tensor_parallel=parallel)
    bound = clock.drawing_time(shape, draw, GPU)
    seconds = bound.seconds / clock.EFFICIENCY
    return seconds, [
        f"| drawn together | {case.rows:,} answers on {engines_} engine(s) of {parallel} GPUs, {held.rows} at most | {waves} wave(s) of {at_once} |",
        f"| a token of each | weights that any goes to + keys and values at half length = {read / 1e9:,.1f} GB of each GPU, at {GPU.bandwidth / 1e12:g} TB/s | {read / GPU.bandwidth * 1e3:,.1f} ms |",
        f"| draws | (waves · {batch.completion:,} · a token + prompts; {bound.by}) / {clock.EFFICIENCY} | {seconds:,.0f} s |",
    ]


def engines(model: Model, tensor_parallel: int) -> str:
    found = engine(model.shape, 0.9 * GPU.memory, 4352, width=2, tensor_parallel=tensor_parallel, most_rows=512)
    return (
        f"An engine on {tensor_parallel} GPUs: weights {gb(found.weights)} of each, {gb(found.cache)} for keys and values, "
        f"of which an answer of 4,096 tokens behind 256 takes {found.row / 1e6:,.0f} MB: {found.rows} at a time."
    )


HEAD = """# What fits where

`rlreason plan RECIPE --gpu h100 --gpus 8 --price 2.5` says this of any recipe; here are three cases, each number with its
formula. **This page is written by the code** (`python tests/sizing/scale_page.py > docs/scale.md`; `tests/sizing/test_scale.py` counts most of it again). Nothing on
it was measured on a GPU.

## How it is known

- **Parameters** are counted on an empty model (accelerate's `init_empty_weights`): names and shapes, no memory.
- **Activations** are counted by torch: one layer of each kind runs forward and backward on tensors that have shapes and no numbers, over a packed micro-batch as the
  trainer makes it, and every storage counts while somebody holds it. Beside what autograd keeps of real models the difference is at most 10 % in the tests (dense, Qwen3-MoE,
  DeepSeek-V3; float32, bfloat16; full and LoRA), and a whole step's allocations, weights and moments included, are within 10 % of the budget. A step of 32,768 tokens
  with checkpointing, two layers of width 128, on a CPU: one row of 32,768 takes 507 MB (541 planned), four rows behind one prompt 508 (541), Qwen3-MoE 425 (459).
  These pages count attention by flex_attention, as on a GPU.
- **Ranks that share layers** (`trainer.tensor_parallel` = t, `trainer.expert_parallel` = e) hold (all but experts) / t + experts / e of a gathered layer and the activations of a model with 1/t of its
  heads and inner width; t of them have the same samples, and each computes the whole head of those. What they send each other within a layer is added to the products' time. None of it was measured.
- **A delivery** is packed with checksums on one core of the trainer's host (3.8 GB/s, measured on an EPYC core: [rollouts.md](rollouts.md)) and sent (25 GB/s, an assumption); `--delivery` says both
  at once. Over Ray an adapter travels alone, in float32. What engines do to load it is not in it.
- **Memory of hosts**: the first rank reads the whole model on its host before it is cut, whatever its GPUs hold: in float32 (4 · P bytes), or with LoRA in bfloat16; `trainer.offload` adds each rank's shards.
- **Operations** are 2 · active parameters of layers and head a token, and attention's 2 · heads · (key + value size) a visible pair; backward twice that (LoRA: once), recomputing once more. torch's counter
  agrees within 2 % (the same families, packed and whole rows, with and without checkpointing).
- **Time** is the slower of products at the GPU's peak and bytes at its bandwidth, divided by an *assumed* efficiency of 0.4 (`--efficiency`). Answers are taken to be at full length.
- P = parameters that train, F = frozen ones, T = a teacher's, N = ranks, E = experts, k = chosen ones. "Root" is what is outside of layers. GPUs: `rlreason/sizing/gpus.py`, with sources.

What is *not* in it: the allocator's fragments and CUDA's context (5 % are left for them), padding of rows that are not alike, models that can't be packed (they compute a
prompt once for each row), evaluations and start-up.
"""


def page() -> str:
    moe, big, dense = Model("qwen3_moe", QWEN3_30B_A3B), Model("deepseek_v3", DEEPSEEK_V3), Model("qwen3", QWEN3_32B)
    lines = [HEAD]
    lines += ["## Qwen3-30B-A3B on 8 x 80 GB", "", *sizes(moe), ""]
    lines += budgets(
        {
            "full, N = 6": moe.memory(GRPO, 6), "full, N = 8": moe.memory(GRPO, 8), "full, N = 16": moe.memory(GRPO, 16),
            "LoRA 16, N = 6": moe.memory(GRPO, 6, LORA), "LoRA 16, N = 8": moe.memory(GRPO, 8, LORA),
        }
    )  # fmt: skip
    lines += [
        "",
        "Six ranks leave two GPUs for one engine. With checkpointing throughout.",
    ]
    lines += [
        "",
        engines(moe, 2),
        "",
        "LoRA, six ranks and one engine of two GPUs:",
        "",
        *step(Case(model=moe, batch=GRPO, rows=1024, gpus=8, ranks=6, tensor_parallel=2, lora=LORA)),
        "Training all weights does not fit eight; on sixteen with an engine of two beside them:",
        "",
        *step(Case(model=moe, batch=GRPO, rows=1024, gpus=18, ranks=16, tensor_parallel=2)),
    ]
    lines += ["## DeepSeek-V3 on 32 nodes (256 GPUs)", "", *sizes(big), ""]
    spread = Cut(ranks=224, experts=32)
    lines += budgets({"full, N = 224": big.memory(ONE, 224), "32 of them for experts": big.memory(ONE, spread)})
    layer = big.shape.largest_layer
    lines += [
        "",
        "224 ranks leave 32 GPUs for one engine; micro-batches of a single answer. Shards fit easily, whole layers don't: "
        f"{gb(2 * layer)} are gathered of one, twice as the next one is fetched, and full training has {gb(6 * layer)} of its gradients on their way to being added. "
        f"With `trainer.expert_parallel = 32` each rank has {big.shape.experts // 32} whole experts of a layer and gathers them over the {spread.copies} ranks that have the same; a layer is then "
        f"{gb(2 * spread.layer(big.shape))}. Even so eighty GB are not enough: most of what is too much is the work space of one layer. Experts are taken to be chosen evenly, and buffers of tokens on their way are those that experts in their place have too.",
        "", engines(big, 32), "",
        "A step so:", "",
        *step(Case(model=big, batch=ONE, rows=1024, gpus=256, ranks=224, tensor_parallel=32, experts=32)),
    ]  # fmt: skip
    lines += ["## Distilling into Qwen3-32B on 8 x 80 GB", "", *sizes(dense), ""]
    teacher = moe.shape.total
    lines += budgets(
        {
            "traces, N = 8": dense.memory(TRACES, 8), "traces, N = 16": dense.memory(TRACES, 16),
            "LoRA 16, N = 8": dense.memory(TRACES, 8, LORA),
            "LoRA and KL to 30B-A3B, N = 8": dense.memory(TRACES, 8, LORA, teacher=teacher),
        }
    )  # fmt: skip
    lines += [
        "",
        "Training on traces draws nothing, so all eight GPUs are ranks. The divergence from a teacher is computed in tiles of both models' logits; no whole ones are made.",
        "", "LoRA on traces:", "",
        *step(Case(model=dense, batch=TRACES, rows=64, gpus=8, ranks=8, lora=LORA)),
        "All weights, on sixteen GPUs:", "",
        *step(Case(model=dense, batch=TRACES, rows=64, gpus=16, ranks=16)),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")

"""One case of bench/gpu/train.py, in a process of its own: a GRPO step of a model with random weights.

    python bench/gpu/train_case.py '{"shape": "tiny", "device": "cpu", "seconds": 60, "gate": false}'

The model is made on the device itself, in the dtype that it is stored in: no copy of it is ever on the host. Prints one
line of JSON: tokens/s, share of the GPU's peak, the most memory that was allocated, and what `plan` says of it by part.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from shapes import SHAPES, Shape
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from rlreason.config import OptimizerConfig
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.attention import ATTENTION
from rlreason.policy.lora import LoraOptions, add_adapter, is_adapter
from rlreason.policy.policies import Policy
from rlreason.policy.tokenizer import character_tokenizer
from rlreason.sizing import flops
from rlreason.sizing.activations import MicroBatch, count_activations
from rlreason.sizing.cut import Cut
from rlreason.sizing.memory import Memory, Training, training_memory
from rlreason.sizing.shape import ModelShape, empty_model, shape_of
from rlreason.trainer.forward import PolicyGradientLoss
from rlreason.trainer.local import LocalTrainer
from rlreason.trainer.options import ModelSource, TrainerOptions
from rlreason.trainer.protocol import LossSums, StepStats
from rlreason.trainer.rank import RankSpec, RankTrainer, Share
from rlreason.types import TrainingSample

#: FLOP/s of dense bfloat16 products, by what torch calls the GPU; its data sheet.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12}
LORA = LoraOptions(rank=16, alpha=32.0)
#: How far the device's float32 gradients may be from the CPU's, relative to their length: by the order of sums, as its
#: products are not TensorFloat32.
FLOAT32_LIMIT = 1e-4
#: Its bfloat16 gradients may be so many times further from float32 than those of the CPU are, which tokens that go to
#: other experts decide.
BFLOAT16_TIMES = 2.0


def built(config: PretrainedConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model whose parameters were only ever on ``device``: normal with the config's spread, norms 1, biases 0."""
    with init_empty_weights(include_buffers=False):  # buffers, such as rotary frequencies, are computed
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    generator = torch.Generator(device).manual_seed(0)
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, one in list(module._parameters.items()):
            if one is None:
                continue
            if id(one) not in made:  # a tied one stays one
                made[id(one)] = nn.Parameter(_filled(name, one, dtype, generator, config.initializer_range))
            module._parameters[name] = made[id(one)]
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = None if buffer is None else buffer.to(device)
    model.tie_weights()
    return model.train()


def _filled(
    name: str, like: torch.Tensor, dtype: torch.dtype, generator: torch.Generator, spread: float
) -> torch.Tensor:
    values = torch.empty(like.shape, dtype=dtype, device=generator.device)
    if like.ndim < 2:
        return values.fill_(0.0 if "bias" in name else 1.0)
    return values.normal_(0.0, spread, generator=generator)


@dataclass(frozen=True)
class Source:
    """What ``PolicySource`` is to a trainer: the model, and its shapes alone."""

    config: PretrainedConfig
    device: torch.device

    def load(self, dtype: torch.dtype, _device: torch.device) -> Policy:
        return Policy(model=built(self.config, dtype, self.device), tokenizer=character_tokenizer("0123456789"))

    def inspect(self) -> Policy:
        return Policy(model=empty_model(self.config), tokenizer=character_tokenizer("0123456789"))


def samples_of(batch: MicroBatch, count: int, vocabulary: int) -> list[TrainingSample]:
    """``count`` micro-batches' rows, all loss tokens on-policy."""
    generator = np.random.default_rng(0)
    made = []
    for row in range(count * batch.rows):
        if row % batch.group == 0:
            prompt = generator.integers(3, vocabulary, batch.prompt)
        ids = np.concatenate([prompt, generator.integers(3, vocabulary, batch.completion)])
        mask = np.arange(len(ids)) >= batch.prompt
        values = mask.astype(np.float32)
        made.append(
            TrainingSample(
                token_ids=ids, loss_mask=mask, sampler_logprobs=-2.0 * values, group_id=str(row // batch.group),
                advantages=(row % batch.group - (batch.group - 1) / 2) * values,
                weights=values / (count * batch.rows * batch.completion),
            )
        )  # fmt: skip
    return made


class Steps:
    """A trainer in this process, with shards or without: the same model either way."""

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        options = TrainerOptions(
            optimizer=OptimizerConfig(lr=1e-6), total_steps=1000, compute_dtype=dtype,
            micro_batch_tokens=shape.batch.tokens, activation_checkpointing=shape.checkpointing,
            lora=LORA if shape.lora else None,
        )  # fmt: skip
        self._loss = PolicyGradientLoss(spec=ObjectiveSpec(correction="none"))
        source = Source(shape.config(), device)
        if not shape.sharded:
            policy = source.load(dtype if shape.lora else torch.float32, device)
            self._local: LocalTrainer | None = LocalTrainer(policy, options)
            return
        self._local = None
        if not dist.is_initialized():
            folder = tempfile.mkdtemp()
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        model = ModelSource(source=source, dtype=dtype)  # type: ignore[arg-type]
        self._rank = RankTrainer(RankSpec(model=model, options=options), device)

    def learn(self, samples: list[TrainingSample]) -> LossSums:
        if self._local is not None:
            return self._local.forward_backward(samples, self._loss)
        return self._rank.forward_backward(Share(samples=samples, filler=samples[0]), self._loss)

    def gradients(self) -> list[torch.Tensor]:
        trainer = self._rank if self._local is None else self._local
        parameters = trainer._trainable if self._local is None else trainer._masters  # type: ignore[union-attr]
        found = [one.grad for one in parameters.parameters if one.grad is not None]
        return [(one.full_tensor() if isinstance(one, dist.tensor.DTensor) else one).cpu().double() for one in found]

    def step(self, number: int) -> StepStats:
        return self._rank.step(number) if self._local is None else self._local.step(number)


def distance(found: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Of all gradients as one vector, relative to its length."""
    away = sum(float((a - b).square().sum()) for a, b in zip(found, exact, strict=True))
    return float(np.sqrt(away / sum(float(b.square().sum()) for b in exact)))


def gate(shape: Shape, device: torch.device) -> dict[str, float]:
    """Gradients of the family's small shape on the device beside float32 on the CPU. Ends the run where they differ."""
    small = shape.small()
    samples = samples_of(small.batch, 2, small.model["vocab_size"])

    def of(where: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
        steps = Steps(replace(small, sharded=small.sharded and where == device), where, dtype)
        copied(steps, reference)
        steps.learn(samples)
        return steps.gradients()

    reference: dict[str, torch.Tensor] = {}
    cpu = torch.device("cpu")
    exact = of(cpu, torch.float32)
    found = {
        "float32": distance(of(device, torch.float32), exact),
        "bfloat16": distance(of(device, torch.bfloat16), exact),
        "bfloat16 on the CPU": distance(of(cpu, torch.bfloat16), exact),
    }
    limits = {"float32": FLOAT32_LIMIT, "bfloat16": BFLOAT16_TIMES * found["bfloat16 on the CPU"]}
    for name, limit in limits.items():
        if not found[name] <= limit:
            off = f"gradients in {name} are {found[name]:.1e} from float32's, not within {limit:.1e}"
            raise SystemExit(f"{shape.name}: {off}; nothing was measured")
    return found


def copied(steps: Steps, reference: dict[str, torch.Tensor]) -> None:
    """Give every trainer the numbers of the first one: generators of devices draw others."""
    model = steps._rank.policy.model if steps._local is None else steps._local.model
    for name, one in model.named_parameters():
        local = one.to_local() if isinstance(one, dist.tensor.DTensor) else one
        if name not in reference:
            reference[name] = local.detach().float().cpu().clone()
        local.data.copy_(reference[name])
    if steps._local is not None and steps._local._masters.split:
        masters = steps._local._masters
        for name, one in zip(masters.names, masters.parameters, strict=True):
            one.data.copy_(reference[name])


def planned(shape: Shape, config: PretrainedConfig, counts: ModelShape, device: torch.device) -> Memory:
    """What ``rlreason plan`` says of the case."""
    gpu, lora = device.type == "cuda", LORA if shape.lora else None
    kept = count_activations(
        config, shape.batch, torch.bfloat16, checkpointing=shape.checkpointing, lora=lora, flex=gpu
    )
    adapter = None
    if lora is not None:
        model = empty_model(config)
        add_adapter(model, lora)
        adapter = sum(one.numel() for name, one in model.named_parameters() if is_adapter(name))
    training = Training(width=2, cut=Cut(ranks=1 if shape.sharded else 0), adapter=adapter, on_gpu=gpu)
    return training_memory(counts, training, shape.batch, kept)


def measure(shape: Shape, device: torch.device, seconds: float) -> dict[str, Any]:
    """Build, one step that makes moments and kernels, then steps until ``seconds`` are over, two at least."""
    began = time.monotonic()
    config = shape.config()
    counts = shape_of(empty_model(config))
    memory = planned(shape, config, counts, device)
    samples = samples_of(shape.batch, shape.micro_batches, shape.model["vocab_size"])
    times: list[float] = []

    def steps() -> None:
        trainer = Steps(shape, device, torch.bfloat16)
        while len(times) < 3 or (time.monotonic() - began + max(times[1:]) < seconds and len(times) < 8):
            start = time.monotonic()
            trainer.learn(samples)
            trainer.step(len(times))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.monotonic() - start)

    peak = peak_of(steps, device)
    forward = flops.forward_packed(counts, shape.batch, flex=device.type == "cuda")
    needed = shape.micro_batches * flops.training(forward, lora=shape.lora)
    done = shape.micro_batches * flops.training(forward, lora=shape.lora, recompute=shape.checkpointing)
    tokens = shape.micro_batches * shape.batch.tokens
    best = min(times[1:])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    top = next((one for key, one in PEAKS.items() if key in name), None)
    return {
        "shape": shape.name, "device": name, "parameters": counts.total, "active": counts.active,
        "micro_batch": vars_of(shape.batch), "micro_batches": shape.micro_batches, "tokens": tokens,
        "seconds": times[1:], "first_step_seconds": times[0], "tokens_per_second": tokens / best,
        "teraflops_per_second": needed / best / 1e12,
        # Without and with the products of recomputed layers (arXiv 2204.02311, appendix B).
        "mfu": None if top is None else needed / best / top, "hfu": None if top is None else done / best / top,
        "peak_bytes": peak, "planned_bytes": memory.total,
        "planned": {part.name: part.bytes for part in memory.parts},
    }  # fmt: skip


def vars_of(batch: MicroBatch) -> dict[str, int]:
    return {name: getattr(batch, name) for name in ("rows", "group", "prompt", "completion", "tokens")}


def peak_of(work: Callable[[], None], device: torch.device) -> float:
    """The most bytes that were allocated on ``device`` at a time; of a CPU as torch's profiler sees it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return float(torch.cuda.max_memory_allocated(device))
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    return float(max(accumulate(one.nbytes() for one in sorted(events, key=lambda one: one.start_ns()))))


def main() -> None:
    asked = json.loads(sys.argv[1])
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device, shape = torch.device(asked["device"]), SHAPES[asked["shape"]]
    torch.backends.cuda.matmul.allow_tf32 = False
    found = {"shape": shape.name, "distances": gate(shape, device)} if asked["gate"] else None
    print(json.dumps(found or measure(shape, device, asked["seconds"])))


if __name__ == "__main__":
    main()

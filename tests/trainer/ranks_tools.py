"""Models, samples and ranks that show their gradients: shared by the tests of sharded trainers and adapters."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from rlreason.cluster.actors import ActorGroup, ActorOptions
from rlreason.config import OptimizerConfig, PolicyConfig
from rlreason.delivery.packing import Packer
from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.spec import ObjectiveSpec
from rlreason.policy.batch import supervised_sample
from rlreason.policy.policies import PolicySource, fresh_tokenizer
from rlreason.routing import correction_biases
from rlreason.trainer.forward import CrossEntropyLoss, PolicyGradientLoss
from rlreason.trainer.options import TrainerOptions
from rlreason.trainer.protocol import Loss, Models
from rlreason.trainer.rank import Share
from rlreason.trainer.ray_trainer import Rank
from rlreason.trainer.sharding import whole
from rlreason.types import TrainingSample

CPU = torch.device("cpu")
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
#: Five experts on two or three ranks: uneven shards. DeepSeek's router has a correction bias, which is no parameter.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3_tied": {"tie_word_embeddings": True},
    "qwen3_moe": {"moe_intermediate_size": 16, "num_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "deepseek_v3": {
        "moe_intermediate_size": 16, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4,
    },
}  # fmt: skip


class OpenRank(Rank):
    """A rank that shows its gradients."""

    def gradients(self) -> dict[str, Tensor]:
        """Whole, float32, on rank 0."""
        model = self._opened.policy.model
        return {name: whole(one.grad).clone() for name, one in model.named_parameters() if one.grad is not None}

    def biases(self) -> Tensor:
        """Of its routers, [L, E]."""
        return torch.stack(correction_biases(self._opened.policy.model)).cpu()

    def keep_gathered(self) -> None:
        """The wrong code: what a pass gathered of the root stays, as torch's default has it."""
        model = self._opened.policy.model
        assert isinstance(model, FSDPModule)
        model.set_reshard_after_forward(False, recurse=False)

    def average(self) -> None:
        """The wrong code: gradients are averaged over ranks, as torch's default has it."""
        for module in self._opened.policy.model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(float(self._ranks))

    def narrow_fields(self, share: Share, cast: bool) -> float:
        """Fields of a batch that are not float32 where it is an argument of a module that computes in bfloat16."""
        ((batch, _), *_) = self._opened._batches(share)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=cast)
        return float(fully_shard(_Narrow(), mesh=self._opened._meshes.ranks, mp_policy=policy)(batch))

    def small_buckets(self) -> None:
        """Of 1 MB, until another model is opened."""
        self._packer = Packer(bucket_bytes=1 << 20)

    def begin_measuring(self) -> None:
        """What was freed is given back, and the largest size that this process had is forgotten."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _resident("VmRSS")

    def most(self) -> int:
        """Bytes above what it had when measuring began, at most."""
        return _resident("VmHWM") - self._before


def _resident(key: str) -> int:
    """Bytes: VmRSS, or VmHWM, the most of it."""
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


class _Narrow(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)

    def forward(self, batch: Batch) -> float:  # type: ignore[override]
        return narrow_fields(batch)


def narrow_fields(batch: Batch) -> float:
    """Fields of floating point that are not float32."""
    found = [value for value in (getattr(batch, one.name) for one in fields(batch)) if isinstance(value, Tensor)]
    floats = [one for one in found if one.is_floating_point()]
    assert len(floats) >= 3, "advantages, sampler log-probabilities, weights, mask"
    return float(sum(one.dtype != torch.float32 for one in floats))


@dataclass(frozen=True)
class LossOfFields:
    """A loss that says beside it how many fields of its batches were not float32."""

    loss: Loss
    takes_packed: bool = True
    scores: None = None

    def __call__(self, models: Models, batch: Batch) -> LossOutput:
        output = self.loss(models, batch)
        return replace(output, sums={**output.sums, "narrow": torch.tensor(narrow_fields(batch))})


def source(family: str, seed: int = 0) -> PolicySource:
    config = PolicyConfig(model_type=family.removesuffix("_tied"), model={**SHAPE, **FAMILIES[family]})
    return PolicySource(config=config, tokenizer=fresh_tokenizer(config, "0123456789", ()), seed=seed)


def options(**changed: Any) -> TrainerOptions:
    settings = {"optimizer": OptimizerConfig(lr=1e-3), "total_steps": 10, "micro_batch_tokens": 64, **changed}
    return TrainerOptions(**settings)


def demonstrations(lengths: tuple[int, ...] = (9, 20, 14, 30, 8, 12, 22)) -> tuple[list[TrainingSample], Loss]:
    random = np.random.default_rng(0)
    samples = [supervised_sample(list(random.integers(2, 12, n)), [0] * 3 + [1] * (n - 3)) for n in lengths]
    return samples, CrossEntropyLoss(denominator=float(sum(one.loss_mask.sum() for one in samples)))


def rollouts() -> tuple[list[TrainingSample], Loss]:
    """Groups of four completions of unlike lengths, with sampler log-probs that are a little off."""
    random, samples = np.random.default_rng(1), []
    for group in range(3):
        prompt = random.integers(2, 12, 4)
        for _ in range(4):
            length = int(random.integers(3, 20))
            mask = np.arange(4 + length) >= 4
            samples.append(
                TrainingSample(
                    token_ids=np.concatenate([prompt, random.integers(2, 12, length)]),
                    loss_mask=mask,
                    sampler_logprobs=(-2.5 + 0.1 * random.standard_normal(4 + length)).astype(np.float32) * mask,
                    advantages=np.float32(random.standard_normal()) * mask.astype(np.float32),
                    weights=mask.astype(np.float32) / 100,
                    group_id=f"g{group}",
                )
            )
    return samples, PolicyGradientLoss(spec=ObjectiveSpec(), temperature=1.0)


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference of all gradients over their norm."""
    assert found.keys() == expected.keys()
    apart = sum(float((found[name] - one).double().square().sum()) for name, one in expected.items())
    return float((apart / sum(float(one.double().square().sum()) for one in expected.values())) ** 0.5)


def start(count: int) -> ActorGroup:
    """Ranks that have met, one thread each; their processes find this file."""
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    options = ActorOptions(name="trainer rank", setting="trainer.ranks", address="local", environment=environment)
    group = ActorGroup(OpenRank, count, options, 1)
    group.ask("join", group.ask_one(0, "address"))
    return group

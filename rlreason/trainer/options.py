"""What every trainer is told, and what every trainer does to models and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedModel

from rlreason.attention_options import AttentionWay
from rlreason.policy.lora import LoraOptions
from rlreason.policy.policies import PolicySource
from rlreason.routing import check_followed
from rlreason.types import TrainingSample
from rlreason.wide_routers import wide_names

if TYPE_CHECKING:
    from rlreason.config import OptimizerConfig

#: Tokens of a trial.
_TRIED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerOptions:
    """How a trainer works. ``threads``: CPU threads, each on a micro-batch of its own; never changes a result."""

    optimizer: OptimizerConfig
    #: Optimizer steps of the learning-rate schedule.
    total_steps: int
    compute_dtype: torch.dtype = torch.float32
    #: Of saved checkpoints; None: the compute dtype.
    checkpoint_dtype: torch.dtype | None = None
    #: Positions that one micro-batch computes at most.
    micro_batch_tokens: int = 16384
    threads: int = 1
    #: Skipped steps in a row that end the run.
    max_skipped: int = 5
    #: See ``Models.router_aux_loss``.
    router_aux_loss: float = 0.0
    #: Step of the routers' correction biases (``trainer.bias``); 0: they stay.
    router_bias_update: float = 0.0
    #: Routers compute in float32 where the model computes in bfloat16; and samplers are sent their weights so.
    float32_routers: bool = False
    sends_float32_routers: bool = False
    #: Keep only what enters each layer, and compute the layer again in the backward pass (arXiv 1604.06174).
    activation_checkpointing: bool = False
    #: Over packed tokens: see ``policy.layouts``.
    attention: AttentionWay = "auto"
    #: Train an adapter beside frozen weights.
    lora: LoraOptions | None = None
    #: With shards: parameters, gradients and moments stay in the CPU's memory.
    offload: bool = False
    #: Why the routing of the model must be followed, as for an error; "": it need not be.
    routing: str = ""
    #: Never change the routers of a model with experts.
    freeze_router: bool = False
    #: First steps, in which nothing but the routers is changed.
    router_steps: int = 0
    #: Ranks that compute each layer together, with the same samples, and ranks that share the experts of a layer.
    tensor_parallel: int = 1
    expert_parallel: int = 1

    @property
    def widens(self) -> bool:
        """Whether there is anything to widen."""
        return self.float32_routers and self.compute_dtype != torch.float32

    @property
    def router_dtype(self) -> str:
        """See ``ServedModel.router_dtype``."""
        sent = torch.float32 if self.widens and self.sends_float32_routers else self.compute_dtype
        return str(sent).removeprefix("torch.")

    @property
    def written(self) -> str:
        """What checkpoints hold, such as "bfloat16"."""
        return str(self.checkpoint_dtype or self.compute_dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that a trainer opens, and what it computes in."""

    source: PolicySource
    dtype: torch.dtype


def of_tokens(logprobs_T: npt.NDArray[np.float32], sample: TrainingSample, *, whole: bool) -> npt.NDArray[np.float32]:
    """A batch's row of targets as an array over the sample's tokens."""
    start = 1 if whole else sample.prompt_length
    count = len(sample.token_ids)
    found = np.zeros(count, dtype=np.float32)
    found[start:] = logprobs_T[: count - start]
    return found


def sent_wide(model: PreTrainedModel, options: TrainerOptions) -> frozenset[str]:
    """Parameters that samplers are sent in float32, whatever the model computes in."""
    return wide_names(model) if options.sends_float32_routers else frozenset()


def check_wide(model: PreTrainedModel) -> None:
    """Raise UsageError where the routers of a model are to be float32 and can't be followed."""
    if wide_names(model):
        check_followed(model, 'trainer.router_dtype = "float32"')


def switch_noise_off(model: nn.Module) -> None:
    """Dropout, and the noise that some routers add to what they read in training mode (Mixtral, MiniMax, DBRX).

    Modules keep their share in ``p``, or in a number of their own that they hand to a function (OPT, Seed-OSS).
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                vars(module)[name] = 0.0


def why_not_repeatable(model: PreTrainedModel) -> str:
    """Why two passes in training mode differ, of a model with its noise off; "" where they are equal.

    Only what draws at random is found: kernels that add in any order are no choice of the model's.
    """
    training, device = model.training, model.device
    words = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.arange(_TRIED, device=device)[None] % words
    devices = [device] if device.type == "cuda" else []
    draws = torch.cuda.get_rng_state if device.type == "cuda" else torch.get_rng_state
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices), torch.autocast(device.type, enabled=False):
            before = draws()
            first, second = (model(input_ids=ids, use_cache=False).logits for _ in range(2))
            same = torch.equal(before, draws()) or torch.equal(first, second)
    finally:
        model.train(training)
    if same:
        return ""
    return (
        f"{type(model).__name__} draws at random in training mode, and not by dropout or jitter, which are off here: "
        "no step could be repeated, and what is trained is not what the sampler draws with. docs/models.md lists the "
        "models that work"
    )


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Have each layer computed again in the backward pass, in training mode. Names and numbers stay the same."""
    model.gradient_checkpointing_enable({"use_reentrant": False})

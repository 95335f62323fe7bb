"""The optimizer and its learning-rate schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rlreason.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up, then constant, linear or cosine decay.

    Decay ends at ``final_lr_ratio`` of the peak.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    shape = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr_ratio + (1.0 - config.final_lr_ratio) * shape)


class PolicyOptimizer:
    """AdamW over a model's parameters with a scheduled learning rate and a clipped gradient norm."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, total_steps: int) -> None:
        self._config = config
        self._total_steps = total_steps
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in self._parameters if parameter.ndim >= 2]
        rest = [parameter for parameter in self._parameters if parameter.ndim < 2]
        self._adamw = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=config.lr,
            betas=config.betas,
            fused=True,
        )

    def step(self, step: int) -> tuple[Tensor, float]:
        """Apply the accumulated gradients as step ``step``; returns (gradient norm before clipping, learning rate)."""
        rate = learning_rate(self._config, step, self._total_steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return norm, rate

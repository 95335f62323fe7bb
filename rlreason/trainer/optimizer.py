"""The optimizer, its learning-rate schedule, and the guard against gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rlreason.trainer.protocol import NonFiniteError, StepStats

if TYPE_CHECKING:
    from rlreason.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Learning rate of step ``step`` (from 0): linear warm-up, then constant, linear or cosine decay.

    Decay begins after the warm-up and reaches ``final_lr_ratio`` of the peak at the last step.
    """
    if step < config.warmup_steps:
        return config.rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.rate
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps - 1)
    shape = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.rate * (config.final_lr_ratio + (1.0 - config.final_lr_ratio) * shape)


class Trainable(Protocol):
    """The float32 parameters that an optimizer changes: of a model in this process, or one rank's shards of them."""

    @property
    def names(self) -> Sequence[str]:
        """As the model calls them."""
        ...

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """In the order of ``names``; ``.grad`` holds what was accumulated."""
        ...

    def round_into_model(self) -> None:
        """Have the model compute with the parameters as they are now."""
        ...

    def sample(self) -> Tensor:
        """Some of the weights, the same ones each time."""
        ...

    def compare(self, before: Tensor) -> tuple[float, bool]:
        """(share of the sampled weights that differ from ``before``, whether all are finite)."""
        ...

    def finite(self, tensor: Tensor) -> bool:
        """Whether every element of a parameter or gradient is finite."""
        ...


class PolicyOptimizer:
    """AdamW over the float32 masters of a model with a scheduled learning rate and a clipped gradient norm.

    A step whose gradient norm is not finite is skipped: clipping would spread one NaN over every gradient, and AdamW's
    moments would keep it for good. ``max_skipped`` of them in a row end the run.
    """

    def __init__(self, masters: Trainable, config: OptimizerConfig, total_steps: int, max_skipped: int = 5) -> None:
        self._masters = masters
        self._config = config
        self._total_steps = total_steps
        self._max_skipped = max_skipped
        #: Steps skipped since the last one that was not.
        self.skipped_in_a_row = 0
        groups = []
        for own in _by_mesh(masters.parameters):
            decayed, rest = [one for one in own if one.ndim >= 2], [one for one in own if one.ndim < 2]
            groups += [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(
            groups,
            lr=config.rate,
            betas=config.betas,
            fused=True,
        )

    def step(self, step: int) -> StepStats:
        """Apply the accumulated gradients as step ``step`` and clear them.

        Raises NonFiniteError where ``max_skipped`` steps in a row had a non-finite gradient norm, or where the step
        made weights that are not finite.
        """
        rate = learning_rate(self._config, step, self._total_steps)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        graded = _by_mesh([one for one in self._masters.parameters if one.grad is not None])
        total = _norm(graded)
        norm = float(total)
        if not math.isfinite(norm):
            stats = self._skip(norm, rate)
        else:
            for own in graded:
                nn.utils.clip_grads_with_norm_(own, self._config.max_grad_norm, total)
            before = self._masters.sample()
            self._adamw.step()
            self._masters.round_into_model()
            self.skipped_in_a_row = 0
            stats = StepStats(grad_norm=norm, learning_rate=rate, moved=self._moved(before))
        self._adamw.zero_grad(set_to_none=True)
        return stats

    def _skip(self, norm: float, rate: float) -> StepStats:
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self._max_skipped:
            bad = (
                name
                for name, one in zip(self._masters.names, self._masters.parameters, strict=True)
                if one.grad is not None and not self._masters.finite(one.grad)
            )
            raise NonFiniteError(
                f"{self.skipped_in_a_row} steps in a row had a gradient norm of {norm} and were skipped; first tensor "
                f"with a non-finite gradient: {next(bad, 'none, their norm overflows')}. The weights are those of the "
                "last finite step. Usual causes: a learning rate that is too high, a loss that divides by zero, an "
                'overflow in bfloat16 (try policy.dtype = "float32")'
            )
        return StepStats(grad_norm=norm, learning_rate=rate, moved=0.0, skipped=True)

    def _moved(self, before: Tensor) -> float:
        moved, finite = self._masters.compare(before)
        if not finite:
            name = next(
                name
                for name, one in zip(self._masters.names, self._masters.parameters, strict=True)
                if not self._masters.finite(one)
            )
            raise NonFiniteError(
                f"the optimizer step made weights that are not finite, {name} first, at a learning rate of "
                f"{self._adamw.param_groups[0]['lr']:g}: lower it; the last saved state is from before"
            )
        return moved

    def state(self) -> dict[str, Tensor]:
        """The moments and step counts of every parameter by name, such as "exp_avg.lm_head.weight"."""
        found = {}
        for name, parameter in zip(self._masters.names, self._masters.parameters, strict=True):
            for key, value in self._adamw.state[parameter].items() if parameter in self._adamw.state else ():
                found[f"{key}.{name}"] = value
        return found

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave; a parameter without an entry has not been stepped yet."""
        self._adamw.state.clear()
        for name, parameter in zip(self._masters.names, self._masters.parameters, strict=True):
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"step.{name}" in state:
                self._adamw.state[parameter] = {key: state[f"{key}.{name}"].to(parameter.device) for key in keys}


def _by_mesh(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters that the same ranks share, which one operation may take together; all of them without shards."""
    found: dict[object, list[nn.Parameter]] = {}
    for one in parameters:
        found.setdefault(one.device_mesh if isinstance(one, DTensor) else None, []).append(one)
    return list(found.values())


def _norm(groups: Sequence[Sequence[nn.Parameter]]) -> Tensor:
    """The norm of all gradients, of all ranks."""
    norms = [nn.utils.get_total_norm([one.grad for one in own if one.grad is not None]) for own in groups]
    whole = [one.full_tensor() if isinstance(one, DTensor) else one for one in norms]
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.zeros(())

"""Which implementation runs: Triton's kernels where the tensors are on a CUDA device, the torch path elsewhere.

The functions have one signature and one result. Triton is imported when a CUDA tensor first asks for it, and only
then; where it is not installed, the torch path runs there too, with one warning.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from rlreason.objective import linear, loss, scores
from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.linear import DEFAULT_HEAD, HeadLoss, HeadOptions
from rlreason.objective.loss import LossAndGrad, LossInputs
from rlreason.objective.scores import StepScores
from rlreason.objective.spec import ObjectiveSpec


def uses_triton(device: torch.device) -> bool:
    """Whether the kernels run for tensors on ``device``."""
    return device.type == "cuda" and _triton_installed()


@cache
def _triton_installed() -> bool:
    """Looked up, and warned about, once per process."""
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "Triton is not installed: objectives run as plain torch operations on the GPU, with the same results, slower. "
        "Install the triton release that belongs to this torch (torch's CUDA wheels bring it).",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


def step_advantages(given: StepScores, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """``scores.step_advantages``: on a GPU one launch makes them there, and nothing waits for it."""
    if uses_triton(device):
        from rlreason.objective.kernels.advantage import step_advantages as chosen
    else:
        chosen = scores.step_advantages
    return chosen(given, device, dtype)


def evaluate(logprobs_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec) -> LossAndGrad:
    """``loss.evaluate``."""
    if uses_triton(logprobs_BT.device):
        from rlreason.objective.kernels import loss as kernels

        return kernels.evaluate(logprobs_BT, inputs, spec)
    return loss.evaluate(logprobs_BT, inputs, spec)


def policy_loss(
    logprobs_BT: Tensor,
    old_logprobs_BT: Tensor | None,
    batch: Batch,
    spec: ObjectiveSpec,
    reference_logprobs_BT: Tensor | None = None,
) -> LossOutput:
    """``loss.policy_loss``."""
    if uses_triton(logprobs_BT.device):
        from rlreason.objective.kernels import loss as kernels

        return kernels.policy_loss(logprobs_BT, old_logprobs_BT, batch, spec, reference_logprobs_BT)
    return loss.policy_loss(logprobs_BT, old_logprobs_BT, batch, spec, reference_logprobs_BT)


def linear_policy_loss(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    batch: Batch,
    spec: ObjectiveSpec,
    old_logprobs_BT: Tensor | None = None,
    reference_logprobs_BT: Tensor | None = None,
    options: HeadOptions = DEFAULT_HEAD,
) -> HeadLoss:
    """``linear.linear_policy_loss``."""
    if uses_triton(hidden_BTH.device):
        from rlreason.objective.kernels.linear import linear_policy_loss as chosen
    else:
        chosen = linear.linear_policy_loss
    return chosen(hidden_BTH, weight_VH, batch, spec, old_logprobs_BT, reference_logprobs_BT, options)


def linear_supervised_loss(
    hidden_BTH: Tensor, weight_VH: Tensor, batch: Batch, denominator: float, options: HeadOptions = DEFAULT_HEAD
) -> HeadLoss:
    """``linear.linear_supervised_loss``."""
    if uses_triton(hidden_BTH.device):
        from rlreason.objective.kernels.linear import linear_supervised_loss as chosen
    else:
        chosen = linear.linear_supervised_loss
    return chosen(hidden_BTH, weight_VH, batch, denominator, options)


def linear_logprobs(
    hidden_BTH: Tensor, weight_VH: Tensor, batch: Batch, options: HeadOptions = DEFAULT_HEAD
) -> tuple[Tensor, Tensor]:
    """``linear.linear_logprobs``."""
    if uses_triton(hidden_BTH.device):
        from rlreason.objective.kernels.linear import linear_logprobs as chosen
    else:
        chosen = linear.linear_logprobs
    return chosen(hidden_BTH, weight_VH, batch, options)

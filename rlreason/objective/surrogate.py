"""S(ρ, A) of each clip rule, with its gradient dS/d log π in closed form: both in one pass.

Tensors broadcast; ρ > 0. The gradient of ρ-based rules is dS/d log ρ, which is dS/d log π at token level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlreason.objective.kl import binary_kl
from rlreason.objective.spec import ObjectiveSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """Value of the surrogate, its gradient by log π, and where a bound took the gradient away or capped it."""

    value: Tensor
    grad_logprob: Tensor
    #: 1 there, else 0, in the dtype of the rest: comparisons and products of floats are several times as fast on a CPU
    #: as those with bools. [1, 1] where a rule has no bound.
    clipped: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateInputs:
    """Where the policy stands: what a clip rule may look at. All shapes broadcast to [B, T]."""

    #: ρ, at the level that the spec asks for.
    ratio: Tensor
    advantages: Tensor
    #: Current log π, and the sampler's.
    logprobs: Tensor
    sampler_logprobs: Tensor


def surrogate(inputs: SurrogateInputs, spec: ObjectiveSpec) -> Surrogate:
    """S of the spec's clip rule."""
    if spec.clip == "ppo":
        return ppo(inputs, spec)
    if spec.clip == "cispo":
        return cispo(inputs, spec)
    if spec.clip == "sapo":
        return sapo(inputs, spec)
    unclipped = inputs.ratio * inputs.advantages
    if spec.clip == "dppo_tv":
        return _masked(unclipped, dppo_tv_mask(inputs, spec))
    if spec.clip == "dppo_kl":
        return _masked(unclipped, dppo_kl_mask(inputs, spec))
    return Surrogate(value=unclipped, grad_logprob=unclipped, clipped=unclipped.new_zeros((1, 1)))


def ppo(inputs: SurrogateInputs, spec: ObjectiveSpec) -> Surrogate:
    """min(ρA, clip(ρ)A), PPO arXiv 1707.06347, with bounds of their own on either side (DAPO arXiv 2503.14476).

    ``dual_clip``: not below c·A where A < 0 (arXiv 1912.09729). ``delta``: min(ρ, δ)A in the first branch
    (INTELLECT-2, arXiv 2505.07291).
    """
    ratio, advantages = inputs.ratio, inputs.advantages
    unclipped = ratio * advantages
    bounded = ratio.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high)
    value = bounded.mul_(advantages) if bounded.shape == unclipped.shape else bounded * advantages
    torch.minimum(unclipped, value, out=value)
    clipped = torch.lt(value, unclipped, out=torch.empty_like(value))
    if spec.delta:
        beyond = (ratio > spec.delta) & (advantages < 0)
        value = torch.where(beyond, spec.delta * advantages, value)
        clipped = clipped.masked_fill_(beyond, 1.0)
    if spec.dual_clip:
        floor = torch.where(advantages < 0, spec.dual_clip * advantages, -torch.inf)
        clipped = clipped.masked_fill_(floor > value, 1.0)
        value = torch.maximum(value, floor)
    return Surrogate(value=value, grad_logprob=unclipped.addcmul_(unclipped, clipped, value=-1.0), clipped=clipped)


def cispo(inputs: SurrogateInputs, spec: ObjectiveSpec) -> Surrogate:
    """stop_gradient(clip(ρ)) · A · log π: a clipped token keeps its gradient (MiniMax-M1, arXiv 2506.13585)."""
    capped = inputs.ratio.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high)
    grad = capped * inputs.advantages
    return Surrogate(
        value=grad * inputs.logprobs,
        grad_logprob=grad,
        clipped=torch.ne(capped, inputs.ratio, out=torch.empty_like(capped)),
    )


def sapo(inputs: SurrogateInputs, spec: ObjectiveSpec) -> Surrogate:
    """4/τ · σ(τ(ρ − 1)) · A (SAPO, arXiv 2511.20347): no bound, a gradient that fades with the distance from 1."""
    advantages, ratio = inputs.advantages, inputs.ratio
    up = torch.gt(advantages, 0.0, out=torch.empty_like(advantages))  # torch.where would take ten times as long
    down = torch.le(advantages, 0.0, out=torch.empty_like(advantages))
    tau = up.mul_(spec.sapo_tau_positive).add_(down, alpha=spec.sapo_tau_negative)
    gate = (ratio - 1.0).mul_(tau) if ratio.shape == tau.shape else (ratio - 1.0) * tau
    gate.sigmoid_()
    grad = (4.0 * gate).mul_(1.0 - gate).mul_(ratio).mul_(advantages)
    value = torch.div(4.0, tau).mul_(gate).mul_(advantages)
    return Surrogate(value=value, grad_logprob=grad, clipped=value.new_zeros((1, 1)))


def dppo_tv_mask(inputs: SurrogateInputs, spec: ObjectiveSpec) -> Tensor:
    """Where DPPO (arXiv 2602.04879, total variation) drops the token: its probability is further from the sampler's
    than the bound, on the side that the advantage pushes to."""
    change = inputs.logprobs.exp() - inputs.sampler_logprobs.exp()
    return torch.where(inputs.advantages > 0, change > spec.clip_high, change < -spec.clip_low)


def dppo_kl_mask(inputs: SurrogateInputs, spec: ObjectiveSpec) -> Tensor:
    """As ``dppo_tv_mask``, of the binary divergence (arXiv 2602.04879)."""
    divergence, rises = binary_kl(inputs.sampler_logprobs, inputs.logprobs), inputs.logprobs > inputs.sampler_logprobs
    falls = inputs.logprobs < inputs.sampler_logprobs
    up, down = rises & (divergence > spec.clip_high), falls & (divergence > spec.clip_low)
    return torch.where(inputs.advantages > 0, up, down)


def _masked(unclipped: Tensor, dropped: Tensor) -> Surrogate:
    value = unclipped.masked_fill(dropped, 0.0)
    return Surrogate(value=value, grad_logprob=value, clipped=dropped.expand_as(value).to(value.dtype))

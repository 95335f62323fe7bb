"""Inputs, implementations and exact results of the three kernels' benchmark.

N = completions or rows, B = sequences, T = positions, H = hidden size, V = vocabulary. The objective is PPO's clip with
a KL term (k3) and one mean over all tokens: what every way computes.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from measure import Way
from torch import Tensor

from rlreason.objective import dispatch, linear, loss, scores
from rlreason.objective.batch import Batch
from rlreason.objective.linear import HeadOptions
from rlreason.objective.loss import LossInputs
from rlreason.objective.scores import StepScores
from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(clip_low=0.2, clip_high=0.2, kl_coef=0.04, correction="none")

GROUP_SPEC = ObjectiveSpec(std_epsilon=1e-4, correction="none")


def has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def has_kernels(device: torch.device) -> bool:
    """On a GPU, or in Triton's interpreter."""
    return dispatch.uses_triton(device) or os.environ.get("TRITON_INTERPRET") == "1"


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- K1


@dataclass(frozen=True)
class ScoreInputs:
    """Scores as the host has them: sending them is a part of what is measured."""

    step: StepScores
    device: torch.device

    @staticmethod
    def make(rollouts: int, group: int, offset: int, device: torch.device) -> ScoreInputs:
        step = StepScores(
            spec=GROUP_SPEC,
            max_tokens=4096,
            scores_N=(_random(0, rollouts) > 0.3).double() + offset,
            sizes_G=(group,) * (rollouts // group),
            lengths_N=(_random(1, rollouts).abs() * 500).long().clamp(1, 4096),
            truncated_N=torch.zeros(rollouts, dtype=torch.bool),
        )
        return ScoreInputs(step=step, device=device)


def advantage_exact(inputs: ScoreInputs) -> tuple[Tensor, ...]:
    return (scores.step_advantages(inputs.step, torch.device("cpu"), torch.float64),)


def advantage_ways(inputs: ScoreInputs, compiled: bool) -> list[Way]:
    step, device = inputs.step, inputs.device

    def plain(scores_N: Tensor) -> Tensor:
        """Groups of one size, no missing score; float64, as float32 cancels under an offset."""
        scores_GM = scores_N.view(len(step.sizes_G), -1)
        mean_G1, std_G1 = scores_GM.mean(1, keepdim=True), scores_GM.std(1, keepdim=True)
        return ((scores_GM - mean_G1) / (std_G1 + GROUP_SPEC.std_epsilon)).view(-1).float()

    def one_pass(scores_N: Tensor) -> Tensor:
        """The deviation as RL-Kernel takes it: from E[x²] − E[x]² of the group, in float32."""
        scores_GM = scores_N.float().view(len(step.sizes_G), -1)
        count, mean_G1 = scores_GM.shape[1], scores_GM.mean(1, keepdim=True)
        variance_G1 = (scores_GM.square().mean(1, keepdim=True) - mean_G1.square()).clamp(min=0.0)
        std_G1 = (variance_G1 * count / (count - 1)).sqrt()
        return ((scores_GM - mean_G1) / (std_G1 + GROUP_SPEC.std_epsilon)).view(-1)

    def sent(function: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: (function(step.scores_N.to(device)),)

    ways = []
    if has_kernels(device):
        from rlreason.objective.kernels.advantage import step_advantages

        ways.append(Way("kernel", lambda: (step_advantages(step, device),), ours=True, note="as a stage calls it"))
    ways.append(Way("torch path", lambda: (scores.step_advantages(step, device),), note="on the CPU, then sent"))
    ways.append(Way("torch eager", sent(plain), note="even groups"))
    ways.append(Way("one pass, float32", sent(one_pass), note="even groups; RL-Kernel's variance, in plain torch"))
    if compiled:
        ways.append(Way("torch.compile", sent(torch.compile(plain)), note="as eager"))
    return ways


# ---- K2


@dataclass(frozen=True)
class TokenInputs:
    now_BT: Tensor
    tokens: LossInputs

    @staticmethod
    def make(rows: int, width: int, device: torch.device) -> TokenInputs:
        now_BT = -_random(0, rows, width).abs()
        before_BT = now_BT + 0.1 * _random(1, rows, width)
        mask_BT = (_random(2, rows, width) < 1.0).float()
        tokens = LossInputs(
            mask_BT=mask_BT.to(device),
            sampler_logprobs_BT=before_BT.to(device),
            advantages_BT=_random(3, rows, 1).repeat(1, width).to(device),
            weights_BT=torch.full((rows, width), 1.0 / float(mask_BT.sum())).to(device),
            old_logprobs_BT=before_BT.to(device),
            reference_logprobs_BT=(now_BT + 0.1 * _random(4, rows, width)).to(device),
        )
        return TokenInputs(now_BT=now_BT.to(device), tokens=tokens)


def wide(tokens: LossInputs) -> LossInputs:
    """float64, on the CPU."""
    old, reference = tokens.old_logprobs_BT, tokens.reference_logprobs_BT
    assert old is not None
    assert reference is not None
    return LossInputs(
        mask_BT=tokens.mask_BT.cpu(),
        sampler_logprobs_BT=tokens.sampler_logprobs_BT.cpu().double(),
        advantages_BT=tokens.advantages_BT.cpu().double(),
        weights_BT=tokens.weights_BT.cpu().double(),
        old_logprobs_BT=old.cpu().double(),
        reference_logprobs_BT=reference.cpu().double(),
    )


def token_exact(inputs: TokenInputs) -> tuple[Tensor, ...]:
    done = loss.evaluate(inputs.now_BT.cpu().double(), wide(inputs.tokens), SPEC)
    return (done.loss, done.grad_logprobs_BT)


def plain_loss(now_BT: Tensor, tokens: LossInputs) -> Tensor:
    """The objective in plain operations, for autograd."""
    assert tokens.old_logprobs_BT is not None
    assert tokens.reference_logprobs_BT is not None
    ratio_BT = (now_BT - tokens.old_logprobs_BT).exp()
    bounded_BT = ratio_BT.clamp(1.0 - SPEC.clip_low, 1.0 + SPEC.clip_high)
    gain_BT = torch.min(ratio_BT * tokens.advantages_BT, bounded_BT * tokens.advantages_BT)
    d_BT = tokens.reference_logprobs_BT - now_BT
    kl_BT = d_BT.exp() - d_BT - 1.0
    return ((SPEC.kl_coef * kl_BT - gain_BT) * tokens.weights_BT * tokens.mask_BT).sum()


def token_ways(inputs: TokenInputs, compiled: bool) -> list[Way]:
    tokens = inputs.tokens

    def evaluated(evaluate: Callable[..., loss.LossAndGrad]) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            done = evaluate(inputs.now_BT, tokens, SPEC)
            return (done.loss, done.grad_logprobs_BT)

        return call

    def with_autograd(function: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        leaf = inputs.now_BT.clone().requires_grad_()

        def call() -> tuple[Tensor, ...]:
            value = function(leaf)
            return (value.detach(), *torch.autograd.grad(value, leaf))

        return call

    ways = []
    if has_kernels(inputs.now_BT.device):
        from rlreason.objective.kernels.loss import evaluate

        ways.append(Way("kernel", evaluated(evaluate), ours=True, note="loss, gradient, 7 metrics"))
    ways.append(Way("torch path", evaluated(loss.evaluate), note="loss, gradient, 7 metrics; blocks fit a CPU's cache"))
    ways.append(Way("torch eager", with_autograd(lambda now: plain_loss(now, tokens)), note="loss, gradient"))
    if compiled:
        fused = torch.compile(plain_loss)
        ways.append(Way("torch.compile", with_autograd(lambda now: fused(now, tokens)), note="loss, gradient"))
    if has_liger():
        ways.append(Way("Liger ppo_loss_fn", with_autograd(_liger_tokens(tokens)), note="loss, gradient, 2 metrics"))
    return ways


def _liger_tokens(tokens: LossInputs) -> Callable[[Tensor], Tensor]:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    def call(now_BT: Tensor) -> Tensor:
        value, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            now_BT,
            tokens.mask_BT,
            tokens.advantages_BT[:, 0],
            tokens.mask_BT,
            ref_per_token_logps=tokens.reference_logprobs_BT,
            old_per_token_logps=tokens.old_logprobs_BT,
            beta=SPEC.kl_coef,
            loss_type="bnpo",  # one mean over the tokens of the batch, of one process
        )
        result: Tensor = value
        return result

    return call


# ---- K3


@dataclass(frozen=True)
class HeadInputs:
    hidden_BTH: Tensor
    weight_VH: Tensor
    batch: Batch
    tokens: LossInputs
    rows_R: Tensor

    @staticmethod
    def make(rows: int, hidden: int, vocabulary: int, device: torch.device) -> HeadInputs:
        """``rows`` tokens in sequences of up to 2,048, all of them loss tokens. bfloat16."""
        width = min(2048, rows)
        shape = (rows // width, width)
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=device)

        hidden_BTH = normal(*shape, hidden).bfloat16()
        weight_VH = (normal(vocabulary, hidden) / hidden**0.5).bfloat16()
        targets_BT = torch.randint(0, vocabulary, shape, generator=generator, device=device)
        before = torch.cat([_chosen(h, weight_VH, t) for h, t in zip(hidden_BTH, targets_BT, strict=True)]).view(shape)
        before_BT = before + 0.1 * normal(*shape)
        batch = Batch(
            token_ids_BT=targets_BT,
            targets_BT=targets_BT,
            loss_mask_BT=torch.ones(shape, device=device),
            sampler_logprobs_BT=before_BT,
            advantages_BT=normal(shape[0], 1).repeat(1, width),
            weights_BT=torch.full(shape, 1.0 / rows, device=device),
        )
        reference_BT = before_BT + 0.1 * normal(*shape)
        return HeadInputs(
            hidden_BTH=hidden_BTH.requires_grad_(),
            weight_VH=weight_VH.requires_grad_(),
            batch=batch,
            tokens=LossInputs.from_batch(batch, ObjectiveSpec(), before_BT, reference_BT),
            rows_R=torch.arange(rows, device=device),
        )


def _chosen(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor) -> Tensor:
    """log π of one sequence."""
    logits_TV = (hidden_TH @ weight_VH.t()).float()
    chosen_T = logits_TV.gather(-1, targets_T[:, None])[:, 0]
    return chosen_T - logits_TV.logsumexp(-1)


def head_exact(inputs: HeadInputs) -> tuple[Tensor, ...]:
    """Through whole float64 logits on the CPU."""
    hidden_BTH, weight_VH = (t.detach().cpu().double().requires_grad_() for t in (inputs.hidden_BTH, inputs.weight_VH))
    batch, tokens = inputs.batch, wide(inputs.tokens)
    now_BT = torch.log_softmax(hidden_BTH @ weight_VH.t(), -1).gather(-1, batch.targets_BT.cpu()[..., None])[..., 0]
    exact = replace(
        batch,
        loss_mask_BT=tokens.mask_BT,
        sampler_logprobs_BT=tokens.sampler_logprobs_BT,
        advantages_BT=tokens.advantages_BT,
        weights_BT=tokens.weights_BT,
    )
    value = loss.policy_loss(now_BT, tokens.old_logprobs_BT, exact, SPEC, tokens.reference_logprobs_BT).loss
    return (value.detach(), *torch.autograd.grad(value, (hidden_BTH, weight_VH)))


def head_ways(inputs: HeadInputs, compiled: bool) -> list[Way]:
    leaves = (inputs.hidden_BTH, inputs.weight_VH)

    def plain(hidden_BTH: Tensor, weight_VH: Tensor) -> Tensor:
        """As in transformers: bfloat16 logits, then float32."""
        logits_BTV = (hidden_BTH @ weight_VH.t()).float()
        targets_BT1 = inputs.batch.targets_BT[..., None]
        return plain_loss(torch.log_softmax(logits_BTV, -1).gather(-1, targets_BT1)[..., 0], inputs.tokens)

    def with_autograd(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        def call() -> tuple[Tensor, ...]:
            value = function(*leaves)
            return (value.detach(), *torch.autograd.grad(value, leaves))

        return call

    def ours(module: object, options: HeadOptions) -> Callable[[], tuple[Tensor, ...]]:
        old, reference = inputs.tokens.old_logprobs_BT, inputs.tokens.reference_logprobs_BT

        def value(hidden_BTH: Tensor, weight_VH: Tensor) -> Tensor:
            done = module.linear_policy_loss(hidden_BTH, weight_VH, inputs.batch, SPEC, old, reference, options)  # type: ignore[attr-defined]
            result: Tensor = done.loss
            return result

        return with_autograd(value)

    forward = HeadOptions(rows_R=inputs.rows_R, gradient="forward")
    recompute = replace(forward, gradient="recompute")
    ways = []
    if has_kernels(inputs.weight_VH.device):
        from rlreason.objective.kernels import linear as kernels

        ways.append(Way("kernel, gradient in forward", ours(kernels, forward), ours=True, note="3 products"))
        ways.append(Way("kernel, recompute", ours(kernels, recompute), ours=True, note="4 products"))
    if inputs.weight_VH.device.type == "cpu":
        ways.append(Way("torch path", ours(linear, forward), ours=True, note="3 products"))
    ways.append(Way("torch eager", with_autograd(plain), note="whole logits"))
    if compiled:
        ways.append(Way("torch.compile", with_autograd(torch.compile(plain)), note="whole logits"))
    if has_liger():
        ways.append(
            Way("Liger fused GRPO", with_autograd(_liger_head(inputs, compiled)), note="4 products, 2 in float32")
        )
    return ways


def _liger_head(inputs: HeadInputs, compiled: bool) -> Callable[[Tensor, Tensor], Tensor]:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOLoss

    fused = LigerFusedLinearGRPOLoss(
        beta=SPEC.kl_coef, loss_type="bnpo", use_ref_model=True, compiled=compiled, temperature=1.0
    )
    tokens = inputs.tokens

    def call(hidden_BTH: Tensor, weight_VH: Tensor) -> Tensor:
        value, _ = fused(
            hidden_BTH,
            weight_VH,
            inputs.batch.targets_BT,
            tokens.mask_BT,
            tokens.advantages_BT[:, 0],
            ref_per_token_logps=tokens.reference_logprobs_BT,
            old_per_token_logps=tokens.old_logprobs_BT,
        )
        result: Tensor = value
        return result

    return call

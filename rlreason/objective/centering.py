"""Score centering (Marek and Ryabinin, arXiv 2609.20807): what the sampler's distribution adds to a step is taken out.

R = loss rows, V = vocabulary, E = entries of all rows' sets H. At one position p is the policy, q what the token was
drawn from, f(v) the weight that the objective would give token v: its gradient is −w A f(y) ∇log p(y). The mean of
that over y ~ q, with an advantage that knows nothing of y, is −w A Σ_v m(v) ∇log p(v), m = q f. It is 0 where q = p;
else every step moves the policy that way, whatever was rewarded: drift. The term

    w A C,   C = Σ_{v in H} stop_gradient(m(v) − α p(v)) log p(v)

takes it out. Where H is all that could be drawn, α = Σm/Σp and C's gradient by the logits is m − p Σm: exact. Where H
is the sampler's most probable tokens, the rest is taken for ρ p with ρ = (1 − Σ_H q)/max(1 − Σ_H p, 1e-6), and
α = ρ f(1/ρ). f = 1 without a correction; tis: m = min(p, high q); mis and icepop: m = p where p/q is in bounds, else 0
(NeMo RL's formulas). Importance sampling without a bound has m = p: nothing is left to take out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlreason.objective.batch import Batch, LossOutput
from rlreason.objective.correction import correction_weights, sequence_gates
from rlreason.objective.kl import LOG_RATIO_LIMIT
from rlreason.objective.loss import LossAndGrad, LossInputs
from rlreason.objective.spec import ObjectiveSpec
from rlreason.objective.surrogate import SurrogateInputs, surrogate
from rlreason.objective.token_rows import TokenRows

_LEAST_TAIL = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class CentredRows:
    """C of some rows and its gradient: dC/dz_v = [v in H] ``coefficients_E`` − ``total_R`` p(v)."""

    value_R: Tensor
    total_R: Tensor
    coefficients_E: Tensor


def centred(rows: TokenRows, logprobs_E: Tensor, advantages_R: Tensor, spec: ObjectiveSpec) -> CentredRows:
    """C of each row, with ``logprobs_E`` = log p of its entries. Raises ValueError where log q was not recorded."""
    if rows.logprobs_E is None:
        raise ValueError("score centering needs the log-probabilities of the sampler's tokens, and got ids alone")
    dtype = logprobs_E.dtype
    logprobs_E = logprobs_E if rows.whole else logprobs_E.double()  # few entries, and tails that are small differences
    log_q_E = rows.logprobs_E.to(logprobs_E.dtype)
    p_E, q_E = logprobs_E.exp(), log_q_E.exp()
    up_R = advantages_R > 0
    weights_E = _weight(logprobs_E, log_q_E, up_R[rows.row_E], spec)
    mass_E = q_E * weights_E
    if rows.whole:
        alpha_R = rows.sums(mass_E) / rows.sums(p_E).clamp(min=_LEAST_TAIL)
    else:
        of_q_R, of_p_R = (1.0 - rows.sums(values_E) for values_E in (q_E, p_E))
        rho_R = of_q_R.clamp(min=0.0) / of_p_R.clamp(min=_LEAST_TAIL)
        log_rho_R = rho_R.clamp(min=torch.finfo(rho_R.dtype).tiny).log()
        alpha_R = rho_R * _weight(-log_rho_R, torch.zeros_like(log_rho_R), up_R, spec)
    coefficients_E = mass_E - alpha_R[rows.row_E] * p_E
    return CentredRows(
        value_R=rows.sums(coefficients_E * logprobs_E).to(dtype),
        total_R=rows.sums(coefficients_E).to(dtype),
        coefficients_E=coefficients_E.to(dtype),
    )


def _weight(log_p: Tensor, log_q: Tensor, up: Tensor, spec: ObjectiveSpec) -> Tensor:
    """f of tokens with these log-probabilities. ``up``: whether the position's A > 0, which clips look at."""
    log_ratio = (log_p - log_q).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    if spec.old == "sampler":
        sign = torch.where(up, 1.0, -1.0).to(log_p.dtype)
        inputs = SurrogateInputs(
            ratio=log_ratio.exp().unsqueeze(0),
            advantages=sign.unsqueeze(0),
            logprobs=log_p.unsqueeze(0),
            sampler_logprobs=log_q.unsqueeze(0),
        )
        return surrogate(inputs, spec).grad_logprob.squeeze(0) * sign
    if spec.correction == "none" or spec.correction_level != "token":
        return torch.ones_like(log_p)
    return correction_weights(log_ratio.unsqueeze(0), torch.ones_like(log_ratio).unsqueeze(0), spec).squeeze(0)


def gains(logprobs_BT: Tensor, inputs: LossInputs, spec: ObjectiveSpec) -> Tensor:
    """w A of each token, [B, T], times what its whole sequence is weighed with: the factor of C in the loss."""
    mask_BT = inputs.mask_BT.to(logprobs_BT.dtype)
    kept_BT = mask_BT > 0
    gains_BT = torch.where(kept_BT, inputs.weights_BT * inputs.advantages_BT, 0.0)
    if spec.correction != "none" and spec.correction_level != "token":
        old_BT = logprobs_BT if inputs.old_logprobs_BT is None else inputs.old_logprobs_BT
        mismatch_BT = torch.where(kept_BT, old_BT - inputs.sampler_logprobs_BT, 0.0)
        gains_BT = gains_BT * correction_weights(mismatch_BT, mask_BT, spec)
    if spec.gates_sequences:
        gains_BT = gains_BT * sequence_gates(
            logprobs_BT, inputs.sampler_logprobs_BT, mask_BT, inputs.advantages_BT, spec
        )
    return gains_BT


def with_centering(done: LossAndGrad, gains_R: Tensor, value_R: Tensor) -> LossAndGrad:
    """The loss with Σ w A C in it, and its size among the metrics. The gradient by the logits is the head's."""
    added = (gains_R * value_R).sum(dtype=torch.float64)
    sums = {**done.sums, "centering/size": value_R.abs().sum()}
    return replace(done, loss=done.loss + added, sums=sums)


def centred_output(
    output: LossOutput, logits_BTV: Tensor, batch: Batch, spec: ObjectiveSpec, old_logprobs_BT: Tensor | None
) -> LossOutput:
    """``policy_loss``'s output with the centering of whole logits (cut, and divided by the temperature), by autograd:
    for heads that are no plain product."""
    if batch.sampled_from is None:
        raise ValueError(f'centering = "{spec.centering}" needs to know what the tokens were drawn from')
    sets, places_R = batch.sampled_from, batch.loss_rows_R
    if places_R is None:
        places_R = batch.loss_mask_BT.reshape(-1).nonzero()[:, 0]
    all_RV = torch.log_softmax(logits_BTV.flatten(0, 1).index_select(0, places_R), dim=-1)
    logprobs_E = all_RV[sets.row_E, sets.ids_E]
    found = centred(sets, logprobs_E.detach(), batch.advantages_BT.reshape(-1)[places_R], spec)
    targets_R1 = batch.targets_BT.reshape(-1)[places_R].unsqueeze(1)
    now_N = all_RV.new_zeros(batch.targets_BT.numel())
    now_N.index_copy_(0, places_R, all_RV.detach().gather(1, targets_R1).squeeze(1))
    inputs = LossInputs.from_batch(batch, spec, old_logprobs_BT, None)
    gains_R = gains(now_N.view_as(batch.loss_mask_BT), inputs, spec).reshape(-1)[places_R]
    added = (gains_R[sets.row_E] * found.coefficients_E * logprobs_E).sum()
    sums = {**output.sums, "centering/size": found.value_R.abs().sum()}
    return LossOutput(loss=output.loss + added, sums=sums, maxima=output.maxima)

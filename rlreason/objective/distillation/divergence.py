"""Divergences of rows with closed gradients by the student's logits. No autograd.

R = rows (loss tokens), V = words, K = words of the support S; p = student, q = teacher, y = the drawn token. ``z_RV``
are the student's logits; a row's gradient belongs to its own logits, so rows may be computed in any split. Probability
of the tail is a logsumexp over the words outside of S, never one minus a sum (which loses all digits when it is small).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlreason.objective.distillation.spec import DistillationSpec


@dataclass(slots=True, kw_only=True)
class Rows:
    """What the divergence says of each row, [R] each; ``gradient_RV`` by the logits.

    ``forward_R``, ``reverse_R``, ``jsd_R``: the three divergences (β = ½) over the words that the support has: exact
    with all words, lower bounds with a tail. None where the support has too few words. Entropies in nats.
    """

    value_R: Tensor
    gradient_RV: Tensor
    forward_R: Tensor | None = None
    reverse_R: Tensor | None = None
    jsd_R: Tensor | None = None
    entropy_R: Tensor | None = None
    teacher_entropy_R: Tensor | None = None
    #: p_T and q_T.
    tail_R: Tensor | None = None
    teacher_tail_R: Tensor | None = None
    #: Share of the student's own k most probable words that are in S.
    overlap_R: Tensor | None = None


def _times(p: Tensor, x: Tensor) -> Tensor:
    """p · x, where 0 · ∞ is 0: a word of probability 0 adds nothing."""
    return torch.where(p == 0, torch.zeros_like(p), p * x)


def at_least(logq: Tensor, floor: float | None) -> Tensor:
    """log q with ``DistillationSpec.floor``; NaN and +∞ stay what they are."""
    return logq if floor is None else torch.maximum(logq, logq.new_tensor(floor))


def between(logp_RV: Tensor, logq_RV: Tensor, spec: DistillationSpec) -> Rows:
    """The divergence over all words of two normalised distributions, and its gradient by the logits of the first.

    forward: p − q. reverse: p(log p − log q − R). jsd: (1−β) p (log(p/M) − KL(p||M)).
    """
    logq_RV = at_least(logq_RV, spec.floor)
    p_RV, q_RV = logp_RV.exp(), logq_RV.exp()
    forward_R = _times(q_RV, logq_RV - logp_RV).sum(dim=1)
    of_p_RV = _times(p_RV, logp_RV - logq_RV)
    reverse_R = of_p_RV.sum(dim=1)
    half_R, _ = _jensen_shannon(logp_RV, logq_RV, p_RV, q_RV, 0.5)
    if spec.divergence == "forward":
        value_R, gradient_RV = forward_R, p_RV - q_RV
    elif spec.divergence == "reverse":
        value_R, gradient_RV = reverse_R, of_p_RV - p_RV * reverse_R.unsqueeze(1)
    else:
        value_R, gradient_RV = _jensen_shannon(logp_RV, logq_RV, p_RV, q_RV, spec.beta)
    return Rows(
        value_R=value_R,
        gradient_RV=gradient_RV,
        forward_R=forward_R,
        reverse_R=reverse_R,
        jsd_R=half_R,
        entropy_R=-_times(p_RV, logp_RV).sum(dim=1),
        teacher_entropy_R=-_times(q_RV, logq_RV).sum(dim=1),
    )


def _jensen_shannon(logp_RV: Tensor, logq_RV: Tensor, p_RV: Tensor, q_RV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    weight = logp_RV.new_tensor(beta)
    logm_RV = torch.logaddexp(logq_RV + weight.log(), logp_RV + torch.log1p(-weight))
    of_p_RV = _times(p_RV, logp_RV - logm_RV)
    to_middle_R = of_p_RV.sum(dim=1)
    value_R = beta * _times(q_RV, logq_RV - logm_RV).sum(dim=1) + (1.0 - beta) * to_middle_R
    return value_R, (1.0 - beta) * (of_p_RV - p_RV * to_middle_R.unsqueeze(1))


def with_tail(z_RV: Tensor, ids_RK: Tensor, logq_RK: Tensor, log_tail_R: Tensor, spec: DistillationSpec) -> Rows:
    """The divergence over S and one word for the rest: at most the full one, 0 with gradient 0 where p = q.

    ``log_tail_R``: log q_T; −∞ where S has all words.
    """
    logp_RV = torch.log_softmax(z_RV, dim=1)
    logp_RK = logp_RV.gather(1, ids_RK)
    rest_R = logp_RV.scatter(1, ids_RK, -torch.inf).logsumexp(dim=1)
    words = between(
        torch.cat([logp_RK, rest_R.unsqueeze(1)], dim=1), torch.cat([logq_RK, log_tail_R.unsqueeze(1)], dim=1), spec
    )
    # A word of the tail has its share p_v/p_T of the tail's gradient.
    of_tail_R1, rest_R1 = words.gradient_RV[:, -1:], rest_R.unsqueeze(1)
    share_RV = torch.where(rest_R1 == -torch.inf, torch.zeros_like(logp_RV), (logp_RV - rest_R1).exp())
    words.gradient_RV = (share_RV * of_tail_R1).scatter(1, ids_RK, words.gradient_RV[:, :-1])
    words.tail_R, words.teacher_tail_R = rest_R.exp(), log_tail_R.exp()
    words.entropy_R = -_times(logp_RV.exp(), logp_RV).sum(dim=1)
    words.teacher_entropy_R = None
    words.overlap_R = _overlap(z_RV, ids_RK)
    return words


def _overlap(z_RV: Tensor, ids_RK: Tensor) -> Tensor:
    own_RK = z_RV.topk(ids_RK.shape[1], dim=1).indices
    marked_RV = torch.zeros_like(z_RV).scatter_(1, ids_RK, 1.0)
    return marked_RV.gather(1, own_RK).mean(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The drawn token of each row. ``ratio_R`` is ρ, without gradient."""

    ids_R: Tensor
    logq_R: Tensor
    ratio_R: Tensor


def sampled(z_RV: Tensor, drawn: Drawn) -> Rows:
    """ρ sg[log p_y − log q_y] log p_y: over y drawn from p its gradient has the mean of the reverse KL's."""
    logp_RV = torch.log_softmax(z_RV, dim=1)
    y_R1 = drawn.ids_R.unsqueeze(1)
    cost_R1 = (drawn.ratio_R * (logp_RV.gather(1, y_R1).squeeze(1) - drawn.logq_R)).unsqueeze(1)
    p_RV = logp_RV.exp()
    gradient_RV = (-p_RV * cost_R1).scatter_add(1, y_R1, cost_R1)
    return Rows(value_R=cost_R1.squeeze(1), gradient_RV=gradient_RV, entropy_R=-_times(p_RV, logp_RV).sum(dim=1))


def unbiased(z_RV: Tensor, ids_RK: Tensor, logq_RK: Tensor, drawn: Drawn) -> Rows:
    """S in full and the tail by the drawn token: Σ_S sg[p ℓ] log p + ρ 1[y∉S] sg[ℓ_y] log p_y, ℓ = log p − log q.

    Its mean gradient is the reverse KL's for every S that does not depend on y; y put into S by force would bias it.
    """
    logp_RV = torch.log_softmax(z_RV, dim=1)
    p_RV, logp_RK = logp_RV.exp(), logp_RV.gather(1, ids_RK)
    of_support_RK = _times(logp_RK.exp(), logp_RK - logq_RK)
    y_R1 = drawn.ids_R.unsqueeze(1)
    outside_R = ~(ids_RK == y_R1).any(dim=1)
    cost_R = drawn.ratio_R * (logp_RV.gather(1, y_R1).squeeze(1) - drawn.logq_R)
    cost_R = torch.where(outside_R, cost_R, torch.zeros_like(cost_R))
    costs_RV = torch.zeros_like(z_RV).scatter(1, ids_RK, of_support_RK).scatter_add(1, y_R1, cost_R.unsqueeze(1))
    value_R = costs_RV.sum(dim=1)
    tail_R = logp_RV.scatter(1, ids_RK, -torch.inf).logsumexp(dim=1).exp()
    return Rows(
        value_R=value_R,
        gradient_RV=costs_RV - p_RV * value_R.unsqueeze(1),
        entropy_R=-_times(p_RV, logp_RV).sum(dim=1),
        tail_R=tail_R,
        overlap_R=_overlap(z_RV, ids_RK),
    )

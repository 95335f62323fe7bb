"""The objectives once more, from their formulas, in Python floats: number after number, no tensor, no shared code.

Slow and plain on purpose. ``tests/objective/test_conformance.py`` holds the fast path against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlreason.objective.spec import ObjectiveSpec

Rows = list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A step: rewards (None: no verdict) of completions, their groups, and log-probabilities of their loss tokens."""

    rewards: list[float | None]
    groups: list[int]
    truncated: list[bool]
    baselines: list[float]
    now: Rows
    old: Rows
    sampler: Rows
    reference: Rows
    max_tokens: int

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.now]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def deviation(values: list[float], ddof: int) -> float:
    if len(values) < 2 or max(values) == min(values):
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - ddof))


def penalised(problem: Problem, spec: ObjectiveSpec) -> list[float | None]:
    """Rewards with DAPO's length penalty."""
    if spec.overlong != "soft_penalty":
        return list(problem.rewards)
    cache = spec.overlong_share * problem.max_tokens
    rewards: list[float | None] = []
    for reward, length in zip(problem.rewards, problem.lengths, strict=True):
        if length <= problem.max_tokens - cache:
            penalty = 0.0
        elif length <= problem.max_tokens:
            penalty = ((problem.max_tokens - cache) - length) / cache
        else:
            penalty = -1.0
        rewards.append(None if reward is None else reward + penalty)
    return rewards


def advantages(problem: Problem, spec: ObjectiveSpec) -> tuple[list[float], list[bool]]:
    """(A, whether it carries loss) of each completion."""
    rewards, lengths = penalised(problem, spec), problem.lengths
    if spec.overlong == "mask_from_baseline":
        rewards = [None if cut else reward for reward, cut in zip(rewards, problem.truncated, strict=True)]
    kept = [reward is not None and length > 0 for reward, length in zip(rewards, lengths, strict=True)]
    if spec.overlong == "mask":
        kept = [one and not cut for one, cut in zip(kept, problem.truncated, strict=True)]
    everyone = [reward for reward in rewards if reward is not None]
    centred: list[float] = []
    for at, reward in enumerate(rewards):
        mates = [i for i in range(len(rewards)) if problem.groups[i] == problem.groups[at] and rewards[i] is not None]
        values = [float(rewards[i]) for i in mates]  # type: ignore[arg-type]
        if reward is None:
            centred.append(0.0)
            continue
        same = len(values) < 2 or max(values) == min(values)
        if spec.baseline == "none":
            centred.append(reward)
        elif spec.baseline == "batch":
            centred.append(reward - mean(everyone))
        elif spec.baseline == "given":
            centred.append(reward - problem.baselines[at])
        elif same:
            centred.append(0.0)
        elif spec.baseline == "mean":
            centred.append(reward - mean(values))
        elif spec.baseline == "leave_one_out":
            centred.append(reward - mean([float(rewards[i]) for i in mates if i != at]))  # type: ignore[arg-type]
        else:
            weighted = math.fsum(lengths[i] * float(rewards[i]) for i in mates)  # type: ignore[arg-type]
            centred.append(reward - weighted / math.fsum(lengths[i] for i in mates))
    return _scaled(problem, spec, rewards, centred, kept), kept


def _scaled(
    problem: Problem, spec: ObjectiveSpec, rewards: list[float | None], centred: list[float], kept: list[bool]
) -> list[float]:
    everyone = [reward for reward in rewards if reward is not None]
    tokens = [x for x, n, one in zip(centred, problem.lengths, kept, strict=True) if one for _ in range(n)]
    out = []
    for at, x in enumerate(centred):
        mates = [r for r, g in zip(rewards, problem.groups, strict=True) if g == problem.groups[at] and r is not None]
        if not kept[at]:
            out.append(0.0)
        elif spec.scale == "none":
            out.append(x)
        elif spec.scale == "group_std":
            std = deviation(mates, spec.std_ddof)
            out.append(x / (std + spec.std_epsilon) if std else 0.0)
        elif spec.scale == "group_mean":
            out.append(x / mean(mates) if min(mates) >= 0 and mean(mates) > 0 else 0.0)
        elif spec.scale == "batch_std":
            std = deviation(everyone, spec.std_ddof)
            out.append(x / (std + spec.std_epsilon) if std else 0.0)
        else:
            std = deviation(tokens, spec.std_ddof)
            out.append((x - mean(tokens)) / (std + spec.std_epsilon) if std else 0.0)
    return out


def weight(problem: Problem, spec: ObjectiveSpec, kept: list[bool], at: int) -> float:
    """Weight of each token of completion ``at``."""
    lengths = [n if one else 0 for n, one in zip(problem.lengths, kept, strict=True)]
    if not kept[at]:
        return 0.0
    if spec.aggregation == "token":
        return 1 / sum(lengths)
    if spec.aggregation == "sequence":
        return 1 / (sum(kept) * lengths[at])
    if spec.aggregation == "sequence_sum":
        return 1 / (sum(kept) * problem.max_tokens)
    group = problem.groups[at]
    alive = {g for g, n in zip(problem.groups, lengths, strict=True) if n}
    return 1 / (len(alive) * sum(n for g, n in zip(problem.groups, lengths, strict=True) if g == group))


def correction(spec: ObjectiveSpec, old: list[float], sampler: list[float], t: int) -> float:
    """c of token t."""
    logs = [a - b for a, b in zip(old, sampler, strict=True)]
    if spec.correction == "none":
        return 1.0
    log = {"token": logs[t], "sequence_product": math.fsum(logs), "sequence_mean": mean(logs)}[spec.correction_level]
    ratio = math.exp(log)
    if spec.correction == "tis":
        return min(ratio, spec.correction_high)
    return ratio if spec.correction_low <= ratio <= spec.correction_high else 0.0


def gain(
    spec: ObjectiveSpec,
    a: list[float],
    now: list[float],
    old: list[float],
    sampler: list[float],
    t: int,
    by: float = 0.0,
) -> float:
    """S of token t. ``by``: moves log π of token t in all that has a gradient, and nowhere else. A sequence's ratio has
    the gradient of the token that it multiplies: ρ · π_t/stop_gradient(π_t)."""
    logs = [x - y for x, y in zip(now, old, strict=True)]
    if spec.ratio == "clipped_mean":

        def bound(x: float, u: int) -> float:
            return min(x, spec.clip_high) if a[u] > 0 else max(x, -spec.clip_low)

        level = mean([bound(x, u) for u, x in enumerate(logs)])
        return math.exp(level + bound(logs[t] + by, t) - bound(logs[t], t)) * a[t]
    level = {"token": logs[t], "sequence_mean": mean(logs), "on_policy": 0.0}[spec.ratio]
    ratio = math.exp(level + by)
    low, high = 1 - spec.clip_low, 1 + spec.clip_high
    if spec.clip == "none":
        return ratio * a[t]
    if spec.clip == "dppo_tv":
        change = math.exp(now[t]) - math.exp(sampler[t])
        dropped = change > spec.clip_high if a[t] > 0 else change < -spec.clip_low
        return 0.0 if dropped else ratio * a[t]
    if spec.clip == "dppo_kl":
        p, q = math.exp(now[t]), math.exp(sampler[t])
        away = p > q if a[t] > 0 else p < q
        beyond = bernoulli(sampler[t], now[t]) > (spec.clip_high if a[t] > 0 else spec.clip_low)
        return 0.0 if away and beyond else ratio * a[t]
    if spec.clip == "cispo":
        return min(max(math.exp(level), low), high) * a[t] * (now[t] + by)
    if spec.clip == "sapo":
        tau = spec.sapo_tau_positive if a[t] > 0 else spec.sapo_tau_negative
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1))) * a[t]
    first = min(ratio, spec.delta) if spec.delta else ratio
    value = min(first * a[t], min(max(ratio, low), high) * a[t])
    return max(value, spec.dual_clip * a[t]) if spec.dual_clip and a[t] < 0 else value


def bernoulli(sampler: float, now: float) -> float:
    """KL between drawing a token of these log-probabilities or any other; verl adds 1e-8 to the complements."""
    q, p = min(math.exp(sampler), 1.0), min(math.exp(now), 1.0)
    return q * math.log(q / p) + (1 - q) * math.log((1 - q + 1e-8) / (1 - p + 1e-8))


def divergence(spec: ObjectiveSpec, now: float, old: float, reference: float) -> float:
    """KL estimate of one token."""
    d = reference - now
    k3 = math.exp(d) - d - 1
    return {"k1": -d, "k2": d * d / 2, "k3": k3, "k3_unbiased": math.exp(now - old) * k3}[spec.kl_estimator]


def token_loss(problem: Problem, spec: ObjectiveSpec, a: list[float], at: int, t: int, by: float = 0.0) -> float:
    """What token t of completion ``at`` adds to the loss, before its weight; ``a``: the advantage of each token of the
    completion. ``by``: see ``gain``."""
    now, sampler = problem.now[at], problem.sampler[at]
    old = sampler if spec.old == "sampler" else problem.old[at]
    drift = mean([s - p for s, p in zip(sampler, now, strict=True)])
    left_out = spec.off_policy_delta > 0 and a[t] < 0 and drift > spec.off_policy_delta
    apart = mean([bernoulli(s, p) for s, p in zip(sampler, now, strict=True)])
    left_out = left_out or (spec.sequence_kl_max > 0 and apart > spec.sequence_kl_max)
    term = 0.0 if left_out else -correction(spec, old, sampler, t) * gain(spec, a, now, old, sampler, t, by)
    if spec.kl_in == "loss":
        term += spec.kl_coef * divergence(spec, now[t] + by, old[t], problem.reference[at][t])
    return term


def loss_of(problem: Problem, spec: ObjectiveSpec, advantages: Rows, weights: Rows) -> float:
    """−J of completions whose tokens have these advantages and weights."""
    terms = [
        weights[at][t] * token_loss(problem, spec, advantages[at], at, t)
        for at, length in enumerate(problem.lengths)
        for t in range(length)
    ]
    return math.fsum(terms)


def loss(problem: Problem, spec: ObjectiveSpec) -> float:
    """−J of the whole step: all tokens of a completion have its advantage and its weight."""
    a, kept = advantages(problem, spec)
    weights = [[weight(problem, spec, kept, at)] * length for at, length in enumerate(problem.lengths)]
    return loss_of(problem, spec, [[x] * length for x, length in zip(a, problem.lengths, strict=True)], weights)

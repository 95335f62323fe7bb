"""Score centering once more, token after token in Python floats, from its paper and the guide of NeMo RL."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rlreason.objective.spec import ObjectiveSpec

Row = Sequence[float]


def softmax(logits: Row) -> list[float]:
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [power / math.fsum(powers) for power in powers]


def weight(p: float, q: float, up: bool, spec: ObjectiveSpec) -> float:
    """What the objective's gradient is, in units of A ∇log p, of a token with these probabilities."""
    r = p / q
    if spec.old == "sampler":
        low, high = 1 - spec.clip_low, 1 + spec.clip_high
        return {
            "none": lambda: r,
            "ppo": lambda: r if (r <= high if up else r >= low) else 0.0,
            "cispo": lambda: min(max(r, low), high),
            "dppo_tv": lambda: r if (p - q <= spec.clip_high if up else p - q >= -spec.clip_low) else 0.0,
        }[spec.clip]()
    if spec.correction == "none" or spec.correction_level != "token":
        return 1.0
    if spec.correction == "tis":
        return min(r, spec.correction_high)
    return r if spec.correction_low <= r <= spec.correction_high else 0.0


def coefficients(p: Row, q: Row, head: Sequence[int], whole: bool, up: bool, spec: ObjectiveSpec) -> dict[int, float]:
    """m(v) − α p(v) of the tokens of ``head``. ``p``, ``q``: of the whole vocabulary."""
    mass = {v: q[v] * weight(p[v], q[v], up, spec) for v in head}
    if whole:
        alpha = math.fsum(mass.values()) / math.fsum(p[v] for v in head)
    else:
        rho = (1 - math.fsum(q[v] for v in head)) / max(1 - math.fsum(p[v] for v in head), 1e-6)
        alpha = rho * weight(1.0, rho, up, spec)
    return {v: mass[v] - alpha * p[v] for v in head}


def row_gradient(
    p: Row, q: Row, y: int, gain: float, coefficient: Callable[[], dict[int, float]], spec: ObjectiveSpec
) -> tuple[float, list[float]]:
    """(w A C, dL/dz of one position) of −w A f(y) log p(y) + w A C, where ``gain`` = w A."""
    of = coefficient()
    f = weight(p[y], q[y], gain > 0, spec)
    total = math.fsum(of.values())
    slope = []
    for v, probability in enumerate(p):
        base = -gain * f * ((v == y) - probability)
        slope.append(base + gain * (of.get(v, 0.0) - probability * total))
    return gain * math.fsum(c * math.log(p[v]) for v, c in of.items()), slope

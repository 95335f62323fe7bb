"""What to do about a difference between sampler and trainer, from how it splits by cause. Data in, words out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlreason.objective.spec import ObjectiveSpec

#: No token's probability differs by more than about 1 %: too little for any correction to act on.
NEGLIGIBLE = 0.01
#: log of IcePop's lower bound, and of the cap of truncated importance sampling: nearer tokens are never masked or cut.
OUTLIER = math.log(2.0)
#: KL of one token, in nats, from which staleness should be lowered: where PPO implementations stop their epochs.
FAR = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What advice depends on. ``causes``: mean size of each part, in nats."""

    largest: float
    causes: Mapping[str, float]
    staleness_k3: float
    staleness: int
    #: The recipe's and the one that the sampler's log-probabilities fit.
    temperatures: tuple[float, float]
    low_precision: bool
    #: There are experts, and what the sampler chose was not reported.
    experts_unseen: bool
    looks_undelivered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Example: ``Advice(cause="router", cure="mask the tokens …", setting='correction = "icepop", …', reason="…",
    applied=False)``."""

    #: The part that weighs most, or "none".
    cause: str
    cure: str
    #: Keys of the stage, as in TOML; "" where no key cures it.
    setting: str
    #: Whether the stage has that setting already.
    applied: bool
    reason: str


def advise(findings: Findings, spec: ObjectiveSpec) -> Advice:
    """The rule for the part that weighs most; ``docs/mismatch.md`` has the table."""
    if findings.largest <= NEGLIGIBLE:
        return Advice(
            cause="none",
            cure="nothing to do",
            setting="",
            applied=True,
            reason=f"no token differs by more than {findings.largest:.2g} nats",
        )
    recipe, fitted = findings.temperatures
    if fitted != recipe:
        return Advice(
            cause="transform",
            cure="a bug, not to be corrected for: have the engine report log-probabilities of the distribution that it "
            "drew from (vLLM: logprobs_mode = processed_logprobs)",
            setting="",
            applied=False,
            reason=f"the sampler's log-probabilities fit temperature {fitted:g}, and the recipe says {recipe:g}",
        )
    cause = max(findings.causes, key=lambda one: findings.causes[one])
    if cause == "staleness":
        return _stale(findings, spec)
    if cause == "router":
        return _flipped(
            findings, spec, "the sampler sends tokens to other experts, as low precision flips close choices"
        )
    if cause == "precision":
        return Advice(
            cause="precision",
            cure="give both one dtype, float32 where it fits; the correction keeps the gradient unbiased meanwhile",
            setting=_setting(spec),
            applied=spec.correction != "none",
            reason="the same weights, rounded to the sampler's dtype, give other log-probabilities (arXiv 2510.26788)",
        )
    return _unexplained(findings, spec)


def _stale(findings: Findings, spec: ObjectiveSpec) -> Advice:
    reason = "the weights moved on since these tokens were drawn"
    if findings.staleness_k3 > FAR and findings.staleness > 0:
        return Advice(
            cause="staleness",
            cure="lower staleness or the learning rate: the correction's truncation now biases the gradient",
            setting=f"staleness = {findings.staleness - 1}",
            applied=False,
            reason=f"{reason}, by {findings.staleness_k3:.2g} nats of KL a token",
        )
    return Advice(
        cause="staleness",
        cure="truncated importance sampling weighs each token by how much (Yao et al. 2025)",
        setting=_setting(spec),
        applied=spec.correction != "none",
        reason=reason,
    )


def _flipped(findings: Findings, spec: ObjectiveSpec, reason: str) -> Advice:
    """Leave out the outliers: single tokens, or sequences where the ratio is a sequence's."""
    cause = max(findings.causes, key=lambda one: findings.causes[one])
    if findings.largest <= OUTLIER:
        return Advice(
            cause=cause,
            cure="truncated importance sampling weighs each token by how much; none differs so much that it should go",
            setting=_setting(spec),
            applied=spec.correction != "none",
            reason=reason,
        )
    replay = "or replay the sampler's experts in the trainer (R3, arXiv 2510.11370)"
    if spec.ratio in ("sequence_mean", "clipped_mean"):
        return Advice(
            cause=cause,
            cure=f"leave out sequences that differ much on average (masked importance sampling), {replay}",
            setting='correction = "mis", correction_level = "sequence_mean", correction_low = 0.9, '
            "correction_high = 1.1",
            applied=spec.correction == "mis",
            reason=reason,
        )
    return Advice(
        cause=cause,
        cure=f"leave out the tokens that differ most (IcePop, Ling team 2025), {replay}",
        setting='correction = "icepop", correction_low = 0.5, correction_high = 5.0',
        applied=spec.correction in ("icepop", "mis"),
        reason=reason,
    )


def _unexplained(findings: Findings, spec: ObjectiveSpec) -> Advice:
    if findings.looks_undelivered:
        return Advice(
            cause="residual",
            cure="stop: weights do not reach the sampler. Switch sampler.canary on, and reset the engine's prefix "
            "cache after each delivery",
            setting="",
            applied=False,
            reason="the sampler's log-probabilities fit the weights of one version before those it was said to hold",
        )
    if findings.experts_unseen and findings.low_precision:
        return _flipped(
            findings,
            spec,
            "nothing in the trainer explains it: in low precision the engine's kernels differ, and may flip experts "
            "that it does not report",
        )
    return Advice(
        cause="residual",
        cure="check the weights that the engine holds (sampler.canary) and its kernels (attention, fused experts, "
        "quantisation); the correction keeps the gradient unbiased meanwhile",
        setting=_setting(spec),
        applied=spec.correction != "none",
        reason="the trainer's model at the sampler's version, dtype, experts and temperature still differs",
    )


def _setting(spec: ObjectiveSpec) -> str:
    level = "token" if spec.ratio in ("token", "on_policy") else "sequence_mean"
    return f'correction = "tis", correction_level = "{level}"'

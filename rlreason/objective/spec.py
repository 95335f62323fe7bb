"""Which objective is optimised, as data: one choice on each axis. No torch here, so that recipes load everywhere.

The loss over a step is one sum over all loss tokens t of all sequences i of all groups g,

    L = Σ_i Σ_t w_it [ −c_it · S(ρ_it, A_it) + kl_coef · KL_it − entropy_coef · H_it ]

``baseline`` and ``scale`` make A from the rewards, one for all tokens of a sequence; the loss takes one for each token.
``ratio`` and ``clip`` make S, ``kl_*`` the KL term, ``correction*`` c, ``aggregation`` the weight w, ``overlong`` what
truncated sequences do. ``docs/objectives.md`` has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

Baseline = Literal["mean", "leave_one_out", "length_weighted", "batch", "given", "none"]
Scale = Literal["group_std", "batch_std", "batch_whiten", "group_mean", "none"]
RatioLevel = Literal["token", "sequence_mean", "clipped_mean", "on_policy"]
Clip = Literal["ppo", "cispo", "sapo", "dppo_tv", "dppo_kl", "none"]
KlEstimator = Literal["k1", "k2", "k3", "k3_unbiased"]
Correction = Literal["none", "tis", "mis", "icepop"]
Level = Literal["token", "sequence_mean", "sequence_product"]
OldPolicy = Literal["trainer", "sampler"]
Aggregation = Literal["token", "sequence", "sequence_sum", "group_token"]
Centering = Literal["off", "top_k", "exact"]
Rewards = Literal["sum", "apart"]
Overlong = Literal["keep", "mask", "mask_from_baseline", "soft_penalty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSpec:
    """The policy-gradient objective of a GRPO stage. Every field is one axis. Defaults: DAPO's without its length
    penalty, and truncated importance sampling against the sampler's mismatch.

    Example: ``ObjectiveSpec(baseline="leave_one_out", scale="none", clip="none", ratio="on_policy")`` is RLOO's core.
    Raises ValueError for a combination that contradicts itself, with the reason.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    #: sum: the mixed score is the reward. apart: each part of [reward] is a reward of its own, normalised in its group;
    #: their sum with the recipe's weights is then normalised over the batch (GDPO, arXiv 2601.05242).
    rewards: Rewards = "sum"
    #: Subtracted from the reward. mean: of the group; leave_one_out: of the others in the group (RLOO);
    #: length_weighted: Σ l r / Σ l of the group (OPO); batch: of all rewards; given: one number per completion
    #: (a critic, ReMax).
    baseline: Baseline = "mean"
    #: Divides what is left. group_std, batch_std: deviation of the rewards; batch_whiten: mean and deviation over all
    #: loss tokens of the batch, taken after the baseline (REINFORCE++); group_mean: mean reward of the group (MaxRL).
    scale: Scale = "group_std"
    #: Divisor of a variance is n − std_ddof.
    std_ddof: int = 1
    #: Added to a standard deviation.
    std_epsilon: float = 1e-6
    #: ρ: π/π_old of each token; sequence_mean: their geometric mean over the sequence (GSPO); clipped_mean: the same of
    #: token ratios that are clipped one by one (GMPO); on_policy: π/stop_gradient(π), 1 with the gradient of log π.
    ratio: RatioLevel = "token"
    #: π_old. trainer: the trainer's own log-probabilities before the first update on a batch (recomputed for several
    #: updates; for one update ρ is 1, whatever the age of the rollouts). sampler: those that the tokens were drawn with
    #: (verl's bypass mode, TRL, prime-rl): ρ = π/π_sampler, and the clip acts on stale rollouts too.
    old: OldPolicy = "trainer"
    #: S. ppo: min(ρA, clip(ρ)A); cispo: stop_gradient(clip(ρ))·A·log π; sapo: a soft gate; dppo_tv: ρA, but 0 where
    #: the probability has moved further than the bounds already, away from the sampler's; dppo_kl: the same of the
    #: divergence KL(sampler || policy) between drawing this token and any other; none: ρA.
    clip: Clip = "ppo"
    #: Lower bound is 1 − clip_low: any number, as a ratio is positive. For dppo_tv: largest fall of the probability;
    #: for dppo_kl: largest divergence, in nats, of one that falls.
    clip_low: float = 0.2
    #: Upper bound is 1 + clip_high. For dppo_tv: largest rise of the probability; for dppo_kl: largest divergence of
    #: one that rises.
    clip_high: float = 0.28
    #: Dual clip: where A < 0, S ≥ dual_clip · A (arXiv 1912.09729). 0: off.
    dual_clip: float = 0.0
    #: Two-sided clip: ρ ≤ delta in the unclipped branch, which matters where A < 0 (arXiv 2505.07291). 0: off.
    delta: float = 0.0
    #: Steepness of SAPO's gate where A > 0.
    sapo_tau_positive: float = 1.0
    #: Steepness of SAPO's gate where A ≤ 0.
    sapo_tau_negative: float = 1.05
    #: Weight of the KL from the reference policy; 0 keeps no reference model.
    kl_coef: float = 0.0
    #: With d = log π_ref − log π: k1 = −d, k2 = d²/2, k3 = exp(d) − d − 1, k3_unbiased = ρ · k3 with ρ's gradient.
    kl_estimator: KlEstimator = "k3"
    #: loss: a term per token. reward: the sequence's sum is taken off its reward, before the baseline.
    kl_in: Literal["loss", "reward"] = "loss"
    #: Weight of an entropy bonus: −entropy_coef · H(π) of each token, beside S. 0: off. With ``entropy_target`` it is
    #: where the coefficient begins.
    entropy_coef: float = 0.0
    #: Adaptive entropy (Skywork-OR1, arXiv 2505.22312, as in TRL): after each step whose mean entropy was at most this
    #: the coefficient rises by ``entropy_coef_delta`` up to ``entropy_coef_max``, after others it falls, to 0 at the
    #: least; it acts in steps that follow one with so little entropy. 0: the coefficient stays.
    entropy_target: float = 0.0
    #: Step of the adaptive coefficient.
    entropy_coef_delta: float = 0.005
    #: Upper bound of the adaptive coefficient.
    entropy_coef_max: float = 1.0
    #: What the mismatch between sampler and trainer does to a token: r = π_old/π_sampler. tis: weight min(r, high);
    #: mis: weight r, but 0 above high or below low; icepop: mis of single tokens, with both bounds.
    correction: Correction = "tis"
    #: r of each token; sequence_product: their product over the sequence; sequence_mean: their geometric mean.
    correction_level: Level = "token"
    #: Lower bound of r, for mis and icepop. 0: none.
    correction_low: float = 0.0
    #: Upper bound of r.
    correction_high: float = 2.0
    #: Leave out tokens with A < 0 of sequences whose mean log(π_sampler/π) exceeds this (DeepSeek-V3.2). 0: off.
    off_policy_delta: float = 0.0
    #: Leave out sequences whose mean divergence of dppo_kl's kind exceeds this, in nats a token (FlashREINFORCE's trust
    #: region). 0: off.
    sequence_kl_max: float = 0.0
    #: Take out of each step what it would do whatever was rewarded, because the sampler's distribution is not the
    #: policy's (arXiv 2609.20807). top_k: from its ``centering_top_k`` most probable tokens, the rest taken for the
    #: policy's, rescaled; exact: from all that could be drawn.
    centering: Centering = "off"
    #: Most probable tokens of the sampler that come with each token for centering = "top_k".
    centering_top_k: int = 20
    #: w. token: one mean over all tokens; sequence: mean of each sequence's mean; sequence_sum: sum of each sequence
    #: over max_tokens (Dr. GRPO); group_token: mean of each group's mean over its tokens.
    aggregation: Aggregation = "token"
    #: Sequences cut off at max_tokens. mask: no loss, but their reward counts in the baseline; mask_from_baseline: not
    #: there either; soft_penalty: DAPO's length penalty on the last ``overlong_share`` of max_tokens, for all.
    overlong: Overlong = "keep"
    #: Share of max_tokens that the length penalty of soft_penalty rises over.
    overlong_share: float = 0.2

    def __post_init__(self) -> None:
        for refuse in _RULES:
            reason = refuse(self)
            if reason:
                raise ValueError(reason)

    @property
    def has_group_baseline(self) -> bool:
        """Whether the baseline is the group's own: then equal rewards, or a single one, mean advantage 0."""
        return self.baseline in ("mean", "leave_one_out", "length_weighted")

    @property
    def needs_every_token(self) -> bool:
        """Whether tokens with advantage 0 have a share of the loss all the same: of its KL, or its entropy."""
        return (self.kl_coef > 0 and self.kl_in == "loss") or self.entropy_coef > 0 or self.entropy_target > 0

    @property
    def gates_sequences(self) -> bool:
        """Whether the whole sequence decides if a token stays."""
        return self.off_policy_delta > 0 or self.sequence_kl_max > 0

    def is_row_local(self, *, has_old: bool) -> bool:
        """Whether a token's loss and gradient follow from its own log-probability. At π = π_old (not ``has_old``) the
        ratio is 1 at every level, so only what weighs whole sequences stands against it."""
        has_old = has_old or self.old == "sampler"
        if (self.correction != "none" and self.correction_level != "token") or self.gates_sequences:
            return False
        return self.ratio in ("token", "on_policy") or not has_old

    def formula(self) -> str:
        """The effective objective in one line, as `rlreason plan` prints it."""
        from rlreason.objective.formula import formula

        return formula(self)


#: Values that had another name: "sequence" was a mean in one key and a product in the other.
_RENAMED = {
    ("ratio", "sequence"): "sequence_mean",
    ("ratio", "geometric"): "clipped_mean",
    ("correction_level", "sequence"): "sequence_product",
    ("correction_level", "geometric"): "sequence_mean",
}


def refuse_old_names(fields: Mapping[str, object]) -> None:
    """Raise ValueError, naming the new value, where ``fields`` of a spec hold one that has another name now."""
    for (key, old), new in _RENAMED.items():
        if key in fields and fields[key] == old:
            raise ValueError(f'{key} = "{old}" is called "{new}" now: write {key} = "{new}"')


def _names(spec: ObjectiveSpec) -> str:
    for key, values in _CHOICES.items():
        value = getattr(spec, key)
        if value not in values:
            refuse_old_names({key: value})
            return f"{key} must be one of {', '.join(values)}, not {value!r}"
    return ""


def _positive(spec: ObjectiveSpec) -> str:
    for name in ("clip_low", "clip_high", "sapo_tau_positive", "sapo_tau_negative", "correction_high"):
        if not getattr(spec, name) > 0.0:
            return f"{name} must be positive, not {getattr(spec, name)}"
    gates = ("off_policy_delta", "sequence_kl_max")
    entropies = ("entropy_coef", "entropy_target", "entropy_coef_delta", "entropy_coef_max")
    for name in ("std_epsilon", "dual_clip", "delta", "kl_coef", "correction_low", *gates, *entropies):
        if not getattr(spec, name) >= 0.0:
            return f"{name} must not be negative, but it is {getattr(spec, name)}"
    if spec.std_ddof not in (0, 1):
        return f"std_ddof must be 0 or 1, not {spec.std_ddof}"
    return "" if 0.0 < spec.overlong_share < 1.0 else f"overlong_share must be in (0, 1), not {spec.overlong_share}"


def _advantage(spec: ObjectiveSpec) -> str:
    if spec.rewards == "apart" and (spec.baseline, spec.scale) != ("mean", "group_std"):
        return 'rewards = "apart" (GDPO) normalises each part as GRPO does: baseline = "mean", scale = "group_std"'
    if spec.rewards == "apart" and (spec.overlong == "soft_penalty" or (spec.kl_coef and spec.kl_in == "reward")):
        return (
            'rewards = "apart" (GDPO) has no one reward that overlong = "soft_penalty" or kl_in = "reward" could take '
            'off from: use overlong = "mask" or "keep", and kl_in = "loss"'
        )
    if spec.baseline == "leave_one_out" and spec.scale == "group_std":
        return (
            'baseline = "leave_one_out" with scale = "group_std" divides by the deviation twice over: on groups of '
            'nearly equal rewards it explodes. Use baseline = "mean", or scale = "none"'
        )
    if spec.scale == "group_mean" and spec.baseline != "mean":
        return f'scale = "group_mean" (MaxRL) is (r − mean)/mean: it needs baseline = "mean", not "{spec.baseline}"'
    if spec.scale == "group_mean" and spec.overlong == "soft_penalty":
        return (
            'scale = "group_mean" (MaxRL) is defined for rewards of 0 and more, and overlong = "soft_penalty" takes up '
            'to 1 off: use overlong = "mask" or "keep"'
        )
    if spec.scale == "group_mean" and spec.kl_coef and spec.kl_in == "reward":
        return (
            'scale = "group_mean" (MaxRL) is defined for rewards of 0 and more, and a KL taken off the reward makes '
            'them negative: use kl_in = "loss"'
        )
    return ""


def _old_policy(spec: ObjectiveSpec) -> str:
    if spec.old == "trainer":
        return ""
    if spec.ratio == "on_policy":
        return 'old = "sampler" needs a ratio to it: ratio = "on_policy" is always 1. Use ratio = "token"'
    if spec.correction != "none":
        return (
            f'old = "sampler" already divides by π_sampler, so correction = "{spec.correction}" would weigh by '
            'π_old/π_sampler = 1 and can never act. Use correction = "none"'
        )
    return ""


def _clipping(spec: ObjectiveSpec) -> str:
    if spec.ratio == "on_policy" and spec.clip in ("ppo", "cispo", "sapo"):
        return f'ratio = "on_policy" is always 1: clip = "{spec.clip}" can never act. Use clip = "none"'
    if spec.ratio == "clipped_mean" and spec.clip != "ppo":
        return f'ratio = "clipped_mean" (GMPO) clips token ratios itself: it needs clip = "ppo", not "{spec.clip}"'
    if spec.ratio == "sequence_mean" and spec.clip in ("dppo_tv", "dppo_kl"):
        return f'clip = "{spec.clip}" bounds the probability of a token: it needs ratio = "token"'
    if spec.clip in ("ppo", "cispo") and spec.clip_high < spec.clip_low < 1.0:
        return f"clip_high ({spec.clip_high}) must not be below clip_low ({spec.clip_low})"
    if spec.dual_clip and (spec.clip != "ppo" or spec.ratio == "clipped_mean"):
        return 'dual_clip needs clip = "ppo" and a token or sequence ratio'
    if spec.dual_clip and spec.dual_clip <= 1.0:
        return f"dual_clip bounds ρ from above where A < 0: it must exceed 1, not {spec.dual_clip}"
    if spec.delta and (spec.clip != "ppo" or spec.ratio == "clipped_mean"):
        return 'delta needs clip = "ppo" and a token or sequence ratio'
    if spec.delta and spec.delta <= 1.0 + spec.clip_high:
        return f"delta ({spec.delta}) must exceed 1 + clip_high ({1 + spec.clip_high:g}), or it acts where A > 0 too"
    if spec.delta and spec.dual_clip:
        return "delta and dual_clip bound the same branch: use one"
    return ""


def _kl(spec: ObjectiveSpec) -> str:
    if spec.kl_coef and spec.kl_in == "loss" and spec.kl_estimator == "k1":
        return (
            'kl_estimator = "k1" in the loss: its gradient is that of log π, 0 on average, so nothing is held back. '
            'Use k2 or k3_unbiased (whose gradient is that of the KL), k3, or kl_in = "reward"'
        )
    if spec.kl_coef and spec.kl_in == "reward" and spec.kl_estimator == "k3_unbiased":
        return 'kl_in = "reward" has no gradient: kl_estimator = "k3_unbiased" is k3 there; say "k3"'
    return ""


def _entropy(spec: ObjectiveSpec) -> str:
    if spec.entropy_target and spec.entropy_coef > spec.entropy_coef_max:
        return f"entropy_coef ({spec.entropy_coef}) must not exceed entropy_coef_max ({spec.entropy_coef_max})"
    return ""


def _centering(spec: ObjectiveSpec) -> str:
    if spec.centering_top_k < 1:
        return f"centering_top_k must be at least 1, not {spec.centering_top_k}"
    if spec.centering != "off" and spec.old == "sampler" and spec.ratio in ("sequence_mean", "clipped_mean"):
        return (
            f'centering = "{spec.centering}" with old = "sampler" asks what the clip would do with every token, and '
            f'ratio = "{spec.ratio}" depends on the whole sequence: use ratio = "token", or old = "trainer"'
        )
    return ""


def _corrections(spec: ObjectiveSpec) -> str:
    if spec.correction == "icepop" and spec.correction_level != "token":
        return 'correction = "icepop" masks single tokens: it needs correction_level = "token"'
    if spec.correction == "icepop" and not spec.correction_low:
        return 'correction = "icepop" needs correction_low > 0 (0.5 in its paper); with no lower bound say "mis"'
    if spec.correction == "tis" and spec.correction_low:
        return 'correction = "tis" has no lower bound: correction_low needs "mis" or "icepop"'
    if spec.correction != "none" and spec.correction_low >= spec.correction_high:
        return f"correction_low ({spec.correction_low}) must be below correction_high ({spec.correction_high})"
    by_token = spec.correction != "none" and spec.correction_level == "token"
    if by_token and spec.ratio in ("sequence_mean", "clipped_mean"):
        return (
            f'ratio = "{spec.ratio}" is one number for a sequence: correction_level = "token" would weigh its tokens '
            'differently. Use correction_level = "sequence_mean" or "sequence_product", or correction = "none"'
        )
    return ""


#: The values of each axis that has names.
_CHOICES = {
    "rewards": get_args(Rewards),
    "baseline": get_args(Baseline),
    "scale": get_args(Scale),
    "ratio": get_args(RatioLevel),
    "old": get_args(OldPolicy),
    "clip": get_args(Clip),
    "kl_estimator": get_args(KlEstimator),
    "kl_in": ("loss", "reward"),
    "correction": get_args(Correction),
    "correction_level": get_args(Level),
    "centering": get_args(Centering),
    "aggregation": get_args(Aggregation),
    "overlong": get_args(Overlong),
}
#: Each says what is wrong with a spec, or "".
_RULES: tuple[Callable[[ObjectiveSpec], str], ...] = (
    _names,
    _positive,
    _advantage,
    _old_policy,
    _clipping,
    _kl,
    _entropy,
    _corrections,
    _centering,
)

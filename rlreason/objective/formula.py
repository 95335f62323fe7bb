"""The effective objective in one line, as `rlreason plan` and the documentation show it. No torch."""

from __future__ import annotations

from rlreason.objective.spec import ObjectiveSpec


def formula(spec: ObjectiveSpec) -> str:
    """J of ``spec``, with every number that it has."""
    beside = f"{_centering_text(spec)}{_kl_text(spec)}{_entropy_text(spec)}"
    gain = f"{_gate_text(spec)}{_correction_text(spec)}{_surrogate_text(spec)}{beside}"
    return (
        f"J = {_AGGREGATIONS[spec.aggregation]} [{gain}],  "
        f"{_ratio_text(spec)},  A = {_advantage_text(spec)}{_OVERLONG[spec.overlong]}"
    )


_AGGREGATIONS = {
    "token": "1/N_tokens Σ_i Σ_t",
    "sequence": "1/N_sequences Σ_i 1/|o_i| Σ_t",
    "sequence_sum": "1/(N_sequences · max_tokens) Σ_i Σ_t",
    "group_token": "1/N_groups Σ_g 1/|tokens_g| Σ_i Σ_t",
}
_RATIOS = {
    "token": "ρ = π/π_old",
    "sequence_mean": "ρ = (π(o)/π_old(o))^(1/|o|)",
    "clipped_mean": "ρ = Π_t clip(π/π_old)^(1/|o|)",
    "on_policy": "ρ = π/stop_gradient(π)",
}
_OVERLONG = {
    "keep": "",
    "mask": ",  truncated: no loss",
    "mask_from_baseline": ",  truncated: neither loss nor baseline",
    "soft_penalty": ",  r includes the length penalty",
}
_BASELINES = {
    "mean": "r − mean_group",
    "leave_one_out": "r − mean_others",
    "length_weighted": "r − Σlr/Σl",
    "batch": "r − mean_batch",
    "given": "r − b",
    "none": "r",
}


def _ratio_text(spec: ObjectiveSpec) -> str:
    return _RATIOS[spec.ratio].replace("π_old", "π_sampler" if spec.old == "sampler" else "π_old")


def _correction_text(spec: ObjectiveSpec) -> str:
    if spec.correction == "none":
        return ""
    name = {
        "token": "π_old/π_sampler",
        "sequence_product": "Π_t π_old/π_sampler",
        "sequence_mean": "(Π_t π_old/π_sampler)^(1/|o|)",
    }
    inner = name[spec.correction_level]
    if spec.correction == "tis":
        return f"min({inner}, {spec.correction_high:g}) · "
    return f"mask({inner} in [{spec.correction_low:g}, {spec.correction_high:g}]) · "


def _surrogate_text(spec: ObjectiveSpec) -> str:
    bounds = f"{1 - spec.clip_low:g}, {1 + spec.clip_high:g}"
    if spec.ratio == "clipped_mean":
        return "ρ·A"
    if spec.clip == "ppo":
        first = f"min(ρ, {spec.delta:g})·A" if spec.delta else "ρ·A"
        text = f"min({first}, clip(ρ, {bounds})·A)"
        return f"max({text}, {spec.dual_clip:g}·A if A<0)" if spec.dual_clip else text
    return {
        "cispo": f"stop_gradient(clip(ρ, {bounds}))·A·log π",
        "sapo": f"4/τ·σ(τ(ρ − 1))·A, τ = {spec.sapo_tau_positive:g} if A>0 else {spec.sapo_tau_negative:g}",
        "dppo_tv": f"ρ·A·[π − π_sampler ≤ {spec.clip_high:g} if A>0, ≥ −{spec.clip_low:g} if A<0]",
        "dppo_kl": f"ρ·A·[KL₂(π_sampler, π) ≤ {spec.clip_high:g} or π<π_sampler if A>0, "
        f"≤ {spec.clip_low:g} or π>π_sampler if A<0]",
        "none": "ρ·A",
    }[spec.clip]


def _gate_text(spec: ObjectiveSpec) -> str:
    found = ""
    if spec.off_policy_delta:
        found += f"[A≥0 or mean_t log π_sampler/π ≤ {spec.off_policy_delta:g}] · "
    if spec.sequence_kl_max:
        found += f"[mean_t KL₂(π_sampler, π) ≤ {spec.sequence_kl_max:g}] · "
    return found


def _centering_text(spec: ObjectiveSpec) -> str:
    if spec.centering == "off":
        return ""
    weight = "" if spec.old == "trainer" and (spec.correction == "none" or spec.correction_level != "token") else "f·"
    over = "all v" if spec.centering == "exact" else f"top {spec.centering_top_k} of π_sampler, and the rest as α·π"
    return f" − A·Σ_v stop_gradient({weight}π_sampler − α·π)·log π(v) over {over}"


def _kl_text(spec: ObjectiveSpec) -> str:
    return f" − {spec.kl_coef:g} · {spec.kl_estimator}(π, π_ref)" if spec.kl_coef and spec.kl_in == "loss" else ""


def _entropy_text(spec: ObjectiveSpec) -> str:
    if spec.entropy_target:
        return f" + β·H(π), β from {spec.entropy_coef:g} towards H = {spec.entropy_target:g}"
    return f" + {spec.entropy_coef:g}·H(π)" if spec.entropy_coef else ""


def _advantage_text(spec: ObjectiveSpec) -> str:
    if spec.rewards == "apart":
        part = f"(r_k − mean_group) / (std_group + {spec.std_epsilon:g})"
        return f"(x − mean_batch) / (std_batch + {spec.std_epsilon:g}) of x = Σ_k weight_k · {part}"
    text = _BASELINES[spec.baseline]
    if spec.kl_coef and spec.kl_in == "reward":
        text = text.replace("r", f"(r − {spec.kl_coef:g}·Σ_t {spec.kl_estimator})", 1)
    text = f"({text})" if spec.scale != "none" and spec.baseline != "none" else text
    epsilon = f" + {spec.std_epsilon:g})" if spec.std_epsilon else ")"
    return {
        "group_std": f"{text} / (std_group{epsilon}",
        "batch_std": f"{text} / (std_batch{epsilon}",
        "batch_whiten": f"whiten({text}) over the batch's tokens",
        "group_mean": f"{text} / mean_group",
        "none": text,
    }[spec.scale]

"""Which objective is optimised, as data. No torch here, so that recipes load in the light install."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveSpec:
    """The policy-gradient objective of a GRPO stage.

    Defaults are DAPO's (arXiv 2503.14476): clip-higher, token mean, no KL, with GRPO's group standard
    deviation (arXiv 2402.03300). Dr. GRPO (arXiv 2503.20783) is ``advantage_scale="none"`` with
    ``aggregation="sequence_sum"``.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    #: Divide centred rewards by the group's standard deviation, or not.
    advantage_scale: Literal["group_std", "none"] = "group_std"
    #: The ratio is clipped to [1 - clip_low, 1 + clip_high].
    clip_low: float = 0.2
    clip_high: float = 0.28
    #: token: one mean over all tokens; sequence: mean of per-sequence means; sequence_sum: sums over max_tokens.
    aggregation: Literal["token", "sequence", "sequence_sum"] = "token"
    #: Weight of the k3 estimate of KL(policy || reference); 0 keeps no reference model.
    kl_coef: float = 0.0
    #: Truncated importance sampling of the sampler-trainer mismatch: weights are capped here; 0 switches it off.
    sampler_correction_cap: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 < self.clip_low <= 1.0:
            raise ValueError(f"clip_low must be in (0, 1], not {self.clip_low}")
        if self.clip_high < self.clip_low:
            raise ValueError(f"clip_high ({self.clip_high}) must not be below clip_low ({self.clip_low})")
        if self.kl_coef < 0.0 or self.sampler_correction_cap < 0.0:
            raise ValueError("kl_coef and sampler_correction_cap must not be negative")

    def formula(self) -> str:
        """The effective objective in one line, as `rlreason plan` prints it."""
        scale = " / (std_group + 1e-6)" if self.advantage_scale == "group_std" else ""
        mean = {
            "token": "1/N_tokens Σ_i Σ_t",
            "sequence": "1/N_sequences Σ_i 1/|o_i| Σ_t",
            "sequence_sum": "1/(N_sequences · max_tokens) Σ_i Σ_t",
        }[self.aggregation]
        weight = f"min(π_old/π_sampler, {self.sampler_correction_cap:g}) · " if self.sampler_correction_cap else ""
        kl = f" − {self.kl_coef:g} · k3(π, π_ref)" if self.kl_coef else ""
        return (
            f"J = {mean} [{weight}min(ρ·A, clip(ρ, {1 - self.clip_low:g}, {1 + self.clip_high:g})·A){kl}],  "
            f"ρ = π/π_old,  A = (r − mean_group){scale}"
        )

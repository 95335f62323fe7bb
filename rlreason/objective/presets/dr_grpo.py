"""Dr. GRPO (arXiv 2503.20783): neither the length nor the deviation of a group changes a token's weight.

A_i = r_i − mean_g
J = 1/(N · max_tokens) Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i)
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(scale="none", aggregation="sequence_sum", clip_low=0.2, clip_high=0.2)

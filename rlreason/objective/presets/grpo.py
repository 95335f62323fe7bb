"""GRPO as published (DeepSeekMath, arXiv 2402.03300, eq. 3 and 4; outcome supervision).

A_i = (r_i − mean_g) / std_g
J = 1/N Σ_i 1/|o_i| Σ_t [ min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i) − 0.04 · k3_it ]
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(aggregation="sequence", clip_low=0.2, clip_high=0.2, kl_coef=0.04)

"""DeepSeek-R1's GRPO (arXiv 2501.12948, Nature 645, 633–638): a wide clip and a weak KL.

    A_i = (r_i − mean_g) / std_g
    J = 1/N Σ_i 1/|o_i| Σ_t [ min(ρ_it A_i, clip(ρ_it, 1 − 10, 1 + 10) A_i) − 0.001 · k3_it ]

A ratio is positive, so the lower bound of −9 never acts.
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(aggregation="sequence", clip_low=10.0, clip_high=10.0, kl_coef=0.001)

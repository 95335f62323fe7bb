"""SAPO (arXiv 2511.20347): a soft gate where others clip, steeper for negative advantages.

J = 1/N Σ_i 1/|o_i| Σ_t 4/τ_i · σ(τ_i (ρ_it − 1)) · A_i,   τ_i = 1 if A_i > 0 else 1.05
A_i = (r_i − mean_g) / std_g
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(clip="sapo", sapo_tau_positive=1.0, sapo_tau_negative=1.05, aggregation="sequence")

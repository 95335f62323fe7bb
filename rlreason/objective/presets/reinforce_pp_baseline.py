"""REINFORCE++-baseline (arXiv 2501.03262): group mean, then whitened over the batch; k2 in the loss.

A_i = (x_i − mean x) / std x over all tokens of the batch,   x_i = r_i − mean_g
J = 1/Σ|o_i| Σ_i Σ_t [ min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i) − 0.001 · k2_it ]
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(scale="batch_whiten", clip_low=0.2, clip_high=0.2, kl_coef=0.001, kl_estimator="k2")

"""Lite PPO (arXiv 2508.08221): group mean, deviation of the whole batch, one mean over all tokens.

A_i = (r_i − mean_g) / std_batch
J = 1/Σ|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i)
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(scale="batch_std", clip_low=0.2, clip_high=0.2)

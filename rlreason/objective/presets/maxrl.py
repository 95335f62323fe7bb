"""MaxRL (arXiv 2602.02710): the advantage over the mean, in units of the mean, so rare successes weigh the most.

A_i = (r_i − mean_g) / mean_g, 0 where mean_g = 0
J = 1/Σ|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 0.8, 1.2) A_i)
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(scale="group_mean", clip_low=0.2, clip_high=0.2)

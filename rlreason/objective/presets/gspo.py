"""GSPO (arXiv 2507.18071): one ratio for a sequence, the geometric mean of its tokens' ratios.

s_i = (π(o_i)/π_old(o_i))^(1/|o_i|),   A_i = (r_i − mean_g) / std_g
J = 1/N Σ_i min(s_i A_i, clip(s_i, 1 − 3e-4, 1 + 4e-4) A_i)
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(
    ratio="sequence", clip_low=3e-4, clip_high=4e-4, aggregation="sequence", correction_level="geometric"
)

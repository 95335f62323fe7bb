"""CISPO (MiniMax-M1, arXiv 2506.13585): the weight is clipped, never the gradient.

    J = 1/Σ|o_i| Σ_i Σ_t stop_gradient(min(ρ_it, 5)) A_i log π_it,   A_i = (r_i − mean_g) / std_g

The paper has no lower bound and tunes the upper one without a number; 5 is ScaleRL's (arXiv 2510.13786).
"""

from rlreason.objective.spec import ObjectiveSpec

SPEC = ObjectiveSpec(clip="cispo", clip_low=1.0, clip_high=4.0)
